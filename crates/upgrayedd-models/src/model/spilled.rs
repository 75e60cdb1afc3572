//! Weights that do not stay in memory: those of the layer at work are read from files, and what is changed goes to others.

use upgrayedd_nn::{Device, ParamId, Tensor};

use super::state::Model;
use crate::files::Spill;
use crate::units::Unit;
use crate::{Error, Result};

impl Model {
    /// Where weights go that are not to stay in memory, if they are not.
    pub fn spill(&self) -> Option<&Spill> {
        self.spill.as_ref()
    }

    /// Keeps no weights in memory from now on but those of the layer that is at work: they are read from their files
    /// again and again, and what is changed of them goes to `spill`. Results are the same, to the bit.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for a model on another device than the CPU, [`Error::Unsupported`] elsewhere than
    /// on Unix, and [`Error::Io`] if the system cannot write there.
    pub fn set_spill(&mut self, spill: Spill) -> Result<()> {
        if !cfg!(unix) {
            return Err(Error::unsupported("weights are kept out of memory on Unix only"));
        }
        if self.device != Device::cpu() {
            return Err(Error::does_not_fit(
                "memory goes with device cpu alone: a GPU has all weights in its own memory",
            ));
        }
        self.spill = Some(spill);
        self.put_away(&self.params.ids().collect::<Vec<_>>())?;
        let units: Vec<Unit> = self.archive.units.keys().copied().collect();
        self.put_away_archived(&units)
    }

    /// Takes these weights out of memory, if they are not to stay there.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the system cannot write where they go; they stay in memory then.
    pub fn put_away(&mut self, ids: &[ParamId]) -> Result<()> {
        let Some(spill) = &self.spill else { return Ok(()) };
        for &id in ids {
            let tensor = self.params.get(id);
            tensor.let_go();
            // Vectors are small, and kernels read them where they are.
            if tensor.shape().len() > 1 && !tensor.is_in_file() {
                let kept = spill.keep(tensor)?;
                self.params.set(id, kept);
            }
        }
        Ok(())
    }

    /// A tensor that lasts, in a file if such are not to stay in memory ([`Tensor::in_memory`] reads it).
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the system cannot write there.
    pub fn kept(&self, tensor: Tensor) -> Result<Tensor> {
        match &self.spill {
            Some(spill) if !tensor.is_in_file() => spill.keep(&tensor),
            _ => Ok(tensor),
        }
    }

    /// Takes the slices of archived units out of memory, if they are not to stay there, all into one file.
    pub(crate) fn put_away_archived(&mut self, units: &[Unit]) -> Result<()> {
        let Some(spill) = &self.spill else { return Ok(()) };
        let of =
            |unit: &Unit| self.archive.units.get(unit).into_iter().flat_map(|a| a.slices.values().cloned());
        let mut kept = spill.keep_all(&units.iter().flat_map(of).collect::<Vec<_>>())?.into_iter();
        for unit in units {
            let slices = self.archive.units.get_mut(unit).into_iter().flat_map(|a| a.slices.values_mut());
            slices.zip(&mut kept).for_each(|(slice, kept)| *slice = kept);
        }
        Ok(())
    }

    /// Lets go of a layer's weights, if they are not to stay in memory.
    pub fn let_go(&self, layer: usize) {
        let own = |id: &ParamId| self.weight(*id).layer == Some(layer);
        if self.spill.is_some() {
            self.params.ids().filter(own).for_each(|id| self.params.get(id).let_go());
        }
    }
}
