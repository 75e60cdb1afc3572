//! The formats there are.

use std::sync::{PoisonError, RwLock};

use super::format::Format;
use super::hf::{HF, HF_DENSE};
use crate::error::unknown_name;
use crate::{Error, Result};

/// The formats of this program, in the order in which messages name them.
const OWN: [&Format; 2] = [&HF, &HF_DENSE];

/// Those that a caller has brought.
static MORE: RwLock<Vec<&'static Format>> = RwLock::new(Vec::new());

/// Every format.
pub fn all() -> Vec<&'static Format> {
    let more = MORE.read().unwrap_or_else(PoisonError::into_inner);
    OWN.into_iter().chain(more.iter().copied()).collect()
}

/// Adds a format of the caller's own. Refuses a name that is taken.
pub fn register(format: &'static Format) -> Result<()> {
    if all().iter().any(|known| known.name == format.name) {
        return Err(Error::invalid(format!("there is a format {:?} already", format.name)));
    }
    MORE.write().unwrap_or_else(PoisonError::into_inner).push(format);
    Ok(())
}

/// The format called `name`.
pub fn named(name: &str) -> Result<&'static Format> {
    let names: Vec<&str> = all().iter().map(|format| format.name).collect();
    all().into_iter().find(|format| format.name == name).ok_or_else(|| unknown_name("format", name, &names))
}
