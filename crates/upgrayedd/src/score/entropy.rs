//! Attention entropy: how evenly a head spreads its attention, normalised by the log of the visible keys.

use super::definition::Score;
use super::statistics::Needs;
use crate::units::{Site, Sites};

pub(super) static SCORE: Score = Score {
    name: "entropy",
    summary: "mean attention entropy divided by the log of the visible keys, in [0, 1]; padding never counts",
    shown_negated: true,
    units: Sites::of(Site::Head),
    needs: Needs::Entropy,
    compute: |_, statistics| Ok(statistics.entropy.map(|entropy| -entropy)),
};
