//! Batches to learn from, epoch by epoch: those of a dataset in an order drawn from the seed, or whatever a
//! caller has.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Split};
use super::options::Pass;
use super::rows::Row;
use crate::model::Batch;
use crate::{Error, Result, rng};

/// Takes the batches of an epoch one after the other, until it breaks.
pub type TakeBatch<'a> = dyn FnMut(Batch) -> Result<ControlFlow<()>> + 'a;

/// Where training batches come from.
pub trait BatchSource: Send {
    /// Batches in an epoch; a cycle's length and learning-rate schedule follow from it.
    fn batches_per_epoch(&self) -> usize;
    /// Gives the batches of epoch `epoch` (from 0, over the whole run), in order, until `take` breaks.
    ///
    /// # Errors
    /// Returns what `take` returns, and errors of the source's own: those of a caller's code in
    /// [`Error::Caller`].
    fn epoch(&mut self, epoch: u64, take: &mut TakeBatch<'_>) -> Result<()>;
    /// Some of the sequences, where they can be had without disturbing the epochs: at most `count`, always
    /// the same.
    fn sample(&self, count: usize) -> Option<(&Dataset, Range<usize>)> {
        let _ = count;
        None
    }
}

/// Sequences of a dataset, in another order each epoch.
#[derive(Debug)]
pub struct DatasetBatches {
    /// What they are taken from.
    pub data: Arc<Dataset>,
    /// Which of its sequences.
    pub range: Range<usize>,
    /// Sequences per batch.
    pub batch_size: usize,
    /// Of the order.
    pub seed: u64,
}

impl BatchSource for DatasetBatches {
    fn batches_per_epoch(&self) -> usize {
        self.range.len().div_ceil(self.batch_size)
    }

    fn sample(&self, count: usize) -> Option<(&Dataset, Range<usize>)> {
        // The last ones, beside those set aside for scoring.
        Some((&self.data, self.range.end - count.min(self.range.len())..self.range.end))
    }

    fn epoch(&mut self, epoch: u64, take: &mut TakeBatch<'_>) -> Result<()> {
        let mut order =
            rng::permutation(&mut rng::stream(self.seed, &format!("epoch {epoch}")), self.range.len());
        order.iter_mut().for_each(|i| *i += self.range.start);
        for indices in order.chunks(self.batch_size) {
            if take(self.data.batch(indices, Pass::Train(epoch)))?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Some sequences of a dataset.
#[derive(Debug, Clone)]
pub struct Part {
    /// What they are taken from.
    pub data: Arc<Dataset>,
    /// Which of its sequences.
    pub range: Range<usize>,
}

/// The sequences that are not learned from. A run keeps them where its data may come in another order, or
/// masked in another way, when it is asked for again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetAside {
    /// Scored on.
    pub calibration: Vec<Row>,
    /// Measured on; none if there is data of its own for that.
    pub held_out: Vec<Row>,
}

/// What a run learns from, scores on and is measured on: three parts that never overlap.
pub struct RunData {
    /// Learned from.
    pub train: Box<dyn BatchSource>,
    /// Scored on.
    pub calibration: Part,
    /// Measured on.
    pub held_out: Part,
    /// The same as indices, for the record.
    pub split: Split,
    /// blake3 of the training data, or whatever else tells it from other data.
    pub hash: String,
    /// blake3 of the evaluation data, if it is data of its own.
    pub eval_hash: Option<String>,
    /// What the run's folder is to keep of it.
    pub set_aside: Option<SetAside>,
    /// What was passed over in it, a line each.
    pub notices: Vec<String>,
}

impl RunData {
    /// Splits `data`; measures on `eval` if there is any. At most `calibration` sequences are set aside for
    /// scoring.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if there are not enough sequences for one in each part, or two files have the
    /// same contents: some of it would be learned from and measured on.
    pub fn split(
        mut data: Dataset,
        eval: Option<Dataset>,
        calibration: usize,
        batch_size: usize,
        seed: u64,
    ) -> Result<Self> {
        check_disjoint(&data, eval.as_ref())?;
        let split = data.split(calibration, eval.as_ref())?;
        data.spread_over(split.calibration.end);
        let data = Arc::new(data);
        let eval_hash = eval.as_ref().map(|e| e.hash.clone());
        let mut notices = data.notices.clone();
        notices.extend(eval.iter().flat_map(|e| &e.notices).filter(|n| !data.notices.contains(n)).cloned());
        let measured = eval.map_or_else(|| data.clone(), Arc::new);
        Ok(Self {
            train: Box::new(DatasetBatches {
                data: data.clone(),
                range: split.train.clone(),
                batch_size,
                seed,
            }),
            calibration: Part { data: data.clone(), range: split.calibration.clone() },
            held_out: Part { data: measured, range: split.held_out.clone() },
            hash: data.hash.clone(),
            eval_hash,
            split,
            set_aside: None,
            notices,
        })
    }
}

/// The same file to learn from and to be measured on would make the result look better than it is.
fn check_disjoint(data: &Dataset, eval: Option<&Dataset>) -> Result<()> {
    let repeated = data.file_hashes.iter().enumerate().any(|(i, hash)| data.file_hashes[..i].contains(hash));
    if repeated {
        return Err(Error::data(
            "two files to learn from have the same contents: name each text once, or some of it would be learned from and measured on",
        ));
    }
    match eval.and_then(|eval| eval.file_hashes.iter().find(|hash| data.file_hashes.contains(hash))) {
        Some(_) => Err(Error::data(
            "the file to measure on has the same contents as one to learn from: measure on text that is not learned from, or leave eval_data out",
        )),
        None => Ok(()),
    }
}
