//! Importance scores: a number per head. One file a score.

mod entropy;
mod fisher;
mod gradient;
mod loss_impact;
pub(crate) mod magnitude;
mod random;
mod similarity;
mod statistics;
mod surgeon;
mod task;
mod taylor;
mod wanda;

use std::ops::Range;

use crate::data::Dataset;
use crate::error::unknown_name;
use crate::heads::{HeadScores, HeadSelection};
use crate::{Error, Model, Result};

use statistics::{Needs, Statistics};

/// What a score may look at.
#[derive(Debug, Clone, Copy)]
pub struct ScoreContext<'a> {
    /// The model as it is.
    pub model: &'a Model,
    /// Calibration sequences; scores that read weights only do without.
    pub data: Option<(&'a Dataset, &'a Range<usize>)>,
    /// Sequences per batch.
    pub batch_size: usize,
    /// Sequences to use at most.
    pub samples: usize,
    /// For random scores; differs from cycle to cycle.
    pub seed: u64,
    /// Whether the activations of one block at a time are in memory, for a second forward pass; the scores are the same.
    pub gradient_checkpointing: bool,
}

impl<'a> ScoreContext<'a> {
    fn calibration(&self) -> Result<(&'a Dataset, &'a Range<usize>)> {
        let (data, range) = self.data.ok_or_else(|| Error::invalid("this score needs calibration data"))?;
        if self.samples == 0 || self.batch_size == 0 || range.is_empty() {
            return Err(Error::invalid(
                "no sequences to score on: samples, batch_size and the calibration data need at least 1 each",
            ));
        }
        Ok((data, range))
    }
}

/// An importance score.
#[derive(Debug)]
pub struct Score {
    /// The name on the command line.
    pub name: &'static str,
    /// What the number is, with its source.
    pub summary: &'static str,
    /// Whether heads with high values are the ones to keep.
    pub higher_keeps: bool,
    needs: Needs,
    compute: fn(&ScoreContext<'_>, &Statistics) -> Result<HeadScores>,
}

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

impl Score {
    /// The score called `name`.
    pub fn named(name: &str) -> Result<&'static Self> {
        ALL.into_iter().find(|s| s.name == name).ok_or_else(|| unknown_name("score", name, &ALL.map(|s| s.name)))
    }

    /// Whether calibration data is read.
    pub fn needs_data(&self) -> bool {
        self.needs != Needs::Nothing
    }

    /// Whether the score is defined for this model and data: `task` wants labels.
    pub fn applies(&self, context: &ScoreContext<'_>) -> bool {
        self.name != task::SCORE.name || task::has_task(context).unwrap_or(false)
    }

    /// The score of every active head, in its own units. A value that is not finite is an error.
    pub fn compute(&self, context: &ScoreContext<'_>) -> Result<HeadScores> {
        let mut scores = compute_all(&[self], context)?;
        Ok(scores.swap_remove(0))
    }

    /// The same numbers such that higher means keep.
    pub fn as_keep(&self, scores: &HeadScores) -> HeadScores {
        if self.higher_keeps { scores.clone() } else { scores.negated() }
    }
}

/// Several scores from one pass over the calibration data (`loss_impact` makes passes of its own).
pub fn compute_all(scores: &[&Score], context: &ScoreContext<'_>) -> Result<Vec<HeadScores>> {
    let needs: Vec<Needs> = scores.iter().map(|s| s.needs).filter(|n| !matches!(n, Needs::Nothing | Needs::Ablation)).collect();
    let statistics = if needs.is_empty() { Statistics::default() } else { statistics::gather(context, &needs)? };
    let compute = |score: &&Score| {
        let scores = (score.compute)(context, &statistics)?;
        scores.check(&context.model.heads)?;
        Ok(scores)
    };
    scores.iter().map(compute).collect()
}

/// `fisher` or `task`, and per layer the `H × H` block of the Fisher information whose diagonal it is.
pub(crate) fn fisher_blocks(score: &Score, context: &ScoreContext<'_>) -> Result<(HeadScores, Vec<Vec<f64>>)> {
    let statistics = statistics::gather(context, &[score.needs])?;
    let scores = (score.compute)(context, &statistics)?;
    scores.check(&context.model.heads)?;
    Ok((scores, statistics.blocks))
}

/// What the loss rises by without each head of `selection` alone, layer by layer in its order, in nats per target.
pub(crate) fn ablate(context: &ScoreContext<'_>, selection: &HeadSelection) -> Result<Vec<(usize, Vec<f64>)>> {
    loss_impact::of(context, selection)
}

/// Means over the calibration sequences of the gates' gradients and of their squares, at the gates as they are.
pub(crate) fn gate_gradients(context: &ScoreContext<'_>) -> Result<(HeadScores, HeadScores)> {
    let statistics = statistics::gather(context, &[Needs::Slopes])?;
    Ok((statistics.signed, statistics.squared))
}
