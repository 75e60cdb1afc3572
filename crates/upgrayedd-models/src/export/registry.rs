//! The formats there are.

use super::format::{Format, check_together};
use super::gguf::{GGUF, GGUF_Q8_0};
use super::hf::{HF, HF_DENSE, HF_V4};
use super::onnx::ONNX;
use crate::Result;
use crate::registry::{Named, Registry};

static FORMATS: Registry<Format> = Registry::new(&[&HF, &HF_DENSE, &HF_V4, &GGUF, &GGUF_Q8_0, &ONNX]);

impl Named for Format {
    const KIND: &'static str = "format";

    fn name(&self) -> &'static str {
        self.name
    }
}

/// Every format, in the order in which messages name them.
pub fn all() -> Vec<&'static Format> {
    FORMATS.all()
}

/// Adds a format of the caller's own.
///
/// # Errors
/// Returns [`crate::Error::DoesNotFit`] if the name is taken.
pub fn register(format: &'static Format) -> Result<()> {
    FORMATS.register(format)
}

/// The formats of a list of names, `hf,onnx`, that can be in one folder.
///
/// # Errors
/// Returns [`crate::Error::UnknownName`] if there is no such format, and what [`check_together`] returns.
pub fn listed(names: &str) -> Result<Vec<&'static Format>> {
    let formats = names.split(',').map(|name| named(name.trim())).collect::<Result<Vec<_>>>()?;
    check_together(&formats)?;
    Ok(formats)
}

/// The format called `name`.
///
/// # Errors
/// Returns [`crate::Error::UnknownName`] if there is no such format.
pub fn named(name: &str) -> Result<&'static Format> {
    FORMATS.named(name)
}
