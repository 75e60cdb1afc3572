//! Learning: epochs over the training sequences with the model's own objective.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::optim::{AdamW, AdamWConfig, Decay, Schedule, clip_factor};
use upgrayedd_nn::{Gradients, Tape, Tensor, trim_buffers};

use crate::data::BatchSource;
use crate::model::{Batch, Distill, Hooks};
use crate::named_enum;
use crate::units::Selection;
use crate::weights::Kind;
use crate::{Error, Model, Result, surgery};

named_enum! {
    /// How the learning rate moves within a cycle after the warm-up.
    LrSchedule, "learning-rate schedule" {
        /// Down to zero in a straight line.
        #[default]
        Linear = "linear",
        /// Down to zero as half a cosine.
        Cosine = "cosine",
        /// Not at all.
        Constant = "constant",
    }
}

/// How a cycle learns.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct TrainOptions {
    /// Passes over the training data.
    pub epochs: usize,
    /// Optimiser steps at most.
    pub max_steps: Option<u64>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Backward passes per optimiser step.
    pub gradient_accumulation: usize,
    /// After the warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Global gradient norm at most.
    pub max_gradient_norm: f64,
    /// Share of the cycle's steps over which regrown heads are faded in.
    pub gate_warmup: f64,
    /// Whether blocks are run again in the backward pass instead of keeping what is inside them.
    pub gradient_checkpointing: bool,
}

/// How one optimiser step is made.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Learning rate.
    pub rate: f64,
    /// Global gradient norm at most.
    pub max_norm: f64,
    /// As in [`TrainOptions`].
    pub gradient_checkpointing: bool,
}

/// One optimiser step, as reported.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// In all.
    pub steps: u64,
    /// Mean loss over the step's targets; with a parent to learn from, the mixed one.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Before clipping.
    pub gradient_norm: f64,
    /// Targets of the step.
    pub tokens: u64,
}

impl Update {
    /// At this rate, with gradients clipped to a norm of 1.
    pub fn at(rate: f64) -> Self {
        Self { rate, max_norm: 1.0, gradient_checkpointing: false }
    }
}

/// A fresh optimiser that knows which slices of which weights are heads.
pub fn new_optimizer(model: &Model, weight_decay: f64) -> AdamW {
    let config = AdamWConfig { weight_decay, ..AdamWConfig::default() };
    AdamW::new(config, &model.params, |id| {
        let weight = model.weight(id);
        (weight.lanes(), !weight.role.part.is_norm() && weight.role.kind == Kind::Weight)
    })
}

/// Makes every slice learn at the same rate again.
pub fn reset_learning_rates(optim: &mut AdamW) {
    optim.states.iter_mut().for_each(|s| s.lr_scale.fill(1.0));
}

/// Optimiser steps that `options` come to with so many batches in an epoch.
pub fn steps(options: &TrainOptions, batches_per_epoch: usize) -> u64 {
    let per_epoch = batches_per_epoch.div_ceil(options.gradient_accumulation) as u64;
    per_epoch.saturating_mul(options.epochs as u64).min(options.max_steps.unwrap_or(u64::MAX))
}

/// How far learning has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Epochs completed over the whole run; they decide the order of the data.
    pub epoch: u64,
    /// Batches of this epoch that have been learned from.
    pub batch: u64,
    /// Optimiser steps made in this cycle.
    pub step: u64,
    /// Whether the cycle ends here, whatever its steps.
    pub stopped: bool,
}

