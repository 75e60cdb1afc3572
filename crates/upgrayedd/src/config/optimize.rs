//! Everything that a user can ask of a run, and what has no meaning in it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use upgrayedd_nn::{Device, Precision};

use super::options::{
    GrowOptions, LearnOptions, MeasureOptions, PruneOptions, RefitOptions, RunOptions, SourceOptions,
};
use crate::data::ReadOptions;
use crate::strategy::{Strategy, get_strategy};
use crate::units::Site;
use crate::{Error, Result};

/// `num_cycles` of a run that its caller ends, and the most that can be asked for.
pub const OPEN_ENDED: usize = 1 << 20;

/// Everything a user can ask of a run. In files all options stand side by side.
///
/// ```
/// use upgrayedd::OptimizeConfig;
/// use upgrayedd::config::PruneOptions;
///
/// let mut config = OptimizeConfig::default();
/// config.prune = PruneOptions { strategy: "fisher".into(), pruning_ratio: 0.2, ..PruneOptions::default() };
/// assert!(config.check().is_ok());
/// assert_eq!(config, OptimizeConfig::from_toml("strategy = \"fisher\"\npruning_ratio = 0.2")?);
/// assert!(OptimizeConfig::from_toml("pruning_ration = 0.2").is_err());
/// # Ok::<(), upgrayedd::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "toml::Table")]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct OptimizeConfig {
    /// The run as a whole.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Run"))]
    pub run: RunOptions,
    /// What is learned from and measured on.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Data"))]
    pub data: SourceOptions,
    /// How it is read.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten))]
    pub read: ReadOptions,
    /// What goes.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Prune"))]
    pub prune: PruneOptions,
    /// What comes back.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Grow"))]
    pub grow: GrowOptions,
    /// Repair by least squares.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Refit"))]
    pub refit: RefitOptions,
    /// How the weights learn.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Learn"))]
    pub learn: LearnOptions,
    /// What is measured, and what becomes of it.
    #[serde(flatten)]
    #[cfg_attr(feature = "cli", command(flatten, next_help_heading = "Measure"))]
    pub measure: MeasureOptions,
}

impl OptimizeConfig {
    /// The names of all options.
    pub fn names() -> Vec<&'static str> {
        [
            RunOptions::NAMES,
            SourceOptions::NAMES,
            ReadOptions::NAMES,
            PruneOptions::NAMES,
            GrowOptions::NAMES,
            RefitOptions::NAMES,
            LearnOptions::NAMES,
            MeasureOptions::NAMES,
        ]
        .concat()
    }

    /// Reads options from TOML; those that it does not name have their defaults.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] for a text that is not TOML and for a value of a wrong type, and
    /// [`Error::UnknownName`] for a name that is no option.
    pub fn from_toml(text: &str) -> Result<Self> {
        let table: toml::Table = toml::from_str(text)
            .map_err(|e| Error::malformed(e.to_string().trim_end().replace('\n', " ")))?;
        Self::try_from(table)
    }

    /// Checks all values but the strategy and its parameters ([`Self::build_strategy`]), before anything is read.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for a number that has no meaning, and [`Error::UnknownName`] for
    /// `units` that cannot be pruned.
    pub fn check(&self) -> Result<()> {
        self.prune.check()?;
        self.grow.check()?;
        self.learn.check()?;
        let Self { run, measure, .. } = self;
        Device::check_name(&run.device)?;
        run.precision.parse::<Precision>()?;
        more_than_zero(&[
            ("num_cycles", run.num_cycles as f64),
            ("max_eval_windows", measure.max_eval_windows.map_or(1.0, |n| n as f64)),
            ("eval_every", measure.eval_every.map_or(1.0, |n| n as f64)),
            ("patience", measure.patience as f64),
            ("checkpoint_every", run.checkpoint_every.map_or(1.0, |n| n as f64)),
            ("threads", run.threads.map_or(1.0, |n| n as f64)),
        ])?;
        at_most(&[("num_cycles", run.num_cycles, OPEN_ENDED), ("threads", run.threads.unwrap_or(1), 4096)])?;
        at_most(&[("samples", measure.samples, 1000)])?;
        zero_or_more(&[("max_loss_increase", measure.max_loss_increase.unwrap_or(0.0))])
    }

    /// The device that is asked for.
    ///
    /// # Errors
    /// Returns [`Error::Device`] if it cannot be used.
    pub fn open_device(&self) -> Result<Device> {
        // Where weights are read from files, all of them are the CPU's.
        if self.run.memory.is_some() && self.run.device == "auto" {
            return Ok(Device::cpu());
        }
        Ok(Device::open(&self.run.device, self.run.precision.parse()?)?)
    }

    /// Refuses a model without data and data without a model, unless they are given otherwise.
    pub(crate) fn check_sources(&self, model_given: bool, data_given: bool) -> Result<()> {
        let (model, data) =
            (self.run.model.is_some() || model_given, !self.data.data.is_empty() || data_given);
        if model && !data {
            return Err(Error::does_not_fit(
                "no data: name at least one file to learn from (.txt, .jsonl, .parquet, .tsv, .csv; with labels for classifiers)",
            ));
        }
        if !model && (data || self.data.eval_data.is_some()) {
            return Err(Error::does_not_fit(
                "data without a model: name the model too (\"builtin\" for the built-in one), or leave both out",
            ));
        }
        Ok(())
    }

    /// The strategy with its parameters, checked.
    ///
    /// # Errors
    /// Returns what [`get_strategy`] returns: for a strategy or a parameter that there is not, and for a
    /// value that a parameter cannot have.
    pub fn build_strategy(&self) -> Result<Box<dyn Strategy>> {
        let options =
            self.prune.strategy_option.iter().map(|option| (option.name.clone(), option.value.clone()));
        get_strategy(&self.prune.strategy, options.collect())
    }
}

