//! A run in the making: everything is read and checked before anything is written.

use std::path::Path;
use std::sync::Arc;

use upgrayedd_nn::trim_buffers;

use super::parts::{hash_model, load_teacher, read_data};
use super::samples;
use super::state::{Given, Journal, Pipeline, Run, State};
use crate::config::{OptimizeConfig, Plan};
use crate::data::{Part, SetAside, Split};
use crate::eval::evaluate;
use crate::event::Observer;
use crate::files::{Spill, check_new};
use crate::grow::{self, Gains};
use crate::learner::Learner;
use crate::memory::{self, Stage};
use crate::model::{Companions, Model};
use crate::open::configured;
use crate::price::Currency;
use crate::record::{Evaluation, Gpu, Summary};
use crate::reduce::{Alone, check_alike, in_all};
use crate::refit::Repairs;
use crate::run_dir::{GivenParts, RUN_FORMAT, RunDir, RunRecord, read_run};
use crate::spec::Objective;
use crate::train;
use crate::units::Scores;
use crate::{Error, Result, export, refit};

impl Pipeline {
    /// Reads model and data and checks that the run is possible.
    ///
    /// # Errors
    /// Returns what [`Self::with`] returns.
    pub fn new(config: OptimizeConfig) -> Result<Self> {
        Self::with(config, Given::default())
    }

    /// The same with parts that the caller has made itself.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for a model without data, for data without a model, for a model without
    /// the tokenizer that its data needs, and for a teacher that does not go with the model;
    /// [`Error::Device`] if the device cannot be used; and [`Error::Interrupted`] if the work is stopped.
    /// Beyond these, what [`OptimizeConfig::check`], [`OptimizeConfig::build_strategy`], [`crate::open()`],
    /// [`Plan::new`], [`Model::tokenizer`], [`Dataset::open`](crate::data::Dataset::open) and
    /// [`RunData::split`](crate::data::RunData::split) return.
    pub fn with(config: OptimizeConfig, given: Given) -> Result<Self> {
        config.check()?;
        let parts = GivenParts {
            model: given.model.is_some(),
            data: given.data.is_some(),
            strategy: given.strategy.is_some(),
        };
        let device = match given.device {
            Some(device) => device,
            None => config.open_device()?,
        };
        let reduce = given.reduce.unwrap_or_else(|| Arc::new(Alone));
        let strategy = match given.strategy {
            Some(strategy) => strategy,
            None => config.build_strategy()?,
        };
        config.check_sources(parts.model, parts.data)?;
        let mut model = match given.model {
            // What is in memory need not be what the Hub has.
            Some(mut model) => {
                model.origin = None;
                export::with_own_config(model)
            }
            None => configured(&config)?,
        };
        if config.run.memory.is_some() {
            if parts.data && config.data.sequence_length.is_none() {
                return Err(Error::does_not_fit(
                    "memory goes by the length of sequences, which a data loader does not tell: say sequence_length",
                ));
            }
            model.move_to(device);
            // There is no run folder yet.
            model.set_spill(Spill::to(&std::env::temp_dir()))?;
        }
        let on_host = model.clone();
        model.move_to(device);
        let asked = config.learn.batch_size;
        samples::check(&config.measure, &model)?;
        let mut plan =
            Plan::new(config, &model, strategy.as_ref(), parts.strategy, given.timings, reduce.as_ref())?;
        // Batches need no tokenizer, but one that is there belongs to the model's identity.
        let tokenizer = model.tokenizer();
        let fingerprint = tokenizer.as_ref().map_or(String::new(), |t| t.fingerprint().to_owned());
        let data = match given.data {
            Some(data) => data,
            None => read_data(&plan, &model, &tokenizer?, strategy.calibration_samples())?,
        };
        let mut model_hash = hash_model(&on_host, &fingerprint)?;
        drop(on_host);
        let mut notices = [&model.notices[..], &data.notices].concat();
        if plan.config.run.device == "auto" {
            notices.extend(device.passed_over());
        }
        if let Some(memory) = plan.config.run.memory {
            notices.push(format!(
                "speeds are those of weights that are read from files again and again: memory is {memory}"
            ));
        }
        if let (Some(memory), true) = (plan.config.run.memory, plan.config.learn.batch_size < asked) {
            let batch = plan.config.learn.batch_size;
            notices.push(format!("batches of {batch} of the {asked} sequences that were asked for: memory {memory} holds no more"));
        }
        let is_encoder = model.spec().objective == Objective::Encoder;
        let teacher = match &plan.config.learn.teacher {
            Some(name) => {
                // Batches of the caller's are as long as the model allows.
                let cut = parts.data && plan.config.data.sequence_length.is_none();
                let longest = if cut { model.spec().max_positions } else { plan.sequence_length };
                let mut teacher = load_teacher(name, &plan, &model, longest)?;
                if let Some(spill) = model.spill() {
                    teacher.set_spill(spill.clone())?;
                }
                notices.extend(teacher.notices.iter().map(|n| format!("{name}: {n}")));
                if let Some(origin) = &teacher.origin {
                    plan.config.learn.teacher = Some(origin.clone());
                }
                model_hash.push_str(&hash_model(&teacher, "")?);
                Some(teacher)
            }
            None => (plan.distill > 0.0 || is_encoder).then(|| model.clone()),
        };
        let teacher = match teacher {
            Some(teacher) if is_encoder => {
                model.set_reference(Arc::new(teacher))?;
                None
            }
            teacher => teacher,
        };
        let record = RunRecord {
            format_version: RUN_FORMAT,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            model_hash,
            data_hash: data.hash.clone(),
            eval_data_hash: data.eval_hash.clone(),
            notices,
            gpu: Gpu::of(device),
            given: parts,
            split: data.split.clone(),
            config: plan.config(),
            timings: plan.timings.clone(),
            launch: given.launch,
        };
        let learner = Learner::new(model, plan.train.weight_decay);
        check_alike(reduce.as_ref(), &everything_of(&record, data.set_aside.as_ref())?)?;
        Ok(Self { plan, teacher, learner, data, strategy, reduce, record })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.learner.model
    }

