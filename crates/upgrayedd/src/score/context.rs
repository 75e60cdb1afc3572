//! What a score may look at.

use std::ops::Range;

use crate::data::Dataset;
use crate::reduce::{Alone, Reduce};
use crate::units::Sites;
use crate::{Error, Model, Result};

/// What a score may look at.
#[derive(Debug, Clone, Copy)]
pub struct ScoreContext<'a> {
    /// The model as it is.
    pub model: &'a Model,
    /// The kinds of units to be scored.
    pub units: Sites,
    /// Calibration sequences; scores that read weights only do without.
    pub data: Option<(&'a Dataset, &'a Range<usize>)>,
    /// Sequences per batch.
    pub batch_size: usize,
    /// Sequences to use at most.
    pub samples: usize,
    /// For random scores; differs from cycle to cycle.
    pub seed: u64,
    /// Whether the activations of one block at a time are in memory, for a second forward pass; the scores
    /// are the same.
    pub gradient_checkpointing: bool,
    /// Shares the batches with other processes.
    pub reduce: &'a dyn Reduce,
}

impl<'a> ScoreContext<'a> {
    /// Heads, on all of these sequences, four at a time, in this process alone.
    pub fn new(model: &'a Model, data: &'a Dataset, range: &'a Range<usize>) -> Self {
        let (batch_size, samples) = (4, range.len());
        Self {
            model,
            units: Sites::default(),
            data: Some((data, range)),
            batch_size,
            samples,
            seed: 0,
            gradient_checkpointing: false,
            reduce: &Alone,
        }
    }

    pub(super) fn calibration(&self) -> Result<(&'a Dataset, &'a Range<usize>)> {
        let (data, range) =
            self.data.ok_or_else(|| Error::does_not_fit("this score needs calibration data"))?;
        if range.end > data.len() {
            let have = data.len();
            return Err(Error::does_not_fit(format!(
                "sequences {range:?} are to be scored on: there are {have}"
            )));
        }
        if self.samples == 0 || self.batch_size == 0 || range.is_empty() {
            return Err(Error::data(
                "no sequences to score on: samples, batch_size and the calibration data need at least 1 each",
            ));
        }
        Ok((data, range))
    }
}
