//! Strategies: which heads go, and in which layers heads come back. One file a strategy; a registry that CLI
//! and Python list.

mod definition;
mod entropy;
mod magnitude;
mod random;
mod registry;
mod scored;

pub use definition::{
    GrowView, Options, PruneView, Strategy, StrategyInfo, by_gain, by_mean, spread, within_budget,
};
pub use registry::{ALL, get_strategy};
