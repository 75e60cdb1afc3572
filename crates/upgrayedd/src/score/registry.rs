//! The scores there are.

use super::context::ScoreContext;
use super::definition::{Score, from_statistics};
use super::statistics::{self, Needs};
use super::{
    entropy, fisher, gradient, loss_impact, magnitude, random, similarity, surgeon, task, taylor, wanda,
};
use crate::units::Scores;
use crate::{Error, Result};

/// Every score, in the order in which messages and documents name them.
pub const ALL: [&Score; 11] = [
    &random::SCORE,
    &entropy::SCORE,
    &magnitude::SCORE,
    &gradient::SCORE,
    &taylor::SCORE,
    &fisher::SCORE,
    &task::SCORE,
    &wanda::SCORE,
    &similarity::SCORE,
    &surgeon::SCORE,
    &loss_impact::SCORE,
];

/// The score called `name`.
///
/// # Errors
/// Returns [`Error::UnknownName`] if there is no such score.
pub fn named(name: &str) -> Result<&'static Score> {
    ALL.into_iter()
        .find(|s| s.name == name)
        .ok_or_else(|| Error::unknown_name("score", name, &ALL.map(|s| s.name)))
}

/// Whether a score is defined for this model and data: `task` wants labels.
pub fn applies(score: &Score, context: &ScoreContext<'_>) -> bool {
    score.name != task::SCORE.name || task::has_task(context).unwrap_or(false)
}

/// `fisher` or `task`, and per layer the heads' `H × H` block of the Fisher information whose diagonal it is.
pub(crate) fn fisher_blocks(score: &Score, context: &ScoreContext<'_>) -> Result<(Scores, Vec<Vec<f64>>)> {
    let statistics = statistics::gather(context, &[score.needs])?;
    let scores = from_statistics(score, context, &statistics)?;
    Ok((scores, statistics.blocks))
}

/// Means over the calibration sequences of the gates' gradients and of their squares, at the gates as they
/// are.
pub(crate) fn gate_gradients(context: &ScoreContext<'_>) -> Result<(Scores, Scores)> {
    let statistics = statistics::gather(context, &[Needs::Slopes])?;
    Ok((statistics.signed, statistics.squared))
}
