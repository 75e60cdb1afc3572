//! What follows from the model and the strategy where nobody has said it.

use std::path::{Path, PathBuf};

use super::optimize::OptimizeConfig;
use super::options::SourceOptions;
use crate::budget::Scope;
use crate::memory::{Learn, Work, fitting_batch};
use crate::model::Model;
use crate::price::Currency;
use crate::score::{self, Score};
use crate::spec::{Block, Objective};
use crate::strategy::Strategy;
use crate::train::TrainOptions;
use crate::units::Site;
use crate::{Error, Result};

impl SourceOptions {
    /// Tokens per sequence for this model. A shorter model is not an error of the user's as long as no length
    /// was asked for.
    pub fn length_for(&self, model: &Model) -> usize {
        self.sequence_length.unwrap_or_else(|| 256.min(model.spec().max_positions))
    }
}

/// Where units compete if nobody says: where it suits the strategy, but in each layer on its own for channels whose writer
/// is followed by a norm of the sum. The costs of different layers are not on one scale there (docs/lab-notebook.md).
pub(super) fn usual_scope(config: &OptimizeConfig, model: &Model, strategy: &dyn Strategy) -> Scope {
    let post_norm = model.spec().layers.iter().any(|layer| layer.block == Block::PostNorm);
    if post_norm && config.prune.units.contains(Site::Channel) { Scope::Layer } else { strategy.scope() }
}

/// Makes names of files and models hold wherever the run is continued from.
pub(super) fn locate(config: &mut OptimizeConfig, model: &Model) {
    let absolute = |path: &mut PathBuf| {
        if let Ok(full) = path.canonicalize() {
            *path = full;
        }
    };
    let OptimizeConfig { run, data, prune, learn, .. } = config;
    data.data.iter_mut().chain(&mut data.eval_data).chain(&mut prune.timings).for_each(absolute);
    // The commit that was read, so that the run can be made again after the repository has moved.
    if let Some(origin) = model.origin.as_ref().filter(|_| run.model.is_some()) {
        run.model = Some(origin.clone());
    }
    for name in [&mut run.model, &mut learn.teacher] {
        if let Some(full) = name.as_ref().and_then(|name| Path::new(name).canonicalize().ok()) {
            *name = Some(full.to_string_lossy().into_owned());
        }
    }
}

/// The share of the teacher's predictions in the loss. Refuses teachers that would teach nothing.
pub(super) fn distill_share(config: &OptimizeConfig, model: &Model) -> Result<f64> {
    let (is_encoder, teacher) =
        (model.spec().objective == Objective::Encoder, config.learn.teacher.is_some());
    let share = config.learn.distill.unwrap_or(if teacher && !is_encoder { 0.5 } else { 0.0 });
    if is_encoder && share > 0.0 {
        return Err(Error::does_not_fit(
            "a plain encoder learns from its parent's hidden states alone: leave distill out",
        ));
    }
    if !is_encoder && teacher && share == 0.0 {
        return Err(Error::does_not_fit(
            "distill is 0, so the teacher would teach nothing: leave one of them out",
        ));
    }
    Ok(share)
}

/// How a cycle learns.
pub(super) fn train_options(config: &OptimizeConfig, learning_rate: f64) -> TrainOptions {
    let learn = &config.learn;
    TrainOptions {
        epochs: learn.epochs_per_cycle,
        max_steps: learn.max_steps_per_cycle,
        learning_rate,
        gradient_accumulation: learn.gradient_accumulation,
        lr_schedule: learn.lr_schedule,
        warmup_steps: learn.warmup_steps,
        weight_decay: learn.weight_decay,
        max_gradient_norm: learn.max_gradient_norm,
        gate_warmup: config.grow.gate_warmup,
        gradient_checkpointing: learn.gradient_checkpointing,
    }
}

/// What such a run does to a model, by which goes what it holds in memory.
pub(crate) fn work_of(config: &OptimizeConfig, length: usize) -> Work {
    let score = score::named(&config.prune.strategy);
    Work {
        length,
        batch: config.learn.batch_size,
        units: config.prune.units,
        // What grows back is asked of the gates.
        score: config.grow.growth_ratio > 0.0 || score.as_ref().map_or(true, |score| score.needs_data()),
        curvature: score.map_or(true, Score::needs_curvature),
        refit: config.refit.refit,
        write: true,
        another: true,
        learn: (config.learn.max_steps_per_cycle != Some(0)).then(|| learning(config)),
    }
}

fn learning(config: &OptimizeConfig) -> Learn {
    let OptimizeConfig { learn, measure, .. } = config;
    // To roll back there are weights and moments, of the best state and of the model that learns again the weights.
    let copies =
        [(measure.max_loss_increase.is_some(), 3), (measure.eval_every.is_some(), 1), (measure.control, 1)];
    Learn {
        checkpointing: learn.gradient_checkpointing,
        copies: copies.iter().filter(|(kept, _)| *kept).map(|(_, count)| count).sum(),
        teacher: learn.teacher.is_some() || learn.distill.is_some_and(|share| share > 0.0),
    }
}

/// Takes as many sequences at once as fit into the memory that is allowed. `timed`: the times of the model's layers are
/// known.
pub(super) fn fit_memory(
    config: &mut OptimizeConfig,
    model: &Model,
    length: usize,
    timed: bool,
) -> Result<()> {
    if let Some(memory) = config.run.memory {
        if config.prune.budget == Currency::Latency && !timed {
            return Err(Error::does_not_fit(
                "times of layers that are read from files again and again are not those of a model in memory: with memory, a budget in \
                 latency needs the timings of a run without",
            ));
        }
        config.learn.batch_size = fitting_batch(model, work_of(config, length), memory.bytes())?;
    }
    Ok(())
}