impl TryFrom<toml::Table> for OptimizeConfig {
    type Error = Error;

    fn try_from(mut table: toml::Table) -> Result<Self> {
        let names = Self::names();
        if let Some((name, value)) = table.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            return Err(match value {
                toml::Value::Table(_) => Error::malformed(format!(
                    "[{name}] is no option: options stand at the top level, not in tables"
                )),
                _ => Error::unknown_name("option", name, &names),
            });
        }
        Ok(Self {
            run: take(&mut table, RunOptions::NAMES)?,
            data: take(&mut table, SourceOptions::NAMES)?,
            read: take(&mut table, ReadOptions::NAMES)?,
            prune: take(&mut table, PruneOptions::NAMES)?,
            grow: take(&mut table, GrowOptions::NAMES)?,
            refit: take(&mut table, RefitOptions::NAMES)?,
            learn: take(&mut table, LearnOptions::NAMES)?,
            measure: take(&mut table, MeasureOptions::NAMES)?,
        })
    }
}

/// The options of these names; what is wrong with one is said by its name.
fn take<T: DeserializeOwned>(table: &mut toml::Table, names: &[&str]) -> Result<T> {
    let own: toml::Table = names.iter().filter_map(|name| table.remove_entry(*name)).collect();
    serde_path_to_error::deserialize(toml::Value::Table(own)).map_err(|error| {
        let mut message = error.inner().message().trim_end().to_owned();
        // serde speaks of Rust's types.
        for (rust, plain) in [
            ("expected usize", "expected a whole number, 0 or more"),
            ("expected u64", "expected a whole number, 0 or more"),
            ("expected f64", "expected a number"),
            ("expected a sequence", "expected a list"),
            ("expected path string", "expected a path"),
            ("expected a boolean", "expected true or false"),
        ] {
            message = message.replace(rust, plain);
        }
        Error::malformed(format!("{}: {message}", error.path()))
    })
}

impl PruneOptions {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for a number that has no meaning, and [`Error::UnknownName`] for
    /// `units` that cannot be pruned.
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.pruning_ratio) {
            return Err(Error::out_of_range(
                "pruning_ratio",
                self.pruning_ratio,
                "at least 0 and less than 1",
            ));
        }
        if self.units.contains(Site::Head) && self.units.contains(Site::KvGroup) {
            return Err(Error::malformed(
                "units has heads and kv-groups, which are made of heads: expected one of them",
            ));
        }
        if self.min_heads < 1 {
            return Err(Error::out_of_range("min_heads", self.min_heads, "at least 1"));
        }
        more_than_zero(&[
            ("pruning_steps", self.pruning_steps.map_or(1.0, |n| n as f64)),
            ("multiple", self.multiple as f64),
        ])?;
        at_most(&[("pruning_steps", self.pruning_steps.unwrap_or(1), MANY)])
    }
}

impl GrowOptions {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for a number that has no meaning.
    pub fn check(&self) -> Result<()> {
        more_than_zero(&[("growth_lr_multiplier", self.growth_lr_multiplier)])?;
        shares(&[("growth_ratio", self.growth_ratio), ("gate_warmup", self.gate_warmup)])
    }
}

impl LearnOptions {
    /// Checks the values.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for a number that has no meaning.
    pub fn check(&self) -> Result<()> {
        more_than_zero(&[
            ("epochs_per_cycle", self.epochs_per_cycle as f64),
            ("batch_size", self.batch_size as f64),
            ("gradient_accumulation", self.gradient_accumulation as f64),
            ("learning_rate", self.learning_rate.unwrap_or(1.0)),
            ("max_gradient_norm", self.max_gradient_norm),
            ("distill_temperature", self.distill_temperature),
        ])?;
        at_most(&[
            ("batch_size", self.batch_size, MANY),
            ("gradient_accumulation", self.gradient_accumulation, MANY),
            ("epochs_per_cycle", self.epochs_per_cycle, MANY),
        ])?;
        zero_or_more(&[("weight_decay", self.weight_decay)])?;
        shares(&[("distill", self.distill.unwrap_or(0.0))])
    }
}

/// More than anybody means: what is beyond it is a slip.
const MANY: usize = 1 << 20;

fn more_than_zero(values: &[(&str, f64)]) -> Result<()> {
    match values.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
        Some((name, value)) => Err(Error::out_of_range(name, value, "more than 0")),
        None => Ok(()),
    }
}

fn zero_or_more(values: &[(&str, f64)]) -> Result<()> {
    match values.iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
        Some((name, value)) => Err(Error::out_of_range(name, value, "0 or more")),
        None => Ok(()),
    }
}

fn at_most(values: &[(&str, usize, usize)]) -> Result<()> {
    match values.iter().find(|(_, value, limit)| value > limit) {
        Some((name, value, limit)) => Err(Error::out_of_range(name, value, format!("at most {limit}"))),
        None => Ok(()),
    }
}

fn shares(values: &[(&str, f64)]) -> Result<()> {
    match values.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
        Some((name, value)) => Err(Error::out_of_range(name, value, "0 to 1")),
        None => Ok(()),
    }
}
