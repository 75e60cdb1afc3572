//! Files and folders that appear whole or not at all.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// How names of what is not complete begin.
pub const PARTIAL: &str = ".partial-";

/// Writes a small file and makes sure that it is on the disk.
///
/// # Errors
/// Returns [`Error::Io`] if the system cannot write it.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).map_err(Error::io(path, "write"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(path, "write"))
}

/// Writes a file in the place of another, if there is one, which stays until the new one is whole.
///
/// # Errors
/// Returns [`Error::Io`] if the system cannot write there.
pub fn write_file_anew(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!("{PARTIAL}{name}"));
    write_file(&beside, bytes)?;
    std::fs::rename(&beside, path).map_err(Error::io(path, "write"))
}

/// Checks that a file or folder can be made there. Writes nothing that stays.
///
/// # Errors
/// Returns [`Error::File`] if there is something at `out`, and [`Error::Io`] if the folder above cannot be
/// written.
pub fn check_new(out: &Path) -> Result<()> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::bad_file(out, "already exists: choose another place or remove it first"));
    }
    let mut nearest = parent_of(out);
    while !nearest.exists() {
        nearest = parent_of(&nearest);
    }
    // The surest way to know that a folder can be written is to write.
    tempfile::Builder::new()
        .prefix(".probe-")
        .tempfile_in(&nearest)
        .map_err(Error::io(&nearest, "write in"))?;
    Ok(())
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Fills a folder beside `out` and renames it into place; on failure nothing stays.
///
/// # Errors
/// Returns [`Error::File`] if there is something at `out`, [`Error::Io`] if the system cannot write there,
/// and what `fill` returns.
pub fn write_folder(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    check_new(out)?;
    let parent = parent_of(out);
    std::fs::create_dir_all(&parent).map_err(Error::io(&parent, "create"))?;
    let temporary = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(&parent)
        .map_err(Error::io(&parent, "write in"))?;
    fill(temporary.path())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o755))
            .map_err(Error::io(out, "write"))?;
    }
    sync_dir(temporary.path())?;
    std::fs::rename(temporary.path(), out).map_err(Error::io(out, "write"))?;
    // Renamed: there is nothing left to remove.
    let _ = temporary.keep();
    sync_dir(&parent)
}

/// Makes sure that what was written or renamed in a folder is on the disk.
///
/// # Errors
/// Returns [`Error::Io`] if the system cannot write it.
pub fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir, "write"))
}
