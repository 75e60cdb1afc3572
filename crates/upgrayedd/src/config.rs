//! The configuration of a run: the same names on the command line, in a TOML file and in `run.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::budget::{Schedule, Scope};
use crate::data::{DataOptions, Documents, read_delimiter};
use crate::files::DType;
use crate::model::Companions;
use crate::price::{Currency, Timings, time_layers};
use crate::spec::Objective;
use crate::strategy::{Options, Strategy, StrategyParams, get_strategy};
use crate::train::{LrSchedule, TrainOptions};
use crate::units::Site;
use crate::{Error, Model, Result};

/// Cycles at most; of a run that ends when its caller says so.
pub const OPEN_ENDED: usize = 1 << 20;

/// Everything a user can say about `optimize`. Defaults are those of the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizeConfig {
    /// Model folder, run folder, checkpoint of a run or Hub id; the built-in model if absent.
    pub model: Option<String>,
    /// Family, for a config.json that does not tell.
    pub family: Option<String>,
    /// Files to learn from; built-in text if there are none and no model is named.
    pub data: Vec<PathBuf>,
    /// File to measure on; the last tenth of the data if absent.
    pub eval_data: Option<PathBuf>,
    /// Field with the text.
    pub text_field: Option<String>,
    /// Field with a second text, which a classifier reads after the first: a sentence pair.
    pub text_pair_field: Option<String>,
    /// Field with the label, or the number for regression.
    pub label_field: String,
    /// What stands between the cells of a .tsv or .csv file; tabs, or what a .csv file begins with, if absent.
    #[serde(deserialize_with = "read_delimiter")]
    pub delimiter: Option<char>,
    /// Names of the columns of a .tsv or .csv file that has no line with them.
    pub columns: Option<Vec<String>>,
    /// How documents become sequences.
    pub documents: Documents,
    /// Strategy by name.
    pub strategy: String,
    /// The strategy's own parameters.
    pub strategy_options: Options,
    /// Of the strategy's random choices; the run's seed if absent.
    pub strategy_seed: Option<u64>,
    /// Share of the active heads (of the model, where `budget` is not heads) pruned per cycle.
    pub pruning_ratio: f64,
    /// What the pruning ratio is a share of.
    pub budget: Currency,
    /// For a budget in latency: times of the machine that it is meant for; measured if absent.
    pub timings: Option<Timings>,
    /// Share of the pruned heads grown back per cycle.
    pub growth_ratio: f64,
    /// Heads that every layer keeps.
    pub min_heads: usize,
    /// Where heads compete; what suits the strategy if absent.
    pub scope: Option<Scope>,
    /// What is pruned at once.
    pub units: Site,
    /// How the ratio spreads over the cycles.
    pub schedule: Schedule,
    /// Parts in which a cycle prunes, scoring anew before each; what suits the strategy if absent.
    pub steps_per_cycle: Option<usize>,
    /// Whether the remaining output projections are repaired by least squares after pruning and growing.
    pub refit: bool,
    /// Sequences that the last refit of pruning and that of growing read; those set aside for scoring are read in any case.
    pub refit_samples: usize,
    /// Cycles.
    pub num_cycles: usize,
    /// Passes over the training data per cycle.
    pub epochs_per_cycle: usize,
    /// Optimiser steps per cycle at most; 0 prunes, repairs and grows without learning.
    pub max_steps_per_cycle: Option<u64>,
    /// Peak learning rate; 5e-5, or 1e-3 for the built-in model, which is far smaller than what users bring.
    pub learning_rate: Option<f64>,
    /// After the warm-up.
    pub lr_schedule: LrSchedule,
    /// Steps of linear warm-up in each cycle.
    pub warmup_steps: u64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Global gradient norm at most.
    pub max_gradient_norm: f64,
    /// Share of the loss that the teacher's predictions have while learning, 0 to 1: knowledge distillation.
    pub distill: Option<f64>,
    /// The model that teaches where it is not the model as given: a folder, a run folder or a Hub id. For plain encoders the one whose
    /// hidden states are to be kept.
    pub teacher: Option<String>,
    /// Divides both sides' logits in distillation; regression has no such thing.
    pub distill_temperature: f64,
    /// Optimiser steps between measurements while learning, of which the first is before it; the best state of a cycle is kept. Only
    /// at its end if absent.
    pub eval_every: Option<u64>,
    /// With `eval_every`: measurements in a row without a new best after which a cycle ends early.
    pub patience: usize,
    /// Optimiser steps between checkpoints inside a cycle. Only after each cycle, and when interrupted, if absent.
    pub checkpoint_every: Option<u64>,
    /// Sequences per backward pass.
    pub batch_size: usize,
    /// Backward passes per optimiser step.
    pub gradient_accumulation: usize,
    /// Whether learning and scoring keep only what goes into each block and run the block again in the backward pass: the same weights,
    /// bit for bit, for less memory and more time.
    pub gradient_checkpointing: bool,
    /// Tokens per sequence; 256, or the model's limit if that is less.
    pub sequence_length: Option<usize>,
    /// Held-out sequences measured at most.
    pub max_eval_windows: Option<usize>,
    /// Nats by which a cycle may raise the held-out loss before it is rolled back.
    pub max_loss_increase: Option<f64>,
    /// Multiplies the learning rate of regrown heads in the cycle of their return.
    pub growth_lr_multiplier: f64,
    /// Share of a cycle's steps over which regrown heads are faded in, where no refit has fitted them in.
    pub gate_warmup: f64,
    /// Of every random choice.
    pub seed: u64,
    /// Where to compute.
    pub device: String,
    /// Threads of the program; all cores if absent. A library user sets up rayon's pool instead.
    pub threads: Option<usize>,
    /// Element type of all weights of the result; the one that each came in if absent.
    pub dtype: Option<DType>,
}

