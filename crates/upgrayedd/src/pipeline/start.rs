//! A run in the making: everything is read and checked before anything is written.

use std::path::Path;
use std::sync::Arc;

use upgrayedd_nn::trim_buffers;

use super::parts::{check_heads, check_reachable, hash_model, load_teacher, read_data, score_context};
use super::state::{Given, Pipeline, Run, State};
use crate::budget;
use crate::config::OptimizeConfig;
use crate::data::{Part, Split, check_length};
use crate::eval::{EvalOptions, evaluate};
use crate::event::Observer;
use crate::files::check_new;
use crate::grow::{self, Gains};
use crate::learner::Learner;
use crate::model::{Companions, Model};
use crate::open::configured;
use crate::price::Currency;
use crate::record::{Evaluation, LayerRefit, Summary};
use crate::reduce::Alone;
use crate::run_dir::{GivenParts, RUN_FORMAT, RunDir, RunRecord, read_run};
use crate::spec::Objective;
use crate::train::{self, TrainOptions};
use crate::units::Scores;
use crate::{Error, Result, export, refit};

impl Pipeline {
    /// Reads model and data and checks that the run is possible.
    pub fn new(config: OptimizeConfig) -> Result<Self> {
        Self::with(config, Given::default())
    }

    /// The same with parts that the caller has made itself.
    pub fn with(mut config: OptimizeConfig, given: Given) -> Result<Self> {
        config.check()?;
        let parts = GivenParts { model: given.model.is_some(), data: given.data.is_some(), strategy: given.strategy.is_some() };
        config.check_sources(parts.model, parts.data)?;
        let device = config.device.parse()?;
        let strategy = match given.strategy {
            Some(strategy) => strategy,
            None => config.build_strategy()?,
        };
        let mut model = match given.model {
            // What is in memory need not be what the Hub has.
            Some(mut model) => {
                model.origin = None;
                export::with_own_config(model)
            }
            None => configured(&config)?,
        };
        model.move_to(device);
        config.strategy = strategy.name().to_owned();
        config.resolve(&model, strategy.as_ref());
        if parts.strategy && config.steps_per_cycle != Some(1) {
            return Err(Error::invalid(
                "steps_per_cycle needs a built-in strategy: one of the caller's own decides about a whole cycle at once",
            ));
        }
        if parts.strategy && config.budget != Currency::Heads {
            return Err(Error::invalid(format!(
                "a budget in {} needs a built-in strategy: one of the caller's own decides how much goes",
                config.budget.name()
            )));
        }
        check_length(&model, config.sequence_length.unwrap_or_default())?;
        check_heads(&config, &model)?;
        config.take_timings(&model)?;
        check_reachable(&config, &model)?;
        // Batches need no tokenizer, but one that is there belongs to the model's identity.
        let tokenizer = model.tokenizer();
        let fingerprint = tokenizer.as_ref().map_or(String::new(), |t| t.fingerprint().to_owned());
        let data = match given.data {
            Some(data) => data,
            None => read_data(&config, &model, &tokenizer?, strategy.calibration_samples())?,
        };
        let mut model_hash = hash_model(&model, &fingerprint)?;
        let mut notices = [&model.notices[..], &data.notices].concat();
        let distilled = config.distill.is_some_and(|share| share > 0.0);
        let is_encoder = model.spec.objective == Objective::Encoder;
        if is_encoder && distilled {
            return Err(Error::invalid("a plain encoder learns from its parent's hidden states alone: leave distill out"));
        }
        if !is_encoder && config.teacher.is_some() && !distilled {
            return Err(Error::invalid("distill is 0, so the teacher would teach nothing: leave one of them out"));
        }
        let teacher = match &config.teacher.clone() {
            Some(name) => {
                // Batches of the caller's are as long as the model allows.
                let cut = config.sequence_length.filter(|_| !parts.data);
                let longest = cut.unwrap_or(model.spec.max_positions);
                let teacher = load_teacher(name, &config, &model, longest)?;
                notices.extend(teacher.notices.iter().map(|n| format!("{name}: {n}")));
                if let Some(origin) = &teacher.origin {
                    config.teacher = Some(origin.clone());
                }
                model_hash.push_str(&hash_model(&teacher, "")?);
                Some(teacher)
            }
            None => (distilled || is_encoder).then(|| model.clone()),
        };
        let teacher = match teacher {
            Some(teacher) if is_encoder => {
                model.set_reference(Arc::new(teacher))?;
                None
            }
            teacher => teacher,
        };
        let learner = Learner::new(model, config.weight_decay);
        Ok(Self { config, teacher, learner, data, given: parts, strategy, model_hash, notices })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.learner.model
    }

    /// What was passed over or taken otherwise than files say, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Which sequences serve what.
    pub fn split(&self) -> &Split {
        &self.data.split
    }

    /// What pruning ratios are shares of.
    pub fn budget(&self) -> Currency {
        self.config.budget
    }

