//! Gate gradient: how much the loss moves with a head's gate (Michel et al. 2019).

use super::gates::gate_sums;
use super::{Score, ScoreContext};
use crate::Result;
use crate::heads::HeadScores;

pub(super) static SCORE: Score = Score {
    name: "gradient",
    summary: "mean over sequences of |∂loss/∂gate|, the absolute value per sequence (Michel et al. 2019)",
    higher_keeps: true,
    needs_data: true,
    compute,
};

fn compute(context: &ScoreContext<'_>) -> Result<HeadScores> {
    Ok(gate_sums(context)?.absolute)
}
