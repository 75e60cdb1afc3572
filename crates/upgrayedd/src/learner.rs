//! A model and its optimiser, which change shape together, and a step of learning in two halves.

use upgrayedd_nn::ops::{self, Number};
use upgrayedd_nn::optim::{AdamW, AdamWConfig, clip_factor};
use upgrayedd_nn::{Gradients, ParamId, Tape, Tensor};

use crate::model::{Batch, Distill, Hooks};
use crate::reduce::{self, Reduce};
use crate::units::{Scores, Selection};
use crate::weights::Kind;
use crate::{Error, Model, Result, surgery};

/// A model that learns.
///
/// ```
/// use upgrayedd::builtin;
/// use upgrayedd::data::{DataOptions, Dataset, Pass};
/// use upgrayedd::learner::{Learner, Update};
/// use upgrayedd::nn::Gradients;
/// use upgrayedd::reduce::Alone;
///
/// let model = builtin::model()?;
/// let options = DataOptions { sequence_length: 32, ..DataOptions::default() };
/// let data = Dataset::from_documents(builtin::stories(1, 10), &model, &model.tokenizer()?, &options)?;
/// let mut learner = Learner::new(model, 0.01);
/// learner.model.params_mut().set_trainable(true);
/// learner.model.params_mut().widen();
/// let mut gradients = Gradients::for_params(learner.model.params());
/// let batches = [data.batch(&[0, 1], Pass::Train(0))];
/// let first = learner.step(&mut gradients, &batches, None, Update::at(1e-3), &Alone)?;
/// let second = learner.step(&mut gradients, &batches, None, Update::at(1e-3), &Alone)?;
/// assert!(second.loss < first.loss);
/// # Ok::<(), upgrayedd::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Learner {
    /// The model.
    pub model: Model,
    /// What its optimiser remembers.
    pub optim: AdamW,
}

/// How one optimiser step is made.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub rate: f64,
    /// Global gradient norm at most.
    pub max_norm: f64,
    /// Whether blocks are run again in the backward pass instead of keeping what is inside them.
    pub gradient_checkpointing: bool,
}

impl Update {
    /// At this rate, with gradients clipped to a norm of 1.
    pub fn at(rate: f64) -> Self {
        Self { rate, max_norm: 1.0, gradient_checkpointing: false }
    }
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Mean loss over its targets; with a teacher, the mixed one.
    pub loss: f64,
    /// Targets that counted.
    pub targets: u64,
    /// Global gradient norm before clipping.
    pub norm: f64,
}

impl Learner {
    /// With an optimiser that remembers nothing, and knows which rows and columns of which weights are units.
    pub fn new(model: Model, weight_decay: f64) -> Self {
        let config = AdamWConfig { weight_decay, ..AdamWConfig::default() };
        let optim = AdamW::new(config, model.params(), |id| {
            let weight = model.weight(id);
            (weight.lanes(), !weight.role.part.is_norm() && weight.role.kind == Kind::Weight)
        });
        Self { model, optim }
    }

    /// Takes units out ([`surgery::remove`]).
    ///
    /// # Errors
    /// Returns what [`surgery::remove`] returns; nothing changes then.
    pub fn remove(&mut self, selection: &Selection, cycle: usize, scores: Option<&Scores>) -> Result<()> {
        surgery::remove(&mut self.model, Some(&mut self.optim), selection, cycle, scores)
    }

    /// Puts archived units back as they were ([`surgery::restore`]).
    ///
    /// # Errors
    /// Returns what [`surgery::restore`] returns; nothing changes then.
    pub fn restore(&mut self, selection: &Selection, lr_scale: f32) -> Result<()> {
        surgery::restore(&mut self.model, Some(&mut self.optim), selection, lr_scale)
    }

    /// Makes every row and column learn at the same rate again.
    pub fn reset_learning_rates(&mut self) {
        self.optim.states.iter_mut().for_each(|s| s.lr_scale.fill(1.0));
    }

