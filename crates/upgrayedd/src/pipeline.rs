//! The cycle: score → prune → measure → grow → learn → measure → accept or roll back → checkpoint.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use upgrayedd_nn::optim::AdamW;
use upgrayedd_nn::trim_buffers;

use crate::budget::{self, Budget};
use crate::config::OptimizeConfig;
use crate::data::{Dataset, Split};
use crate::eval::{EvalOptions, Evaluation, Speed, evaluate, measure_speed};
use crate::event::{Event, Observer, Phase, Progress, named_heads, named_scores};
use crate::export::{self, Format};
use crate::heads::{HeadScores, HeadSelection};
use crate::model::{Cost, DType, Model};
use crate::run_dir::RunDir;
use crate::score::ScoreContext;
use crate::strategy::{GrowView, PruneView, Strategy};
use crate::surgery;
use crate::tokenizer::Tokenizer;
use crate::train::{self, TrainOptions};
use crate::{Error, Result, builtin, grow};

/// Calibration sequences that a strategy may ask for at most.
const CALIBRATION: usize = 128;

/// `run.toml`: everything that decides the result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this file's layout.
    pub format_version: u32,
    /// Version of the program.
    pub program_version: String,
    /// blake3 over all weights as they were given.
    pub model_hash: String,
    /// blake3 of the training files.
    pub data_hash: String,
    /// blake3 of the evaluation files, if there are any of their own.
    pub eval_data_hash: Option<String>,
    /// Which sequences serve what.
    pub split: Split,
    /// The resolved configuration.
    pub config: OptimizeConfig,
}

/// What a cycle came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleRecord {
    /// From 1.
    pub cycle: usize,
    /// Query heads removed.
    pub pruned: usize,
    /// Query heads grown back.
    pub grown: usize,
    /// Query heads at the end.
    pub active: usize,
    /// Held-out loss after pruning.
    pub loss_pruned: f64,
    /// Held-out loss after learning.
    pub loss_learned: f64,
    /// Whether the result was kept.
    pub accepted: bool,
}

/// Where a run is; saved with every checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    cycle: usize,
    epoch: u64,
    tokens: u64,
    baseline: Evaluation,
    loss: f64,
    history: Vec<CycleRecord>,
}

/// One side of the before → after table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Held-out quality.
    pub evaluation: Evaluation,
    /// Size and arithmetic.
    pub cost: Cost,
    /// Timed on this machine, both sides in turn.
    pub speed: Speed,
    /// Query heads left in each layer, original indices.
    pub heads: Vec<Vec<usize>>,
}

/// The outcome of a run, `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The model as given.
    pub before: Snapshot,
    /// The result as stored.
    pub after: Snapshot,
    /// Query heads per layer of the unpruned model.
    pub total_heads: usize,
    /// Cycle by cycle.
    pub cycles: Vec<CycleRecord>,
    /// Targets learned from.
    pub tokens_learned: u64,
    /// The run folder.
    pub run: PathBuf,
}

/// A run in the making: everything checked and read, nothing written yet.
pub struct Pipeline {
    config: OptimizeConfig,
    model: Model,
    data: Dataset,
    eval_data: Option<Dataset>,
    split: Split,
    strategy: Box<dyn Strategy>,
    optim: AdamW,
    model_hash: String,
}

impl Pipeline {
    /// Reads model and data and checks that the run is possible.
    pub fn new(config: OptimizeConfig) -> Result<Self> {
        config.check()?;
        let mut model = config.load_model()?;
        model.device = config.device.parse()?;
        let strategy = config.build_strategy()?;
        let tokenizer = config.load_tokenizer(&model)?;
        Self::assemble(config, model, &tokenizer, strategy)
    }

