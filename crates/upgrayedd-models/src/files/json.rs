//! Reading small files of a model's folder without following a stranger's links.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result};

/// The largest JSON file of a model folder that is read; the longest in use are tokenizers of some ten
/// megabytes.
const LARGEST_JSON: u64 = 256 << 20;

/// Reads a JSON file of a model folder.
///
/// # Errors
/// Returns [`Error::File`] if the file is no JSON, is too large or is a link out of its folder, and
/// [`Error::Io`] if the system cannot read it.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = read_text(path)?;
    let mark = if text.starts_with('\u{feff}') {
        " (it begins with a byte order mark: save it without)"
    } else {
        ""
    };
    serde_json::from_str(&text).map_err(|e| Error::bad_file(path, format!("is not valid JSON: {e}{mark}")))
}

/// Reads a text file of a model folder.
///
/// # Errors
/// Returns [`Error::File`] if the file is too large or a link out of its folder, and [`Error::Io`] if the
/// system cannot read it or it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    check_link(path)?;
    let size = path.metadata().map_err(Error::io(path, "read"))?.len();
    if size > LARGEST_JSON {
        return Err(Error::bad_file(path, format!("has {size} bytes: at most {LARGEST_JSON} are read")));
    }
    std::fs::read_to_string(path).map_err(Error::io(path, "read"))
}

/// Checks that a file of a model folder is no link to somewhere else: what a stranger's folder links to is
/// the user's own, and would be read, or copied into the result. Links into the blobs of a Hub cache are how
/// that keeps its files.
///
/// # Errors
/// Returns [`Error::File`] for a link out of the folder, and [`Error::Io`] for one that leads nowhere.
pub fn check_link(path: &Path) -> Result<()> {
    let is_link = path.symlink_metadata().is_ok_and(|m| m.file_type().is_symlink());
    if !is_link {
        return Ok(());
    }
    let target = path.canonicalize().map_err(Error::io(path, "follow the link"))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(Error::io(folder, "read"))?;
    // The folder is a snapshot, or one in a snapshot.
    let snapshots =
        folder.ancestors().skip(1).take(2).find(|p| p.file_name().is_some_and(|n| n == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    if target.starts_with(&folder) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    Err(Error::bad_file(
        path,
        format!(
            "is a link out of the model's folder, to {}: put a copy of the file in its place",
            target.display()
        ),
    ))
}

/// The object in a JSON file; null if there is no such file.
///
/// # Errors
/// Returns [`Error::File`] if the file holds no object, and what [`read_json`] returns.
pub fn read_optional_json(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    match read_json(path)? {
        object @ Value::Object(_) => Ok(object),
        _ => Err(Error::bad_file(path, "is no object: expected keys and values")),
    }
}
