//! Sums over the processes that share the work of a run. Every sum that data makes goes through here:
//! gradients, losses, scores, moments.
//!
//! All processes have the same model, data and options. Each takes its part of every batch, adds what the others have
//! found and so comes to the same decisions; nothing else is exchanged.

use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;
use upgrayedd_nn::{Device, Tensor};

use crate::{Error, Result};

/// A process among those that share the work. All processes call the same methods in the same order with values of the
/// same shapes, and get the same bits; one that fails ends the others' waiting, too.
pub trait Reduce: std::fmt::Debug + Send + Sync {
    /// Which of them this one is, from 0.
    fn rank(&self) -> usize {
        0
    }

    /// How many there are.
    fn size(&self) -> usize {
        1
    }

    /// Puts the sums over all processes in the place of this one's values.
    ///
    /// # Errors
    /// Returns an error of the implementation's own if the sums cannot be made. [`Alone`] has none.
    fn sum(&self, values: &mut [f64]) -> Result<()>;

    /// The same for single-precision values.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn sum_f32(&self, values: &mut [f32]) -> Result<()>;

    /// What all processes have, process by process, in the place of this one's values.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn gather(&self, values: &mut Vec<f64>) -> Result<()>;
}

/// One process: there is nothing to add.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Reduce for Alone {
    fn sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn sum_f32(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn gather(&self, _: &mut Vec<f64>) -> Result<()> {
        Ok(())
    }
}

/// [`Reduce::sum_f32`] of a tensor, wherever it is.
pub(crate) fn sum_tensor(reduce: &dyn Reduce, device: Device, tensor: &mut Tensor) -> Result<()> {
    if reduce.size() == 1 {
        return Ok(());
    }
    let mut sum = tensor.to_host();
    reduce.sum_f32(sum.data_mut())?;
    *tensor = device.upload(sum);
    Ok(())
}

/// [`Reduce::sum`] of counts.
pub(crate) fn sum_counts<const N: usize>(reduce: &dyn Reduce, counts: [&mut u64; N]) -> Result<()> {
    let mut values = counts.each_ref().map(|count| **count as f64);
    reduce.sum(&mut values)?;
    counts.into_iter().zip(values).for_each(|(count, value)| *count = value as u64);
    Ok(())
}

/// This process's part of the batches: every [`Reduce::size`]-th, from its rank on.
pub(crate) fn own<T>(reduce: &dyn Reduce, batches: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    batches.skip(reduce.rank()).step_by(reduce.size())
}

/// This process's part of the sequences of one batch.
pub(crate) fn own_rows(reduce: &dyn Reduce, batch: usize) -> Range<usize> {
    let bound = |rank: usize| batch * rank / reduce.size();
    bound(reduce.rank())..bound(reduce.rank() + 1)
}

/// What the first process makes, for all of them: of what another would find otherwise, like times.
pub(crate) fn of_first<T: Serialize + DeserializeOwned>(
    reduce: &dyn Reduce,
    make: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if reduce.size() == 1 {
        return make();
    }
    let malformed = |e: serde_json::Error| {
        Error::malformed(format!("cannot share what the first process has found: {e}"))
    };
    let made = if reduce.rank() == 0 { make().map(Some) } else { Ok(None) };
    let mut bytes = Vec::new();
    if let Some(made) = in_all(reduce, made)? {
        bytes.extend(serde_json::to_vec(&made).map_err(malformed)?.into_iter().map(f64::from));
    }
    reduce.gather(&mut bytes)?;
    let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).collect();
    serde_json::from_slice(&bytes).map_err(malformed)
}

/// What this process has come to, once all others have come to something too: what fails in one fails in all.
pub(crate) fn in_all<T>(reduce: &dyn Reduce, own: Result<T>) -> Result<T> {
    if reduce.size() == 1 {
        return own;
    }
    let mut failed = [f64::from(u8::from(own.is_err()))];
    match (reduce.sum(&mut failed), own) {
        (_, Err(error)) | (Err(error), _) => Err(error),
        (Ok(()), Ok(_)) if failed[0] > 0.0 => Err(Error::Caller("another process has failed".into())),
        (Ok(()), own) => own,
    }
}

/// Refuses processes that were not given the same: what they decide would differ. `what` is all that decides.
pub(crate) fn check_alike(reduce: &dyn Reduce, what: &str) -> Result<()> {
    if reduce.size() == 1 {
        return Ok(());
    }
    let hash = blake3::hash(what.as_bytes());
    let mut parts: Vec<f64> = hash.as_bytes()[..6].iter().map(|byte| f64::from(*byte)).collect();
    let length = parts.len();
    reduce.gather(&mut parts)?;
    let first = &parts[..length];
    match parts.chunks(length).position(|other| other != first) {
        None => Ok(()),
        Some(rank) => Err(Error::does_not_fit(format!(
            "process {rank} does not do what process 0 does: give all of them the same program, model, data, options and kind of processor"
        ))),
    }
}
