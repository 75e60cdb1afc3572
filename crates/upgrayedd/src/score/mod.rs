//! Importance scores: a number per head. One file a score.

mod entropy;
mod fisher;
mod gates;
mod gradient;
pub(crate) mod magnitude;
mod random;
mod taylor;

use std::ops::Range;

use crate::data::Dataset;
use crate::error::unknown_name;
use crate::heads::HeadScores;
use crate::{Model, Result};

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
    /// Whether calibration data is read.
    pub needs_data: bool,
    compute: fn(&ScoreContext<'_>) -> Result<HeadScores>,
}

/// Every score, in the order in which messages and documents name them.
pub const ALL: [&Score; 6] =
    [&random::SCORE, &entropy::SCORE, &magnitude::SCORE, &gradient::SCORE, &taylor::SCORE, &fisher::SCORE];

impl Score {
    /// The score called `name`.
    pub fn named(name: &str) -> Result<&'static Self> {
        ALL.into_iter().find(|s| s.name == name).ok_or_else(|| unknown_name("score", name, &ALL.map(|s| s.name)))
    }

    /// The score of every active head, in its own units. A value that is not finite is an error.
    pub fn compute(&self, context: &ScoreContext<'_>) -> Result<HeadScores> {
        let scores = (self.compute)(context)?;
        scores.check(&context.model.heads)?;
        Ok(scores)
    }
}
