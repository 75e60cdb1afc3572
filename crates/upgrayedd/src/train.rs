//! Learning: epochs over the training sequences with the model's own objective.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::optim::{Decay, Schedule};
use upgrayedd_nn::{Gradients, trim_buffers};

use crate::data::BatchSource;
use crate::learner::{Learner, Step, Update};
use crate::model::{Batch, Distill};
use crate::named_enum;
use crate::reduce::{Reduce, check_alike, own_rows};
use crate::units::{LayerSite, Selection};
use crate::{Error, Model, Result, surgery};

named_enum! {
    /// How the learning rate moves within a cycle after the warm-up.
    LrSchedule, "learning-rate schedule" {
        /// Down to zero in a straight line.
        #[default]
        Linear = "linear",
        /// Down to zero as half a cosine.
        Cosine = "cosine",
        /// Stays at its peak.
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

/// Optimiser steps that `options` come to with so many batches in an epoch.
///
/// # Panics
/// If `gradient_accumulation` is 0.
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

/// Learns for one cycle, from `place` on, which is kept up to date: what is there after a step is enough to
/// go on from.
///
/// The processes of `reduce` share the sequences of each batch. `growing` are the units that are to be
/// faded in. Returns after the last step or when `on_step` breaks,
/// gates folded.
///
/// # Errors
/// Returns what [`Learner::step`], `data` and `on_step` return, [`Error::Data`] if an epoch has no batches,
/// and [`Error::Unsupported`] if `growing` names units that have no gates.
///
/// # Panics
/// If `gradient_accumulation` is 0, or `growing` names a layer that the model does not have.
pub fn learn(
    learner: &mut Learner,
    data: &mut dyn BatchSource,
    options: &TrainOptions,
    (place, growing): (&mut Place, &Selection),
    distill: Option<&Distill<'_>>,
    reduce: &dyn Reduce,
    mut on_step: impl FnMut(&Learner, &Place, StepReport) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let total = steps(options, data.batches_per_epoch());
    let decay = match options.lr_schedule {
        LrSchedule::Constant => Decay::Constant,
        LrSchedule::Linear => Decay::Linear,
        LrSchedule::Cosine => Decay::Cosine,
    };
    let schedule =
        Schedule { peak: options.learning_rate, warmup: options.warmup_steps.min(total / 2), total, decay };
    let mut grads = Gradients::for_params(learner.model.params());
    learner.model.params_mut().set_trainable(true);
    if place.step < total {
        learner.model.params_mut().widen();
    }
    let mut one_step = |place: &mut Place, batches: &[Batch], taken: u64| {
        set_fading(&mut learner.model, options, growing, total, place.step)?;
        let (rate, max_norm) = (schedule.rate(place.step), options.max_gradient_norm);
        let update = Update { rate, max_norm, gradient_checkpointing: options.gradient_checkpointing };
        let step = place.step + 1;
        let made =
            learner.step(&mut grads, batches, distill, update, reduce).map_err(|error| match error {
                Error::NotFinite(message) => Error::NotFinite(format!("step {step}: {message}")),
                error => error,
            })?;
        let Step { loss, targets: tokens, norm } = made;
        (place.step, place.batch) = (step, taken);
        let report =
            StepReport { step, steps: total, loss, learning_rate: rate, gradient_norm: norm, tokens };
        place.stopped = on_step(learner, place, report)?.is_break();
        Ok(if place.stopped || step == total { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    // This process's part of the batches of a step.
    let mut group: Vec<Batch> = Vec::new();
    while place.step < total && !place.stopped {
        let (done, mut taken) = (place.batch, 0);
        data.epoch(place.epoch, &mut |batch| {
            taken += 1;
            if taken <= done {
                return Ok(ControlFlow::Continue(()));
            }
            group.push(own_part(reduce, batch)?);
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
            return Err(Error::data(format!(
                "epoch {} of the training data has no batches",
                place.epoch + 1
            )));
        }
        (place.epoch, place.batch) = (place.epoch + 1, 0);
    }
    if place.batch > 0 {
        // Continued where the last step had been made.
        (place.epoch, place.batch) = (place.epoch + 1, 0);
    }
    // Wherever the cycle was stopped: what is folded half-open would be half gone for good.
    set_fading(&mut learner.model, options, growing, total, total)?;
    fold_all_gates(&mut learner.model);
    trim_buffers();
    Ok(())
}

/// This process's part of a batch, which all have to have.
fn own_part(reduce: &dyn Reduce, batch: Batch) -> Result<Batch> {
    if reduce.size() == 1 {
        return Ok(batch);
    }
    let Batch { tokens, mask, types, targets, values, .. } = &batch;
    check_alike(reduce, &format!("{tokens:?}{mask:?}{types:?}{targets:?}{values:?}"))?;
    Ok(batch.rows(own_rows(reduce, batch.batch)))
}

/// Makes the gates part of the weights.
pub(crate) fn fold_all_gates(model: &mut Model) {
    for layer in 0..model.spec().num_layers() {
        surgery::fold_gates(model, LayerSite::heads(layer));
        surgery::fold_gates(model, LayerSite::channels(layer));
    }
}

/// Steps of `total` over which heads are faded in.
pub(crate) fn fading_steps(options: &TrainOptions, total: u64) -> u64 {
    (options.gate_warmup * total as f64).ceil() as u64
}

/// Sets the gates of the units that are to be faded in as they are after `step` of `total` steps.
pub(crate) fn set_fading(
    model: &mut Model,
    options: &TrainOptions,
    growing: &Selection,
    total: u64,
    step: u64,
) -> Result<()> {
    let fade = fading_steps(options, total);
    let gate = if fade == 0 { 1.0 } else { (step as f32 / fade as f32).min(1.0) };
    for (&place, units) in growing {
        let present = model.units().layers()[place.layer].units(place.site);
        let gates = present.iter().map(|unit| if units.contains(unit) { gate } else { 1.0 }).collect();
        model.set_gates(place, gates)?;
    }
    Ok(())
}