impl Default for OptimizeConfig {
    fn default() -> Self {
        let strategy = StrategyParams::default();
        Self {
            model: None,
            family: None,
            data: Vec::new(),
            eval_data: None,
            text_field: None,
            text_pair_field: None,
            label_field: "label".to_owned(),
            delimiter: None,
            columns: None,
            documents: Documents::Packed,
            strategy: "magnitude".to_owned(),
            strategy_options: Options::new(),
            strategy_seed: None,
            pruning_ratio: strategy.pruning_ratio,
            budget: Currency::Heads,
            timings: None,
            growth_ratio: strategy.growth_ratio,
            min_heads: strategy.min_heads,
            scope: None,
            units: Site::Head,
            schedule: Schedule::PerCycle,
            steps_per_cycle: None,
            refit: true,
            refit_samples: 256,
            num_cycles: 3,
            epochs_per_cycle: 1,
            max_steps_per_cycle: None,
            learning_rate: None,
            lr_schedule: LrSchedule::Linear,
            warmup_steps: 8,
            weight_decay: 0.01,
            max_gradient_norm: 1.0,
            distill: None,
            teacher: None,
            distill_temperature: 1.0,
            eval_every: None,
            patience: 3,
            checkpoint_every: None,
            batch_size: 4,
            gradient_accumulation: 1,
            gradient_checkpointing: false,
            sequence_length: None,
            max_eval_windows: None,
            max_loss_increase: None,
            growth_lr_multiplier: 5.0,
            gate_warmup: 0.25,
            seed: 42,
            device: "auto".to_owned(),
            threads: None,
            dtype: None,
        }
    }
}