    fn assemble(mut config: OptimizeConfig, model: Model, tokenizer: &Tokenizer, strategy: Box<dyn Strategy>) -> Result<Self> {
        // A shorter model is not an error of the user's as long as no length was asked for.
        let length = config.sequence_length.unwrap_or_else(|| 256.min(model.spec.max_positions));
        config.sequence_length = Some(length);
        check_heads(&config, &model)?;
        let options = config.data_options(length);
        let (data, eval_data) = if config.data.is_empty() {
            (builtin::training_data(&model, tokenizer, &options)?, None)
        } else {
            let eval = config
                .eval_data
                .as_ref()
                .map(|f| Dataset::open(std::slice::from_ref(f), &model, tokenizer, &options))
                .transpose()?;
            (Dataset::open(&config.data, &model, tokenizer, &options)?, eval)
        };
        let split = data.split(CALIBRATION, eval_data.as_ref())?;
        let optim = train::new_optimizer(&model, config.weight_decay);
        let model_hash = hash_weights(&model);
        Ok(Self { config, model, data, eval_data, split, strategy, optim, model_hash })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Which sequences serve what.
    pub fn split(&self) -> &Split {
        &self.split
    }

    /// Optimiser steps in every cycle.
    pub fn steps_per_cycle(&self) -> u64 {
        train::steps(&self.train_options(), self.split.train.len())
    }

    /// The heads that the first cycle would prune and their importances, without changing anything.
    pub fn preview(&mut self) -> Result<(HeadSelection, HeadScores)> {
        let scores = self.score(1)?;
        let selection = self.select(1, &scores)?.0;
        Ok((selection, scores))
    }

    /// Runs all cycles into a new run folder and writes the result.
    pub fn run(self, out: &Path, observer: &mut dyn Observer) -> Result<Summary> {
        export::check_new(out)?;
        let baseline = self.measure("baseline", observer)?;
        let record = RunRecord {
            format_version: 1,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            model_hash: self.model_hash.clone(),
            data_hash: self.data.hash.clone(),
            eval_data_hash: self.eval_data.as_ref().map(|d| d.hash.clone()),
            split: self.split.clone(),
            config: self.config.clone(),
        };
        let dir = RunDir::create(out, &record, &self.model)?;
        let state = State { cycle: 0, epoch: 0, tokens: 0, loss: baseline.loss, baseline, history: Vec::new() };
        let mut run = Run { pipeline: self, dir, state, observer };
        match run.begin().and_then(|()| run.cycles()) {
            Ok(()) => run.finish(),
            // A run without a checkpoint has nothing worth keeping, unless the user means to continue.
            Err(error) if !matches!(error, Error::Interrupted) && !run.dir.has_checkpoint() => run.dir.discard().and(Err(error)),
            Err(error) => Err(error),
        }
    }

    /// Continues a run from its newest checkpoint to the same result as an uninterrupted one.
    pub fn resume(path: &Path, threads: Option<usize>, observer: &mut dyn Observer) -> Result<Summary> {
        let mut dir = RunDir::open(path)?;
        let record: RunRecord = dir.read_run()?;
        if dir.result().is_dir() {
            return Err(Error::bad_file(path, "is complete already: its result is in model/"));
        }
        let mut config = record.config.clone();
        config.threads = threads.or(config.threads);
        let mut pipeline = Self::new(config)?;
        let same_eval = pipeline.eval_data.as_ref().map(|d| d.hash.clone()) == record.eval_data_hash;
        if pipeline.model_hash != record.model_hash {
            return Err(Error::bad_file(path, "the model has changed since the run was started: it cannot be continued"));
        }
        if pipeline.data.hash != record.data_hash || !same_eval || pipeline.split != record.split {
            return Err(Error::bad_file(path, "the data files have changed since the run was started: it cannot be continued"));
        }
        let weight_decay = pipeline.config.weight_decay;
        let device = pipeline.model.device;
        let (model, optim, state) = dir.load_checkpoint(pipeline.model, |m| train::new_optimizer(m, weight_decay))?;
        (pipeline.model, pipeline.optim) = (model, optim);
        pipeline.model.device = device;
        let fresh = state.is_none();
        let state = match state {
            Some(state) => state,
            None => {
                let baseline = pipeline.measure("baseline", observer)?;
                State { cycle: 0, epoch: 0, tokens: 0, loss: baseline.loss, baseline, history: Vec::new() }
            }
        };
        let mut run = Run { pipeline, dir, state, observer };
        if fresh {
            run.begin()?;
        }
        run.cycles()?;
        run.finish()
    }

    fn train_options(&self) -> TrainOptions {
        self.config.train_options()
    }

    fn strategy_seed(&self) -> u64 {
        self.strategy.params().seed.unwrap_or(self.config.seed)
    }

    /// A number that differs from cycle to cycle and depends on nothing but seed and cycle.
    fn cycle_seed(&self, cycle: usize) -> u64 {
        self.strategy_seed().wrapping_add((cycle as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn score(&mut self, cycle: usize) -> Result<HeadScores> {
        let context = ScoreContext {
            model: &self.model,
            data: Some((&self.data, &self.split.calibration)),
            batch_size: self.config.batch_size,
            samples: CALIBRATION,
            seed: self.cycle_seed(cycle),
        };
        let scores = self.strategy.importances(&context)?;
        scores.check(&self.model.heads)?;
        Ok(scores)
    }

    /// What goes in this cycle, what the budget asked for, and how many are to come back (`None`: by ratio).
    fn select(&mut self, cycle: usize, scores: &HeadScores) -> Result<(HeadSelection, usize, Option<usize>)> {
        let config = &self.config;
        let ratios = (config.pruning_ratio, config.growth_ratio);
        let plan = budget::plan(config.schedule, &self.model.heads, config.unit, ratios, (cycle, config.num_cycles))?;
        let budget = Budget { heads: plan.prune, scope: config.scope, unit: config.unit, min_heads: config.min_heads };
        let view = PruneView { model: &self.model, importances: scores, budget };
        let selection = self.strategy.select_heads_to_prune(&view)?;
        self.model.heads.clone().remove(&selection, config.min_heads)?;
        Ok((selection, plan.prune, plan.grow))
    }

    fn eval_options(&self) -> EvalOptions {
        let window = self.config.sequence_length.unwrap_or_default();
        EvalOptions { batch_size: self.config.batch_size, max_windows: self.config.max_eval_windows, window }
    }

    fn measure(&self, task: &str, observer: &mut dyn Observer) -> Result<Evaluation> {
        let data = self.eval_data.as_ref().unwrap_or(&self.data);
        let result = evaluate(&self.model, data, &self.split.held_out, self.eval_options(), task, observer);
        trim_buffers();
        result
    }
}

fn check_heads(config: &OptimizeConfig, model: &Model) -> Result<()> {
    for (layer, heads) in model.heads.layers().iter().enumerate() {
        if config.min_heads > heads.active().len() {
            return Err(Error::invalid(format!(
                "min_heads is {}, but layer {layer} has {} heads: expected at most that",
                config.min_heads,
                heads.active().len()
            )));
        }
    }
    if config.schedule == budget::Schedule::Target {
        let goal = budget::portion(config.pruning_ratio, model.heads.total());
        let most = model.heads.num_pruned() + budget::prunable(&model.heads, config.unit, config.min_heads);
        if goal > most {
            return Err(Error::invalid(format!(
                "pruning_ratio {} asks for {goal} of {} heads, but min_heads {} lets only {most} go",
                config.pruning_ratio,
                model.heads.total(),
                config.min_heads
            )));
        }
    }
    Ok(())
}

fn hash_weights(model: &Model) -> String {
    let mut hasher = blake3::Hasher::new();
    for id in model.params.ids() {
        hasher.update(model.params.name(id).as_bytes());
        hasher.update(bytemuck::cast_slice(model.params.get(id).data()));
    }
    hasher.finalize().to_hex().to_string()
}

/// A run under way.
struct Run<'a> {
    pipeline: Pipeline,
    dir: RunDir,
    state: State,
    observer: &'a mut dyn Observer,
}

impl Run<'_> {
    fn emit(&mut self, event: Event) -> Result<()> {
        self.dir.write_event(&event)?;
        self.observer.on_event(&event);
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let (model, split) = (&self.pipeline.model, &self.pipeline.split);
        self.emit(Event::RunStarted {
            version: env!("CARGO_PKG_VERSION"),
            schema: 1,
            family: model.spec.family.model_type,
            parameters: model.num_parameters(),
            heads: model.heads.num_active(),
            sequences: [split.train.len(), split.calibration.len(), split.held_out.len()],
            steps_per_cycle: self.pipeline.steps_per_cycle(),
        })?;
        let evaluation = self.state.baseline.clone();
        self.emit(Event::Evaluated { cycle: 0, phase: Phase::Baseline, evaluation })
    }

    fn cycles(&mut self) -> Result<()> {
        while self.state.cycle < self.pipeline.config.num_cycles {
            let cycle = self.state.cycle + 1;
            self.cycle(cycle)?;
            self.state.cycle = cycle;
            let Pipeline { model, optim, .. } = &self.pipeline;
            self.dir.save_checkpoint(cycle, model, optim, &self.state)?;
        }
        Ok(())
    }

    fn cycle(&mut self, cycle: usize) -> Result<()> {
        let start = self.keep_for_roll_back();
        let scores = self.score(cycle)?;
        let (pruned, growth) = self.prune(cycle, &scores)?;
        let after_pruning = self.measure(cycle, Phase::Pruned)?;
        let (grown, growing) = self.grow(cycle, &scores, &pruned, growth)?;
        self.learn(cycle, &growing)?;
        let after_learning = self.measure(cycle, Phase::Learned)?;
        let accepted = self.accept(cycle, start, after_learning.loss)?;
        let count = |heads: &HeadSelection| heads.values().map(Vec::len).sum();
        self.state.history.push(CycleRecord {
            cycle,
            pruned: count(&pruned),
            grown: count(&grown),
            active: self.pipeline.model.heads.num_active(),
            loss_pruned: after_pruning.loss,
            loss_learned: after_learning.loss,
            accepted,
        });
        Ok(())
    }

    /// Tensors share memory until they are changed, so this costs nothing until the cycle learns.
    fn keep_for_roll_back(&self) -> Option<(Model, AdamW)> {
        self.pipeline.config.max_loss_increase.map(|_| (self.pipeline.model.clone(), self.pipeline.optim.clone()))
    }

    fn task(&self, cycle: usize, what: &str) -> String {
        format!("cycle {cycle} of {}: {what}", self.pipeline.config.num_cycles)
    }

    fn score(&mut self, cycle: usize) -> Result<HeadScores> {
        let task = self.task(cycle, "score");
        self.observer.on_progress(Progress { task: &task, done: 0, total: 1 });
        let scores = self.pipeline.score(cycle)?;
        trim_buffers();
        let importances = named_scores(&self.pipeline.model, &scores);
        let strategy = self.pipeline.strategy.name().to_owned();
        self.emit(Event::Scored { cycle, strategy, importances })?;
        Ok(scores)
    }

    fn prune(&mut self, cycle: usize, scores: &HeadScores) -> Result<(HeadSelection, Option<usize>)> {
        let (selection, budget, growth) = self.pipeline.select(cycle, scores)?;
        let count: usize = selection.values().map(Vec::len).sum();
        let Pipeline { model, optim, strategy, config, .. } = &mut self.pipeline;
        let heads = named_heads(model, &selection);
        let keep = strategy.as_keep(scores);
        surgery::remove(model, Some(optim), &selection, cycle, Some(&keep))?;
        let active = model.heads.num_active();
        let notice = match (count, budget) {
            (0, 0) => {
                Some(format!("nothing to prune: pruning_ratio {} of the active heads rounds to none", config.pruning_ratio))
            }
            (count, budget) if count < budget => Some(format!(
                "{count} of {budget} heads pruned: min_heads {} and unit {} allow no more",
                config.min_heads,
                config.unit.name()
            )),
            _ => None,
        };
        self.emit(Event::Pruned { cycle, budget, heads, active })?;
        if let Some(message) = notice {
            self.emit(Event::Notice { cycle, message })?;
        }
        Ok((selection, growth))
    }

    fn measure(&mut self, cycle: usize, phase: Phase) -> Result<Evaluation> {
        let what = if phase == Phase::Pruned { "measure pruned" } else { "measure learned" };
        let task = self.task(cycle, what);
        let evaluation = self.pipeline.measure(&task, self.observer)?;
        self.emit(Event::Evaluated { cycle, phase, evaluation: evaluation.clone() })?;
        Ok(evaluation)
    }

    /// Brings heads back; returns them and, per layer, which positions are to be faded in.
    fn grow(
        &mut self,
        cycle: usize,
        scores: &HeadScores,
        pruned: &HeadSelection,
        planned: Option<usize>,
    ) -> Result<(HeadSelection, Vec<Vec<bool>>)> {
        let left = remaining(&self.pipeline.model, scores, pruned);
        let seed = self.pipeline.cycle_seed(cycle);
        let Pipeline { model, optim, strategy, config, .. } = &mut self.pipeline;
        let count = planned.unwrap_or_else(|| budget::growth(config.growth_ratio, &model.heads, config.unit));
        let view = GrowView { heads: &model.heads, importances: &left, count, unit: config.unit, seed };
        let counts = strategy.select_heads_to_grow(&view)?;
        let selection = grow::choose(&model.heads, &model.archive, &counts, config.unit)?;
        surgery::restore(model, Some(optim), &selection, config.growth_lr_multiplier as f32)?;
        let marks = |(layer, heads): (usize, &crate::heads::LayerHeads)| {
            heads.active().iter().map(|h| selection.get(&layer).is_some_and(|s| s.contains(h))).collect()
        };
        let growing = model.heads.layers().iter().enumerate().map(marks).collect();
        let (heads, active) = (named_heads(model, &selection), model.heads.num_active());
        self.emit(Event::Grown { cycle, heads, active })?;
        Ok((selection, growing))
    }

    fn learn(&mut self, cycle: usize, growing: &[Vec<bool>]) -> Result<()> {
        let task = self.task(cycle, "learn");
        let options = self.pipeline.train_options();
        let Self { pipeline, dir, state, observer } = self;
        let Pipeline { model, optim, data, split, .. } = pipeline;
        let tokens = &mut state.tokens;
        train::learn(model, optim, data, &split.train, &options, (&mut state.epoch, growing), |report| {
            *tokens += report.tokens;
            let event = Event::Step {
                cycle,
                step: report.step,
                loss: report.loss,
                learning_rate: report.learning_rate,
                gradient_norm: report.gradient_norm,
                tokens: *tokens,
            };
            dir.write_event(&event)?;
            observer.on_event(&event);
            observer.on_progress(Progress { task: &task, done: report.step, total: report.steps });
            if observer.should_stop() { Err(Error::Interrupted) } else { Ok(()) }
        })?;
        train::reset_learning_rates(optim);
        Ok(())
    }

    fn accept(&mut self, cycle: usize, start: Option<(Model, AdamW)>, loss: f64) -> Result<bool> {
        let loss_change = loss - self.state.loss;
        match (start, self.pipeline.config.max_loss_increase) {
            (Some((model, optim)), Some(max_loss_increase)) if loss_change > max_loss_increase => {
                (self.pipeline.model, self.pipeline.optim) = (model, optim);
                self.emit(Event::RolledBack { cycle, loss_change, max_loss_increase })?;
                Ok(false)
            }
            _ => {
                self.state.loss = loss;
                self.emit(Event::Accepted { cycle, loss_change })?;
                Ok(true)
            }
        }
    }

    /// Rounds the weights to their stored type, measures that, compares it with the model as given, and writes it all.
    fn finish(mut self) -> Result<Summary> {
        let config = self.pipeline.config.clone();
        let dtype = config.dtype.unwrap_or(self.pipeline.model.dtype);
        round_weights(&mut self.pipeline.model, dtype);
        self.pipeline.optim.states.clear();
        let evaluation = self.pipeline.measure("result", self.observer)?;
        self.emit(Event::Evaluated { cycle: self.state.cycle, phase: Phase::Result, evaluation: evaluation.clone() })?;
        self.observer.on_progress(Progress { task: "measure speed", done: 0, total: 1 });
        let mut dense = config.load_model()?;
        dense.device = self.pipeline.model.device;
        let model = &self.pipeline.model;
        let length = config.sequence_length.unwrap_or_default();
        let speeds = measure_speed(&[&dense, model], config.batch_size, length);
        let snapshot = |model: &Model, evaluation, speed| Snapshot {
            evaluation,
            cost: model.cost(length),
            speed,
            heads: model.heads.layers().iter().map(|l| l.active().to_vec()).collect(),
        };
        let summary = Summary {
            before: snapshot(&dense, self.state.baseline.clone(), speeds[0]),
            after: snapshot(model, evaluation, speeds[1]),
            total_heads: model.spec.num_heads,
            cycles: self.state.history.clone(),
            tokens_learned: self.state.tokens,
            run: self.dir.path().to_owned(),
        };
        let (active, parameters) = (model.heads.num_active(), model.num_parameters());
        self.dir.finish(&model.archive, &summary, |out| export::export(model, Format::Hf, dtype, out))?;
        self.emit(Event::RunFinished { active, parameters })?;
        Ok(summary)
    }
}

/// The scores of the heads that pruning has left.
fn remaining(model: &Model, scores: &HeadScores, pruned: &HeadSelection) -> HeadScores {
    let layers = scores.layers.iter().enumerate().map(|(layer, scores)| {
        let gone = pruned.get(&layer).map(Vec::as_slice).unwrap_or_default();
        let mut before: Vec<usize> = model.heads.layers()[layer].active().iter().chain(gone).copied().collect();
        before.sort_unstable();
        before.iter().zip(scores).filter(|(h, _)| !gone.contains(h)).map(|(_, s)| *s).collect()
    });
    HeadScores { layers: layers.collect() }
}

fn round_weights(model: &mut Model, dtype: DType) {
    model.dtype = dtype;
    if dtype == DType::F32 {
        return;
    }
    for id in model.params.ids() {
        model.params.get_mut(id).data_mut().iter_mut().for_each(|v| *v = dtype.round(*v));
    }
    model.touch();
}
