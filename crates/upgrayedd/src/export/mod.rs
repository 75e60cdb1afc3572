//! Writing models for other programs: one file a format, and what all of them share.

mod companions;
mod hf;
pub mod safetensors_file;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::model::{DType, Model};
use crate::{Error, Result};

pub(crate) use companions::{COMPANIONS, MODULES, has_companions, module_folders, write_companions};
pub(crate) use hf::write_weights;
pub use hf::{tensors, with_own_config};

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
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| crate::error::unknown_name("format", name, &known))
    }
}

/// Writes the model as a new folder `out`, which appears whole or not at all.
pub fn export(model: &Model, format: Format, dtype: DType, out: &Path) -> Result<()> {
    export_with(model, format, dtype, out, &[])
}

/// The same with further text files: name and contents of each.
pub(crate) fn export_with(model: &Model, format: Format, dtype: DType, out: &Path, more: &[(&str, &str)]) -> Result<()> {
    write_folder(out, |dir| {
        hf::write(model, format == Format::HfDense, dtype, dir)?;
        write_companions(model, dir)?;
        more.iter().try_for_each(|(name, text)| write_file(&dir.join(name), text.as_bytes()))
    })
}

/// How names of what is not complete begin.
pub(crate) const PARTIAL: &str = ".partial-";

/// Writes a small file and makes sure that it is on the disk.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path).map_err(Error::io(path, "write"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(path, "write"))
}

/// Refuses a target that exists, or whose parent cannot take it. Writes nothing that stays.
pub fn check_new(out: &Path) -> Result<()> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::bad_file(out, "already exists: choose another --out or remove it first"));
    }
    let mut nearest = parent_of(out);
    while !nearest.exists() {
        nearest = parent_of(&nearest);
    }
    // The surest way to know that a folder can be written is to write.
    tempfile::Builder::new().prefix(".probe-").tempfile_in(&nearest).map_err(Error::io(&nearest, "write in"))?;
    Ok(())
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Fills a folder beside `out` and renames it into place; on failure nothing stays.
pub(crate) fn write_folder(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    check_new(out)?;
    let parent = parent_of(out);
    std::fs::create_dir_all(&parent).map_err(Error::io(&parent, "create"))?;
    let temporary = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&parent).map_err(Error::io(&parent, "write in"))?;
    fill(temporary.path())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o755)).map_err(Error::io(out, "write"))?;
    }
    sync_dir(temporary.path())?;
    std::fs::rename(temporary.path(), out).map_err(Error::io(out, "write"))?;
    // Renamed: there is nothing left to remove.
    let _ = temporary.keep();
    sync_dir(&parent)
}

pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir, "write"))
}