/// Learns for one cycle, from `place` on, which is kept up to date: what is there after a step is enough to go on from.
///
/// `growing` are the units that are to be faded in. Returns after the last step or when `on_step` breaks, gates folded.
pub fn learn(
    model: &mut Model,
    optim: &mut AdamW,
    data: &mut dyn BatchSource,
    options: &TrainOptions,
    (place, growing): (&mut Place, &Selection),
    distill: Option<&Distill<'_>>,
    mut on_step: impl FnMut(&Model, &AdamW, &Place, StepReport) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let total = steps(options, data.batches_per_epoch());
    let decay = match options.lr_schedule {
        LrSchedule::Constant => Decay::Constant,
        LrSchedule::Linear => Decay::Linear,
        LrSchedule::Cosine => Decay::Cosine,
    };
    let schedule = Schedule { peak: options.learning_rate, warmup: options.warmup_steps.min(total / 2), total, decay };
    let mut grads = Gradients::for_params(&model.params);
    model.params.set_trainable(true);
    let mut one_step = |place: &mut Place, batches: &[Batch], taken: u64| {
        set_fading(model, options, growing, total, place.step)?;
        let (rate, max_norm) = (schedule.rate(place.step), options.max_gradient_norm);
        let update = Update { rate, max_norm, gradient_checkpointing: options.gradient_checkpointing };
        let step = place.step + 1;
        let (loss, tokens, norm) =
            train_step(model, optim, &mut grads, batches, distill, update).map_err(|error| match error {
                Error::NotFinite(message) => Error::NotFinite(format!("step {step}: {message}")),
                error => error,
            })?;
        (place.step, place.batch) = (step, taken);
        let report = StepReport { step, steps: total, loss, learning_rate: rate, gradient_norm: norm, tokens };
        place.stopped = on_step(model, optim, place, report)?.is_break();
        Ok(if place.stopped || step == total { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    let mut group: Vec<Batch> = Vec::new();
    while place.step < total && !place.stopped {
        let (done, mut taken) = (place.batch, 0);
        data.epoch(place.epoch, &mut |batch| {
            taken += 1;
            if taken <= done {
                return Ok(ControlFlow::Continue(()));
            }
            group.push(batch);
            if group.len() < options.gradient_accumulation {
                return Ok(ControlFlow::Continue(()));
            }
            one_step(place, &std::mem::take(&mut group), taken)
        })?;
        let rest = std::mem::take(&mut group);
        if !rest.is_empty() {
            let _ = one_step(place, &rest, taken)?;
        }
        if taken == 0 {
            return Err(Error::invalid(format!("epoch {} of the training data has no batches", place.epoch + 1)));
        }
        (place.epoch, place.batch) = (place.epoch + 1, 0);
    }
    if place.batch > 0 {
        // Continued where the last step had been made.
        (place.epoch, place.batch) = (place.epoch + 1, 0);
    }
    // Wherever the cycle was stopped: what is folded half-open would be half gone for good.
    set_fading(model, options, growing, total, total)?;
    fold_all_gates(model);
    trim_buffers();
    Ok(())
}

/// Makes the gates part of the weights.
pub(crate) fn fold_all_gates(model: &mut Model) {
    (0..model.spec.num_layers()).for_each(|layer| surgery::fold_gates(model, layer));
    model.touch();
}

/// Steps of `total` over which heads are faded in.
pub(crate) fn fading_steps(options: &TrainOptions, total: u64) -> u64 {
    (options.gate_warmup * total as f64).ceil() as u64
}

/// Sets the gates of the units that are to be faded in as they are after `step` of `total` steps.
pub(crate) fn set_fading(model: &mut Model, options: &TrainOptions, growing: &Selection, total: u64, step: u64) -> Result<()> {
    let fade = fading_steps(options, total);
    let gate = if fade == 0 { 1.0 } else { (step as f32 / fade as f32).min(1.0) };
    for (&place, units) in growing {
        let there = model.units.layers()[place.layer].units(place.site);
        let gates = there.iter().map(|unit| if units.contains(unit) { gate } else { 1.0 }).collect();
        model.set_gates(place, gates)?;
    }
    Ok(())
}

/// Forward, backward and update over micro-batches; returns mean loss, targets and the gradient norm before clipping.
pub fn train_step(
    model: &mut Model,
    optim: &mut AdamW,
    grads: &mut Gradients,
    batches: &[Batch],
    distill: Option<&Distill<'_>>,
    update: Update,
) -> Result<(f64, u64, f64)> {
    let tokens: u64 = batches.iter().map(Batch::counted).sum();
    let weight = 1.0 / tokens.max(1) as f32;
    grads.clear();
    let mut sum = 0.0;
    for batch in batches {
        let mut tape = Tape::recording(model.device, &model.params, grads).with_segments(update.gradient_checkpointing);
        let loss = match distill {
            Some(distill) => model.distillation_loss(&mut tape, batch, weight, distill)?,
            None => model.loss(&mut tape, batch, weight, &mut Hooks::default())?,
        };
        sum += loss.sum;
        tape.backward(loss.seeds)?;
    }
    let loss = sum / tokens.max(1) as f64;
    let norm = grads.norm();
    if !loss.is_finite() || !norm.is_finite() {
        let origin = origin_of_non_finite(model, grads, batches)?;
        return Err(Error::NotFinite(format!(
            "the training loss is {loss} and the gradient norm {norm}; first not finite: {origin}: \
             lower --learning-rate or look for damaged data"
        )));
    }
    optim.step(model.device, &mut model.params, grads, update.rate, clip_factor(norm, update.max_norm));
    Ok((loss, tokens, norm))
}

/// Where numbers that are not finite came from: the lowest layer whose output has them, else the highest whose gradients have.
fn origin_of_non_finite(model: &Model, grads: &Gradients, batches: &[Batch]) -> Result<String> {
    let finite = |t: &Tensor| t.data().iter().all(|v| v.is_finite());
    if let Some(id) = model.params.ids().find(|id| !finite(model.params.get(*id))) {
        return Ok(format!("the weight {}", model.params.name(id)));
    }
    for batch in batches {
        let mut streams = Vec::new();
        let mut tape = Tape::inference(model.device, &model.params);
        let hidden = model.hidden(&mut tape, batch, &mut Hooks { inputs: Some(&mut streams), ..Hooks::default() })?;
        streams.push(hidden.tensor().clone());
        match streams.iter().position(|stream| !finite(stream)) {
            Some(0) => return Ok("the embeddings".to_owned()),
            Some(layer) => return Ok(format!("the output of {}", model.layer_name(layer - 1))),
            None => {}
        }
    }
    let broken = |id: &upgrayedd_nn::ParamId| grads.get(*id).is_some_and(|g| !finite(g));
    match model.params.ids().filter(broken).last() {
        Some(id) => Ok(format!("the gradient of {}", model.params.name(id))),
        None => Ok("the loss alone".to_owned()),
    }
}