impl OptimizeConfig {
    /// Refuses values that have no meaning, before anything is read.
    pub fn check(&self) -> Result<()> {
        self.strategy_params().check()?;
        let positive = [
            ("num_cycles", self.num_cycles as f64),
            ("epochs_per_cycle", self.epochs_per_cycle as f64),
            ("batch_size", self.batch_size as f64),
            ("gradient_accumulation", self.gradient_accumulation as f64),
            ("learning_rate", self.learning_rate.unwrap_or(1.0)),
            ("max_gradient_norm", self.max_gradient_norm),
            ("growth_lr_multiplier", self.growth_lr_multiplier),
            ("steps_per_cycle", self.steps_per_cycle.map_or(1.0, |n| n as f64)),
            ("max_eval_windows", self.max_eval_windows.map_or(1.0, |n| n as f64)),
            ("distill_temperature", self.distill_temperature),
            ("eval_every", self.eval_every.map_or(1.0, |n| n as f64)),
            ("patience", self.patience as f64),
            ("checkpoint_every", self.checkpoint_every.map_or(1.0, |n| n as f64)),
            ("threads", self.threads.map_or(1.0, |n| n as f64)),
        ];
        if let Some((name, value)) = positive.into_iter().find(|(_, v)| !(*v > 0.0 && v.is_finite())) {
            return Err(Error::invalid(format!("{name} is {value}: expected more than 0")));
        }
        let most = [
            ("batch_size", self.batch_size, 1 << 20),
            ("gradient_accumulation", self.gradient_accumulation, 1 << 20),
            ("epochs_per_cycle", self.epochs_per_cycle, 1 << 20),
            ("num_cycles", self.num_cycles, OPEN_ENDED),
            ("steps_per_cycle", self.steps_per_cycle.unwrap_or(1), 1 << 20),
            ("threads", self.threads.unwrap_or(1), 4096),
        ];
        if let Some((name, value, limit)) = most.into_iter().find(|(_, value, limit)| value > limit) {
            return Err(Error::invalid(format!("{name} is {value}: expected at most {limit}")));
        }
        let at_least_zero = [("weight_decay", self.weight_decay), ("max_loss_increase", self.max_loss_increase.unwrap_or(0.0))];
        if let Some((name, value)) = at_least_zero.into_iter().find(|(_, v)| !(*v >= 0.0 && v.is_finite())) {
            return Err(Error::invalid(format!("{name} is {value}: expected 0 or more")));
        }
        if self.budget != Currency::Heads && self.schedule == Schedule::Target {
            return Err(Error::invalid(format!(
                "schedule target counts heads: with a budget in {} use schedule per-cycle",
                self.budget.name()
            )));
        }
        for (name, value) in [("gate_warmup", self.gate_warmup), ("distill", self.distill.unwrap_or(0.0))] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::invalid(format!("{name} is {value}: expected 0 to 1")));
            }
        }
        Ok(())
    }

    /// Times the layers for a budget in latency, once for the whole run; checks times that were given.
    pub(crate) fn take_timings(&mut self, model: &Model) -> Result<()> {
        if self.budget == Currency::Latency && self.timings.is_none() {
            self.timings = Some(time_layers(model, self.batch_size, self.sequence_length.unwrap_or_default())?);
        }
        match &self.timings {
            Some(timings) => timings.by_layer(model).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Refuses a model without data and data without a model, unless they are given otherwise.
    pub(crate) fn check_sources(&self, model_given: bool, data_given: bool) -> Result<()> {
        let (model, data) = (self.model.is_some() || model_given, !self.data.is_empty() || data_given);
        if model && !data {
            return Err(Error::invalid(
                "no data: name at least one file with --data (.txt, .jsonl, .parquet, .tsv, .csv; with labels for classifiers)",
            ));
        }
        if !model && (data || self.eval_data.is_some()) {
            return Err(Error::invalid(
                "data without a model: name the model with --model, or leave both out for the built-in example",
            ));
        }
        Ok(())
    }

    /// The strategy's common parameters.
    pub fn strategy_params(&self) -> StrategyParams {
        StrategyParams {
            pruning_ratio: self.pruning_ratio,
            growth_ratio: self.growth_ratio,
            min_heads: self.min_heads,
            seed: self.strategy_seed,
        }
    }

    /// Fills in what follows from model and strategy, and makes paths hold wherever the run is continued from.
    pub(crate) fn resolve(&mut self, model: &Model, strategy: &dyn Strategy) {
        self.scope = Some(self.scope.unwrap_or_else(|| strategy.scope()));
        self.steps_per_cycle = Some(self.steps_per_cycle.unwrap_or_else(|| strategy.steps_per_cycle()));
        // A shorter model is not an error of the user's as long as no length was asked for.
        self.sequence_length = Some(self.sequence_length.unwrap_or_else(|| 256.min(model.spec.max_positions)));
        let rate = if matches!(model.companions, Companions::Memory(_)) { 1e-3 } else { 5e-5 };
        self.learning_rate = Some(self.learning_rate.unwrap_or(rate));
        if self.teacher.is_some() && model.spec.objective != Objective::Encoder {
            self.distill = Some(self.distill.unwrap_or(0.5));
        }
        let absolute = |path: &mut PathBuf| {
            if let Ok(full) = path.canonicalize() {
                *path = full;
            }
        };
        self.data.iter_mut().chain(&mut self.eval_data).for_each(absolute);
        // The commit that was read, so that the run can be made again after the repository has moved.
        if let Some(origin) = model.origin.as_ref().filter(|_| self.model.is_some()) {
            self.model = Some(origin.clone());
        }
        for name in [&mut self.model, &mut self.teacher] {
            if let Some(full) = name.as_ref().and_then(|m| std::path::Path::new(m).canonicalize().ok()) {
                *name = Some(full.to_string_lossy().into_owned());
            }
        }
    }

    /// The strategy with its parameters, checked.
    pub fn build_strategy(&self) -> Result<Box<dyn Strategy>> {
        get_strategy(&self.strategy, self.strategy_params(), self.strategy_options.clone())
    }

    pub(crate) fn data_options(&self, sequence_length: usize) -> DataOptions {
        DataOptions {
            sequence_length,
            text_field: self.text_field.clone(),
            text_pair_field: self.text_pair_field.clone(),
            label_field: self.label_field.clone(),
            delimiter: self.delimiter,
            columns: self.columns.clone(),
            documents: self.documents,
            seed: self.seed,
        }
    }

    pub(crate) fn train_options(&self) -> TrainOptions {
        TrainOptions {
            epochs: self.epochs_per_cycle,
            max_steps: self.max_steps_per_cycle,
            learning_rate: self.learning_rate.unwrap_or(5e-5),
            gradient_accumulation: self.gradient_accumulation,
            lr_schedule: self.lr_schedule,
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay,
            max_gradient_norm: self.max_gradient_norm,
            gate_warmup: self.gate_warmup,
            gradient_checkpointing: self.gradient_checkpointing,
        }
    }
}