    /// Optimiser steps in every cycle.
    pub fn steps_per_cycle(&self) -> u64 {
        train::steps(&self.train_options(), self.data.train.batches_per_epoch())
    }

    /// Runs all cycles into a new run folder and writes the result.
    pub fn run(mut self, out: &Path, observer: &mut dyn Observer) -> Result<Summary> {
        check_new(out)?;
        let baseline = self.measure("baseline", observer)?;
        let record = RunRecord {
            format_version: RUN_FORMAT,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            model_hash: self.model_hash.clone(),
            data_hash: self.data.hash.clone(),
            eval_data_hash: self.data.eval_hash.clone(),
            notices: self.notices.clone(),
            given: self.given,
            split: self.data.split.clone(),
            config: self.config.clone(),
        };
        let dir = RunDir::create(out, &record, &self.learner.model, self.given.model, self.data.set_aside.as_ref())?;
        self.keep_companions(&dir);
        let state = State::new(baseline);
        let mut run = Run { pipeline: self, dir, state, observer, start: None, best: None };
        match run.begin().and_then(|()| run.cycles()) {
            Ok(()) => run.finish(),
            // A run without a checkpoint has nothing worth keeping, unless the user means to continue.
            Err(error) if !matches!(error, Error::Interrupted | Error::Caller(_)) && !run.dir.has_checkpoint() => {
                // The first error is the one that matters, even if its traces cannot be removed.
                let _ = run.dir.discard();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The configuration that a run was started with.
    pub fn recorded_config(path: &Path) -> Result<OptimizeConfig> {
        Ok(read_run(path)?.config)
    }

    /// A model that was given brings files from a place that may not last: the run's own copies do.
    pub(super) fn keep_companions(&mut self, dir: &RunDir) {
        if self.given.model && self.learner.model.companions != Companions::None {
            self.learner.model.companions = Companions::Folder(dir.base());
        }
    }

    pub(super) fn train_options(&self) -> TrainOptions {
        self.config.train_options()
    }

    pub(super) fn strategy_seed(&self) -> u64 {
        self.strategy.params().seed.unwrap_or(self.config.seed)
    }

    /// A number that differs from cycle to cycle and depends on nothing but seed and cycle.
    pub(super) fn cycle_seed(&self, cycle: usize) -> u64 {
        self.strategy_seed().wrapping_add((cycle as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub(super) fn score(&mut self, cycle: usize) -> Result<Scores> {
        let seed = self.cycle_seed(cycle);
        let scores = self.strategy.importances(&score_context(&self.learner.model, &self.data, &self.config, seed))?;
        scores.check(&self.learner.model.units)?;
        Ok(scores)
    }

    /// What the return of each archived head promises.
    pub(super) fn gains(&self, cycle: usize) -> Result<Gains> {
        grow::gains(&score_context(&self.learner.model, &self.data, &self.config, self.cycle_seed(cycle)))
    }

    /// Repairs the model towards `parent`, if that is asked for, anything is gone, and there are sequences to judge by: on those set
    /// aside for scoring, and on some of those to learn from where that makes more of them, up to `sequences`.
    pub(super) fn refit(&mut self, parent: &Model, sequences: usize) -> Result<Option<Vec<LayerRefit>>> {
        let Self { learner: Learner { model, .. }, data, config, .. } = self;
        let Part { data: calibration, range } = &data.calibration;
        if !config.refit || model.units == parent.units || range.len() < 2 {
            return Ok(None);
        }
        let mut batches = refit::batches(calibration, &range.clone().collect::<Vec<_>>(), config.batch_size);
        if let Some((more, range)) = data.train.sample(sequences.saturating_sub(range.len())) {
            batches.extend(refit::batches(more, &range.collect::<Vec<_>>(), config.batch_size));
        }
        refit::refit(model, parent, batches, &Alone).map(Some)
    }

    /// How many heads go in this cycle, and how many are to be gone after growth.
    pub(super) fn plan(&self, cycle: usize) -> budget::CyclePlan {
        let config = &self.config;
        let ratios = (config.pruning_ratio, config.growth_ratio);
        let most = budget::prunable(&self.learner.model.units, config.units, config.min_heads);
        budget::plan(config.schedule, &self.learner.model.units, config.units, ratios, (cycle, config.num_cycles), most)
    }

    pub(super) fn eval_options(&self) -> EvalOptions<'static> {
        let window = self.config.sequence_length.unwrap_or_default();
        EvalOptions { batch_size: self.config.batch_size, max_windows: self.config.max_eval_windows, window, reduce: &Alone }
    }

    pub(super) fn measure(&self, task: &str, observer: &mut dyn Observer) -> Result<Evaluation> {
        let Part { data, range } = &self.data.held_out;
        let result = evaluate(&self.learner.model, data, range, self.eval_options(), task, observer);
        trim_buffers();
        result
    }
}
