//! `--memory` of `score` and `evaluate`.

use upgrayedd::files::Spill;
use upgrayedd::memory::{Work, fitting_batch};
use upgrayedd::{Model, Result};

use crate::Shared;
use crate::args::{MemoryArgs, ModelArgs};

impl MemoryArgs {
    /// The model, its weights in files if that is asked for.
    pub(crate) fn load(&self, args: &ModelArgs, shared: Option<&Shared>) -> Result<Model> {
        let device = if self.memory.is_some() && args.device == "auto" { "cpu" } else { &args.device };
        let mut model = crate::load(args, device, shared)?;
        self.spill(&mut model)?;
        Ok(model)
    }

    /// Keeps a model's weights in files from now on, if that is asked for.
    pub(crate) fn spill(&self, model: &mut Model) -> Result<()> {
        match self.memory {
            Some(_) => model.set_spill(Spill::to(&std::env::temp_dir())),
            None => Ok(()),
        }
    }

    /// How many sequences there may be at once.
    pub(crate) fn fit(&self, model: &Model, work: Work) -> Result<usize> {
        let Some(memory) = self.memory else { return Ok(work.batch) };
        let batch = fitting_batch(model, work, memory.bytes())?;
        if batch < work.batch {
            crate::note(&[format!(
                "batches of {batch} sequences, not {}: --memory {memory} holds no more",
                work.batch
            )]);
        }
        Ok(batch)
    }
}
