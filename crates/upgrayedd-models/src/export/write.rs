//! Writing a model in formats, with what goes along.

use std::path::Path;

use super::card::{CARD, card};
use super::companions::write_companions;
use super::format::{Format, Kind, check_together};
use super::spelling::older_tokenizer;
use crate::Result;
use crate::files::{DType, read_text, write_file, write_folder};
use crate::model::Model;

/// Writes the model as a new folder `out`, which appears whole or not at all: each weight in the type that it
/// has ([`Model::dtype_of`]), or all of them in one.
///
/// # Errors
/// Returns [`crate::Error::File`] if `out` exists or a file beside the model is a link out of its folder,
/// [`crate::Error::Io`] if the system cannot read or write, [`crate::Error::NotFinite`] if a weight is too
/// large for its type or not finite, [`crate::Error::Unsupported`] for a model that the format does not have, and what a format
/// of the caller's own returns.
pub fn export(model: &Model, format: &'static Format, dtype: Option<DType>, out: &Path) -> Result<()> {
    export_all(model, &[format], dtype, out, None)
}

/// The same in several formats, with a model card of the caller's own if there is one.
///
/// # Errors
/// As [`export`]; and [`crate::Error::DoesNotFit`] for two formats that would both be the folder.
pub fn export_all(
    model: &Model,
    formats: &[&'static Format],
    dtype: Option<DType>,
    out: &Path,
    own_card: Option<&str>,
) -> Result<()> {
    check_together(formats)?;
    write_folder(out, |dir| {
        // What else is there knows of config.json then.
        let (folders, others): (Vec<&Format>, Vec<&Format>) =
            formats.iter().copied().partition(|format| format.kind == Kind::Folder);
        for format in folders.iter().chain(&others) {
            (format.write)(model, dtype, dir)?;
        }
        if formats.iter().any(|format| format.kind != Kind::File) {
            write_companions(model, dir)?;
            spell_tokenizer(&dir.join("tokenizer_config.json"))?;
        }
        let text = own_card.map_or_else(|| card(model, formats, dtype), str::to_owned);
        write_file(&dir.join(CARD), text.as_bytes())
    })
}

/// Has transformers 4 read the tokenizer as well.
fn spell_tokenizer(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    older_tokenizer(&read_text(path)?).map_or(Ok(()), |text| write_file(path, text.as_bytes()))
}
