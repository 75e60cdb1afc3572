//! Sums over the processes that share the work of a run. Every sum that data makes goes through here:
//! gradients, losses, scores, moments.

use upgrayedd_nn::Tensor;

use crate::Result;

/// Adds what each process has found. All processes call the same methods in the same order with values of the
/// same shapes, and get the same bits; so each has a sequence at least of what is shared, and one that fails
/// ends the others' waiting, too.
pub trait Reduce: std::fmt::Debug + Sync {
    /// Puts the sums over all processes in the place of this one's values.
    ///
    /// # Errors
    /// Returns an error of the implementation's own if the sums cannot be made. [`Alone`] has none.
    fn sum(&self, values: &mut [f64]) -> Result<()>;
    /// The same for single-precision values.
    ///
    /// # Errors
    /// As [`Self::sum`].
    fn sum_tensor(&self, tensor: &mut Tensor) -> Result<()>;
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

    fn sum_tensor(&self, _: &mut Tensor) -> Result<()> {
        Ok(())
    }

    fn gather(&self, _: &mut Vec<f64>) -> Result<()> {
        Ok(())
    }
}

/// [`Reduce::sum`] of counts.
pub(crate) fn sum_counts<const N: usize>(reduce: &dyn Reduce, counts: [&mut u64; N]) -> Result<()> {
    let mut values = counts.each_ref().map(|count| **count as f64);
    reduce.sum(&mut values)?;
    counts.into_iter().zip(values).for_each(|(count, value)| *count = value as u64);
    Ok(())
}
