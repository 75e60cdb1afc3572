//! What a format is.

use std::path::Path;

use crate::files::DType;
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
    /// How it is loaded, in Markdown: a block of code.
    pub usage: fn(&Model, Option<DType>) -> String,
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

/// Checks that formats can be in one folder.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for two that would both be the folder, for one twice, and for none at all.
pub fn check_together(formats: &[&'static Format]) -> Result<()> {
    let folders: Vec<&str> = formats.iter().filter(|f| f.kind == Kind::Folder).map(|f| f.name).collect();
    let before = |at: usize| formats[..at].iter().any(|format| format.name == formats[at].name);
    if let Some(at) = (0..formats.len()).find(|at| before(*at)) {
        return Err(Error::does_not_fit(format!("format {} is named twice", formats[at].name)));
    }
    match (&folders[..], formats) {
        (_, []) => Err(Error::does_not_fit("format names none")),
        ([first, second, ..], _) => Err(Error::does_not_fit(format!(
            "formats {first} and {second} would both be config.json and weights of the folder: give each one of its own"
        ))),
        _ => Ok(()),
    }
}
