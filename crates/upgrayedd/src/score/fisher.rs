//! Diagonal empirical Fisher information of the gates (Kwon et al. 2022).

use super::definition::Score;
use super::statistics::Needs;
use crate::units::Sites;

pub(super) static SCORE: Score = Score {
    name: "fisher",
    summary: "mean over sequences (of channels, over stretches of them) of (∂loss/∂gate)², the gates' diagonal Fisher information (Kwon et al. 2022)",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Gates,
    compute: |_, statistics| Ok(statistics.squared.clone()),
};
