//! AdamW with parameter groups, learning-rate schedules and gradient clipping.

use crate::device::Device;
use crate::kernels::AdamWStep;
pub use crate::kernels::Lanes;
use crate::{Gradients, ParamId, ParamSet, Result, Tensor};

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// It stays.
    Constant,
    /// Straight down to zero at the last step.
    Linear,
    /// Half a cosine down to zero (Loshchilov & Hutter 2017).
    Cosine,
}

/// A learning-rate schedule: linear warm-up, then a [`Decay`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Rate at the end of the warm-up.
    pub peak: f64,
    /// Steps over which the rate climbs from `peak / warmup`.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
    /// What happens after the warm-up.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / span).min(1.0);
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear => self.peak * (1.0 - progress),
            Decay::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, for parameters that take it.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser's memory of one parameter. Lanes (head slices) carry their own age and learning rate.
#[derive(Debug, Clone)]
pub struct ParamState {
    /// First moment, shaped as the parameter; absent before the first step.
    pub m: Option<Tensor>,
    /// Second moment.
    pub v: Option<Tensor>,
    /// What a lane is.
    pub lanes: Lanes,
    /// Per lane: updates made so far.
    pub steps: Vec<u64>,
    /// Per lane: multiplies the learning rate.
    pub lr_scale: Vec<f32>,
    /// Whether weight decay applies (not to norms and biases).
    pub decay: bool,
}

impl ParamState {
    /// A parameter without history.
    pub fn new(tensor: &Tensor, lanes: Lanes, decay: bool) -> Self {
        let count = lanes.count(tensor);
        Self { m: None, v: None, lanes, steps: vec![0; count], lr_scale: vec![1.0; count], decay }
    }
}

/// AdamW (Loshchilov & Hutter 2019), bias-corrected per lane.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Constants.
    pub config: AdamWConfig,
    /// By position in the [`ParamSet`].
    pub states: Vec<ParamState>,
}

impl AdamW {
    /// An optimiser without history; `layout` says for each parameter what its lanes are and whether it
    /// decays.
    pub fn new(config: AdamWConfig, params: &ParamSet, layout: impl Fn(ParamId) -> (Lanes, bool)) -> Self {
        let states = params
            .ids()
            .map(|id| {
                let (lanes, decay) = layout(id);
                ParamState::new(params.get(id), lanes, decay)
            })
            .collect();
        Self { config, states }
    }

    /// Updates every trainable parameter that has a gradient, or none: what could fail is done before.
    /// Gradients are multiplied by `grad_scale` first.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device has failed before or has no memory for the moments.
    pub fn step(
        &mut self,
        device: Device,
        params: &mut ParamSet,
        grads: &Gradients,
        rate: f64,
        grad_scale: f64,
    ) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps, .. } = self.config;
        let kernels = device.kernels();
        let updated: Vec<ParamId> =
            params.ids().filter(|id| params.is_trainable(*id) && grads.get(*id).is_some()).collect();
        let mut fresh = Vec::new();
        for id in &updated {
            let state = &mut self.states[id.0];
            if state.m.is_none() {
                fresh.push(*id);
            }
            state.m.get_or_insert_with(|| kernels.zeros(params.get(*id).shape()));
            state.v.get_or_insert_with(|| kernels.zeros(params.get(*id).shape()));
            kernels.own(params.get_mut(*id));
            [&mut state.m, &mut state.v].into_iter().flatten().for_each(|moment| kernels.own(moment));
        }
        // The numbers of all lanes cross over to the device in one piece.
        let (vectors, first) = self.vectors(&updated, rate);
        let vectors = device.upload(Tensor::from_vec(&[vectors.len()], vectors));
        if let Err(failed) = kernels.check() {
            for id in fresh {
                (self.states[id.0].m, self.states[id.0].v) = (None, None);
            }
            return Err(failed);
        }
        for (id, first) in updated.into_iter().zip(first) {
            let (Some(gradient), state) = (grads.get(id), &mut self.states[id.0]) else { continue };
            state.steps.iter_mut().for_each(|s| *s += 1);
            let step = AdamWStep {
                lanes: state.lanes,
                vectors: &vectors,
                first,
                count: state.steps.len(),
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                eps: eps as f32,
                grad_scale: grad_scale as f32,
            };
            if let (Some(m), Some(v)) = (&mut state.m, &mut state.v) {
                kernels.adamw(params.get_mut(id), gradient, m, v, &step);
            }
        }
        Ok(())
    }

    /// What [`AdamWStep::vectors`] are for the next update of these, and where each one's begin.
    fn vectors(&self, updated: &[ParamId], rate: f64) -> (Vec<f32>, Vec<usize>) {
        let AdamWConfig { beta1, beta2, weight_decay, .. } = self.config;
        let (mut vectors, mut first) = (Vec::new(), Vec::with_capacity(updated.len()));
        for id in updated {
            let state = &self.states[id.0];
            first.push(vectors.len());
            let lanes = || state.steps.iter().map(|t| t + 1).zip(&state.lr_scale);
            let lr = |scale: &f32| rate * f64::from(*scale);
            let powi = |beta: f64, t: u64| 1.0 - beta.powf(t as f64);
            let decay = if state.decay { weight_decay } else { 0.0 };
            vectors.extend(lanes().map(|(t, s)| (lr(s) / powi(beta1, t)) as f32));
            vectors.extend(lanes().map(|(t, _)| (1.0 / powi(beta2, t).sqrt()) as f32));
            vectors.extend(lanes().map(|(_, s)| (1.0 - lr(s) * decay) as f32));
        }
        (vectors, first)
    }
}

/// The factor that brings gradients of global norm `norm` down to `max_norm` (Pascanu et al. 2013); at most
/// 1.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if norm > max_norm { max_norm / (norm + 1e-6) } else { 1.0 }
}
