//! What a format is, and writing a model in one.

use std::path::Path;

use super::companions::write_companions;
use super::spelling::older_tokenizer;
use crate::files::{DType, read_text, write_file, write_folder};
use crate::model::Model;
use crate::{Error, Result};

/// A format that other programs load.
#[derive(Debug)]
pub struct Format {
    /// The name on the command line.
    pub name: &'static str,
    /// One line for help texts: what it is, and who loads it.
    pub summary: &'static str,
    /// What a user of this model in the format should know.
    pub note: fn(&Model) -> String,
    /// What a folder has of it.
    pub kind: Kind,
    /// Writes into a folder: each weight in the type that it has ([`Model::dtype_of`]), or all in one.
    pub write: fn(&Model, Option<DType>, &Path) -> Result<()>,
}

/// What a folder has of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// config.json and weights, with the files that belong to the model: a folder is in one format of this kind.
    Folder,
    /// More of a folder, with the same files.
    Part,
    /// A file that needs no other.
    File,
}

/// Writes the model as a new folder `out`, which appears whole or not at all: each weight in the type that it
/// has ([`Model::dtype_of`]), or all of them in one.
///
/// # Errors
/// Returns [`Error::File`] if `out` exists or a file beside the model is a link out of its folder,
/// [`Error::Io`] if the system cannot read or write, [`Error::NotFinite`] if a weight is too
/// large for its type or not finite, [`Error::Unsupported`] for a model that the format does not have, and what a format
/// of the caller's own returns.
pub fn export(model: &Model, format: &'static Format, dtype: Option<DType>, out: &Path) -> Result<()> {
    export_all(model, &[format], dtype, out, &[])
}

/// The same in several formats, with further text files: name and contents of each.
///
/// # Errors
/// As [`export`]; and [`Error::DoesNotFit`] for two formats that would both be the folder.
pub fn export_all(
    model: &Model,
    formats: &[&'static Format],
    dtype: Option<DType>,
    out: &Path,
    more: &[(&str, &str)],
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
        more.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}

/// Checks that formats can be in one folder.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for two that would both be the folder, and for none at all.
pub fn check_together(formats: &[&'static Format]) -> Result<()> {
    let folders: Vec<&str> = formats.iter().filter(|f| f.kind == Kind::Folder).map(|f| f.name).collect();
    match (&folders[..], formats) {
        (_, []) => Err(Error::does_not_fit("format names none")),
        ([first, second, ..], _) => Err(Error::does_not_fit(format!(
            "formats {first} and {second} would both be config.json and weights of the folder: give each one of its own"
        ))),
        _ => Ok(()),
    }
}

/// Has transformers 4 read the tokenizer as well.
fn spell_tokenizer(path: &Path) -> Result<()> {
    if !path.is_file() {
        return Ok(());
    }
    older_tokenizer(&read_text(path)?).map_or(Ok(()), |text| write_file(path, text.as_bytes()))
}
