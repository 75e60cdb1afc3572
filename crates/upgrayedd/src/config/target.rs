//! What a result is to come to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::price::Currency;
use crate::{Error, Result};

/// An amount of a currency that the result is to have at most: `parameters=100M`, `macs=0.7x`.
///
/// ```
/// use upgrayedd::config::Target;
///
/// let target: Target = "parameters=1.5M".parse()?;
/// assert_eq!((target.amount_of(2e6), target.to_string()), (1.5e6, "parameters=1500000".to_owned()));
/// assert_eq!("macs=0.7x".parse::<Target>()?.amount_of(100.0), 70.0);
/// assert!("heads=3".parse::<Target>().is_err());
/// # Ok::<(), upgrayedd::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// What is counted.
    pub currency: Currency,
    amount: Amount,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Amount {
    Absolute(f64),
    /// Of what the unpruned model has.
    Share(f64),
}

const FORM: &str = "expected a budget and how much of it the result may have, as in parameters=100M, bytes=200M or macs=0.7x";

impl Target {
    /// How much of the currency that is, for a model that has `all` of it unpruned.
    pub fn amount_of(self, all: f64) -> f64 {
        match self.amount {
            Amount::Absolute(amount) => amount,
            Amount::Share(share) => share * all,
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::malformed(format!("target {text:?}: {FORM}"));
        let (currency, amount) = text.split_once('=').ok_or_else(malformed)?;
        let currency: Currency = currency.trim().parse()?;
        if currency == Currency::Units {
            return Err(Error::malformed(format!(
                "target {text:?}: a share of the units is a pruning_ratio, with schedule target one of the unpruned model"
            )));
        }
        let amount = amount.trim();
        let end = amount.chars().last().ok_or_else(malformed)?;
        let (digits, scale) = match end {
            'x' => (&amount[..amount.len() - 1], None),
            'K' => (&amount[..amount.len() - 1], Some(1e3)),
            'M' => (&amount[..amount.len() - 1], Some(1e6)),
            'G' => (&amount[..amount.len() - 1], Some(1e9)),
            _ => (amount, Some(1.0)),
        };
        let number: f64 = digits.trim().parse().map_err(|_| malformed())?;
        if !(number.is_finite() && number > 0.0) || (scale.is_none() && number > 1.0) {
            return Err(Error::out_of_range("target", amount, "more than 0, and a share at most 1x"));
        }
        let amount = scale.map_or(Amount::Share(number), |scale| Amount::Absolute(number * scale));
        Ok(Self { currency, amount })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.amount {
            Amount::Absolute(amount) => write!(f, "{}={amount}", self.currency.name()),
            Amount::Share(share) => write!(f, "{}={share}x", self.currency.name()),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}
