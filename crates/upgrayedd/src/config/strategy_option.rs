//! A strategy's own parameters, by name.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serializer};

use crate::{Error, Result};

/// A parameter that only some strategies have: `attention_samples=64`.
#[derive(Debug, Clone, PartialEq)]
pub struct StrategyOption {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub value: toml::Value,
}

impl FromStr for StrategyOption {
    type Err = Error;

    /// Reads `NAME=VALUE`; the value is TOML where it can be, else a string.
    fn from_str(text: &str) -> Result<Self> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| Error::malformed(format!("strategy_option {text:?}: expected NAME=VALUE")))?;
        let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"))
            .ok()
            .and_then(|mut table| table.remove("v"));
        Ok(Self { name: name.to_owned(), value: parsed.unwrap_or_else(|| value.into()) })
    }
}

/// Such parameters as a table in a file.
pub(super) fn to_table<S: Serializer>(
    options: &[StrategyOption],
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.collect_map(options.iter().map(|option| (&option.name, &option.value)))
}

/// And back.
pub(super) fn from_table<'de, D: Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<StrategyOption>, D::Error> {
    let toml::Value::Table(table) = toml::Value::deserialize(from)? else {
        return Err(serde::de::Error::custom("expected a table such as { attention_samples = 64 }"));
    };
    Ok(table.into_iter().map(|(name, value)| StrategyOption { name, value }).collect())
}