    /// Forward, backward and update over micro-batches, shared with the other processes of `reduce`.
    ///
    /// # Errors
    /// Returns [`Error::NotFinite`] if the loss or the gradients are not finite, [`Error::Interrupted`] if
    /// the work is stopped before the update, and what `reduce` returns. Model and optimiser stay as they
    /// were then.
    pub fn step(
        &mut self,
        grads: &mut Gradients,
        batches: &[Batch],
        distill: Option<&Distill<'_>>,
        update: Update,
        reduce: &dyn Reduce,
    ) -> Result<Step> {
        let mut targets = [batches.iter().map(Batch::counted).sum::<u64>() as f64];
        reduce.sum(&mut targets)?;
        let count = targets[0].max(1.0);
        let loss =
            self.accumulate(grads, batches, 1.0 / count as f32, distill, update.gradient_checkpointing)?;
        // What has a gradient in one process has one in all.
        let mut arrived: Vec<f64> =
            self.model.params().ids().map(|id| f64::from(u8::from(grads.get(id).is_some()))).collect();
        reduce.sum(&mut arrived)?;
        for (id, _) in self.model.params().ids().zip(arrived).filter(|(_, arrived)| *arrived > 0.0) {
            let device = self.model.device();
            reduce::sum_tensor(reduce, device, grads.get_or_zero(device, self.model.params(), id))?;
        }
        // The one place where a step waits for the device.
        let device = self.model.device();
        let [sum, squares] = device.read([&loss, &grads.sum_of_squares(device)])?;
        let mut sum = [sum];
        reduce.sum(&mut sum)?;
        let step = Step { loss: sum[0] / count, targets: targets[0] as u64, norm: squares.sqrt() };
        if !step.loss.is_finite() || !step.norm.is_finite() {
            let Step { loss, norm, .. } = step;
            let origin = origin_of_non_finite(&self.model, grads, batches)?;
            return Err(Error::NotFinite(format!(
                "the training loss is {loss} and the gradient norm {norm}; first not finite: {origin}: \
                 lower learning_rate or look for damaged data"
            )));
        }
        self.apply(grads, step.norm, update)?;
        Ok(step)
    }

    /// The first half of a step: leaves the gradients of the batches' loss, each target's times `weight`, in
    /// `grads` and returns the unweighted sum of the losses, which is not read yet.
    ///
    /// # Errors
    /// Returns [`Error::Interrupted`] if the work is stopped.
    pub fn accumulate(
        &self,
        grads: &mut Gradients,
        batches: &[Batch],
        weight: f32,
        distill: Option<&Distill<'_>>,
        gradient_checkpointing: bool,
    ) -> Result<Number> {
        let model = &self.model;
        grads.clear();
        let mut sum = Number::default();
        for batch in batches.iter().filter(|batch| batch.batch > 0) {
            let mut tape =
                Tape::recording(model.device(), model.params(), grads).with_segments(gradient_checkpointing);
            let loss = match distill {
                Some(distill) => model.distillation_loss(&mut tape, batch, weight, distill)?,
                None => model.loss(&mut tape, batch, weight, &mut Hooks::default())?,
            };
            sum = ops::combine(model.device(), &[(1.0, &sum), (1.0, &loss.sum)]);
            tape.backward(loss.seeds)?;
        }
        Ok(sum)
    }

    /// The second half: changes the weights by gradients of this global norm. Never cut in two.
    ///
    /// # Errors
    /// Returns [`Error::DeviceFailed`] if a device has no memory for the optimiser; nothing has changed then.
    pub fn apply(&mut self, grads: &Gradients, norm: f64, update: Update) -> Result<()> {
        let Self { model, optim } = self;
        let device = model.device();
        let factor = clip_factor(norm, update.max_norm);
        Ok(optim.step(device, model.params_mut(), grads, update.rate, factor)?)
    }
}

/// Where numbers that are not finite came from: the lowest layer whose output has them, else the highest
/// whose gradients have.
fn origin_of_non_finite(model: &Model, grads: &Gradients, batches: &[Batch]) -> Result<String> {
    let finite = |t: &Tensor| t.to_host().data().iter().all(|v| v.is_finite());
    if let Some(id) = model.params().ids().find(|id| !finite(model.params().get(*id))) {
        return Ok(format!("the weight {}", model.params().name(id)));
    }
    for batch in batches.iter().filter(|batch| batch.batch > 0) {
        let mut streams = Vec::new();
        let mut tape = Tape::inference(model.device(), model.params());
        let hidden =
            model.hidden(&mut tape, batch, &mut Hooks { inputs: Some(&mut streams), ..Hooks::default() })?;
        streams.push(hidden.tensor().clone());
        match streams.iter().position(|stream| !finite(stream)) {
            Some(0) => return Ok("the embeddings".to_owned()),
            Some(layer) => return Ok(format!("the output of {}", model.layer_name(layer - 1))),
            None => {}
        }
    }
    let broken = |id: &ParamId| grads.get(*id).is_some_and(|g| !finite(g));
    match model.params().ids().filter(broken).last() {
        Some(id) => Ok(format!("the gradient of {}", model.params().name(id))),
        None => Ok("the loss alone".to_owned()),
    }
}
