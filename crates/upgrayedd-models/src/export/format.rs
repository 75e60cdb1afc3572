//! The formats there are.

use std::path::Path;
use std::str::FromStr;

use super::companions::write_companions;
use super::hf;
use crate::error::unknown_name;
use crate::files::{DType, write_file, write_folder};
use crate::model::Model;
use crate::{Error, Result};

/// A format that other programs load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A Hugging Face folder, really smaller; transformers loads it with `trust_remote_code=True`.
    Hf,
    /// A Hugging Face folder in the original shape, zeros where heads were: loads anywhere, **no speed-up**.
    HfDense,
}

impl Format {
    /// Every format, in the order in which messages name them.
    pub const ALL: [Self; 2] = [Self::Hf, Self::HfDense];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::HfDense => "hf-dense",
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.map(Self::name);
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| unknown_name("format", name, &known))
    }
}

/// Writes the model as a new folder `out`, which appears whole or not at all.
pub fn export(model: &Model, format: Format, dtype: DType, out: &Path) -> Result<()> {
    export_with(model, format, dtype, out, &[])
}

/// The same with further text files: name and contents of each.
pub fn export_with(model: &Model, format: Format, dtype: DType, out: &Path, more: &[(&str, &str)]) -> Result<()> {
    write_folder(out, |dir| {
        hf::write(model, format == Format::HfDense, dtype, dir)?;
        write_companions(model, dir)?;
        more.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}
