//! What a user asks of a run, under the same names on the command line, in a TOML file and in `run.toml`; and
//! the plan that is made of it.

mod command;
mod derived;
mod optimize;
mod options;
mod plan;
mod size;
mod strategy_option;
mod target;

pub(crate) use command::shown_name;
pub use optimize::{OPEN_ENDED, OptimizeConfig};
pub use options::{
    GrowOptions, LearnOptions, MeasureOptions, PruneOptions, RefitOptions, RunOptions, SourceOptions,
};
pub(crate) use plan::CostGoals;
pub use plan::Plan;
pub use size::Size;
pub use strategy_option::StrategyOption;
pub use target::Target;
