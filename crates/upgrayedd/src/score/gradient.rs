//! Gate gradient: how much the loss moves with a head's gate (Michel et al. 2019).

use super::definition::Score;
use super::statistics::Needs;
use crate::units::Sites;

pub(super) static SCORE: Score = Score {
    name: "gradient",
    summary: "mean over sequences of |∂loss/∂gate|, the gate being a factor on the head's output (Michel et al. 2019)",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Gates,
    compute: |_, statistics| Ok(statistics.absolute.clone()),
};
