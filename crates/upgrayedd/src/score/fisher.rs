//! Fisher information of the gates: how sharply the loss bends when a head fades (Kwon et al. 2022).

use super::gates::gate_sums;
use super::{Score, ScoreContext};
use crate::Result;
use crate::heads::HeadScores;

pub(super) static SCORE: Score = Score {
    name: "fisher",
    summary: "mean over sequences of (∂loss/∂gate)², the diagonal Fisher information (Kwon et al. 2022)",
    higher_keeps: true,
    needs_data: true,
    compute,
};

fn compute(context: &ScoreContext<'_>) -> Result<HeadScores> {
    Ok(gate_sums(context)?.squared)
}