    /// What was passed over or taken otherwise than files say, a line each.
    pub fn notices(&self) -> &[String] {
        &self.record.notices
    }

    /// Which sequences serve what.
    pub fn split(&self) -> &Split {
        &self.record.split
    }

    /// What it is going to do.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What pruning ratios are shares of.
    pub fn budget(&self) -> Currency {
        self.plan.config.prune.budget
    }

    /// Optimiser steps in every cycle.
    pub fn steps_per_cycle(&self) -> u64 {
        train::steps(&self.plan.train, self.data.train.batches_per_epoch())
    }

    /// Runs all cycles into a new run folder and writes the result.
    ///
    /// # Errors
    /// Returns [`Error::File`] if `out` exists, [`Error::Io`] if it cannot be written, [`Error::Data`] if the
    /// data has nothing to predict or an epoch has no batches, [`Error::NotFinite`] if a loss, a score or a
    /// weight is not finite, unless the cycle is rolled back, [`Error::Interrupted`] if the observer or
    /// whoever started the work stops it, what the strategy and a data loader return, what
    /// [`UnitMap::remove`](crate::units::UnitMap::remove) and [`grow::choose`] return for the heads that the
    /// strategy names, and what [`crate::open()`] returns when the model is read again to be compared with.
    /// After [`Error::Interrupted`] and [`Error::Caller`] the folder stays, to be resumed; after others it
    /// stays if it has a checkpoint.
    pub fn run(mut self, out: &Path, observer: &mut dyn Observer) -> Result<Summary> {
        check_new(out)?;
        let baseline = self.measure("baseline", observer)?;
        let dir = self.new_folder(out)?;
        self.keep_companions(&dir);
        self.spill_to(&dir)?;
        let state = State::new(baseline);
        let mut run = Run {
            journal: Journal { dir, reduce: self.reduce.clone(), observer, state, best: None },
            pipeline: self,
            start: None,
        };
        match run.begin().and_then(|()| run.cycles()) {
            Ok(()) => run.finish(),
            // A run without a checkpoint has nothing worth keeping, unless the user means to continue.
            Err(error)
                if !matches!(error, Error::Interrupted | Error::Caller(_))
                    && !run.journal.dir.has_checkpoint() =>
            {
                // The first error is the one that matters, even if its traces cannot be removed.
                let _ = run.journal.dir.discard();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// What each stage of the run holds in memory at most, where weights are kept out of it.
    pub fn memory(&self) -> Vec<Stage> {
        memory::stages(&self.learner.model, self.plan.work())
    }

    /// Keeps in the run's folder what is not to stay in memory.
    pub(super) fn spill_to(&mut self, dir: &RunDir) -> Result<()> {
        match self.learner.model.spill() {
            Some(_) => self.learner.model.set_spill(Spill::to(dir.path())),
            None => Ok(()),
        }
    }

    /// The run's folder, which the first process makes.
    fn new_folder(&self, out: &Path) -> Result<RunDir> {
        let dir = match self.reduce.rank() {
            0 => RunDir::create(out, &self.record, &self.learner.model, self.data.set_aside.as_ref()),
            _ => Ok(RunDir::follow(out)),
        };
        in_all(self.reduce.as_ref(), dir)
    }

    /// The configuration that a run was started with.
    ///
    /// # Errors
    /// Returns [`Error::File`] if `path` is no run of this program, and [`Error::Io`] if the system cannot
    /// read it.
    pub fn recorded_config(path: &Path) -> Result<OptimizeConfig> {
        Ok(read_run(path)?.config)
    }

    /// A model that was given brings files from a place that may not last: the run's own copies do.
    pub(super) fn keep_companions(&mut self, dir: &RunDir) {
        if self.record.given.model && self.learner.model.companions != Companions::None {
            self.learner.model.companions = Companions::Folder(dir.base());
        }
    }

    pub(super) fn score(&mut self, cycle: usize) -> Result<Scores> {
        let scores = self.strategy.importances(&self.plan.score_context(
            &self.learner.model,
            &self.data,
            cycle,
            self.reduce.as_ref(),
        ))?;
        scores.check(self.learner.model.units(), self.plan.config.prune.units.counted())?;
        Ok(scores)
    }

    /// What the return of each archived unit promises.
    pub(super) fn gains(&self, cycle: usize) -> Result<Gains> {
        grow::gains(&self.plan.score_context(&self.learner.model, &self.data, cycle, self.reduce.as_ref()))
    }

    /// Repairs the model towards `parent`, if that is asked for, anything is gone, and there are sequences to
    /// judge by: on those set aside for scoring, and on some of those to learn from where that makes more of
    /// them, up to `sequences`.
    pub(super) fn refit(&mut self, parent: &Model, sequences: usize) -> Result<Option<Repairs>> {
        let Self { learner: Learner { model, .. }, data, plan: Plan { config, .. }, reduce, .. } = self;
        let Part { data: calibration, range } = &data.calibration;
        if !config.refit.refit || model.units() == parent.units() || range.len() < 2 {
            return Ok(None);
        }
        let mut batches =
            refit::batches(calibration, &range.clone().collect::<Vec<_>>(), config.learn.batch_size);
        if let Some((more, range)) = data.train.sample(sequences.saturating_sub(range.len())) {
            batches.extend(refit::batches(more, &range.collect::<Vec<_>>(), config.learn.batch_size));
        }
        refit::refit(model, parent, batches, reduce.as_ref()).map(Some)
    }

    pub(super) fn measure(&self, task: &str, observer: &mut dyn Observer) -> Result<Evaluation> {
        let Part { data, range } = &self.data.held_out;
        let options = self.plan.eval_options(self.reduce.as_ref());
        let result = evaluate(&self.learner.model, data, range, options, task, observer);
        trim_buffers();
        result
    }
}

/// All that decides what a run does, and how its numbers are rounded; but not which of several like GPUs it is on.
fn everything_of(record: &RunRecord, set_aside: Option<&SetAside>) -> Result<String> {
    let mut record = record.clone();
    record.config.run.device.clear();
    if let Some(gpu) = &mut record.gpu {
        gpu.device.clear();
    }
    let set_aside = serde_json::to_string(&set_aside).map_err(|e| Error::malformed(e.to_string()))?;
    let text = toml::to_string(&record)
        .map_err(|e| Error::malformed(format!("cannot write the configuration: {e}")))?;
    Ok(format!("{text}{set_aside}{}", upgrayedd_nn::instruction_set()))
}
