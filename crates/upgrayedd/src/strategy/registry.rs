//! The strategies there are.

use super::definition::{Options, Strategy, StrategyInfo};
use super::{entropy, magnitude, random, scored};
use crate::{Error, Result};

/// Every built-in strategy, in the order in which messages and documents name them.
pub const ALL: [&StrategyInfo; 12] = [
    &scored::AUTO,
    &random::INFO,
    &entropy::INFO,
    &magnitude::INFO,
    &scored::GRADIENT,
    &scored::TAYLOR,
    &scored::FISHER,
    &scored::TASK,
    &scored::WANDA,
    &scored::SIMILARITY,
    &scored::SURGEON,
    &scored::LOSS_IMPACT,
];

/// The strategy called `name`, with checked parameters.
///
/// # Errors
/// Returns [`Error::UnknownName`] if there is no such strategy, [`Error::Malformed`] for a parameter that it
/// does not have or whose value has a wrong type, and [`Error::OutOfRange`] for a value that has no meaning.
pub fn get_strategy(name: &str, options: Options) -> Result<Box<dyn Strategy>> {
    let info = ALL
        .into_iter()
        .find(|s| s.name == name)
        .ok_or_else(|| Error::unknown_name("strategy", name, &ALL.map(|s| s.name)))?;
    (info.build)(options)
}
