//! What a format is, and writing a model in one.

use std::path::Path;

use super::companions::write_companions;
use super::spelling::older_tokenizer;
use crate::Result;
use crate::files::{DType, read_text, write_file, write_folder};
use crate::model::Model;

/// A format that other programs load.
#[derive(Debug)]
pub struct Format {
    /// The name on the command line.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// What a user of this model in the format should know.
    pub note: fn(&Model) -> String,
    /// Whether the files that belong to the model go along: tokenizer, modules.
    pub with_companions: bool,
    /// Writes config and weights into an empty folder: each weight in the type that it has
    /// ([`Model::dtype_of`]), or all in one.
    pub write: fn(&Model, Option<DType>, &Path) -> Result<()>,
}

/// Writes the model as a new folder `out`, which appears whole or not at all: each weight in the type that it
/// has ([`Model::dtype_of`]), or all of them in one.
///
/// # Errors
/// Returns [`crate::Error::File`] if `out` exists or a file beside the model is a link out of its folder,
/// [`crate::Error::Io`] if the system cannot read or write, [`crate::Error::NotFinite`] if a weight is too
/// large for its type or not finite, and what a format of the caller's own returns.
pub fn export(model: &Model, format: &Format, dtype: Option<DType>, out: &Path) -> Result<()> {
    export_with(model, format, dtype, out, &[])
}

/// The same with further text files: name and contents of each.
///
/// # Errors
/// As [`export`].
pub fn export_with(
    model: &Model,
    format: &Format,
    dtype: Option<DType>,
    out: &Path,
    more: &[(&str, &str)],
) -> Result<()> {
    write_folder(out, |dir| {
        (format.write)(model, dtype, dir)?;
        if format.with_companions {
            write_companions(model, dir)?;
            spell_tokenizer(&dir.join("tokenizer_config.json"))?;
        }
        more.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}

/// Has transformers 4 read the tokenizer as well.
fn spell_tokenizer(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    older_tokenizer(&read_text(path)?).map_or(Ok(()), |text| write_file(path, text.as_bytes()))
}
