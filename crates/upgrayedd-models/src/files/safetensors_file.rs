//! Writing safetensors: beside the target first, then renamed, so that a file appears whole or not at all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::{Dtype, View};
use upgrayedd_nn::Tensor;

use super::dtype::DType;
use super::write::PARTIAL;
use crate::{Error, Result};

struct Stored {
    tensor: Tensor,
    dtype: DType,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.dtype.bytes(&self.tensor);
        if self.tensor.format().is_none() {
            return bytes;
        }
        // Of a file one tensor at a time is in memory.
        let copy = bytes.into_owned();
        self.tensor.let_go();
        Cow::Owned(copy)
    }

    fn data_len(&self) -> usize {
        self.tensor.len() * self.dtype.size()
    }
}

/// Writes tensors, each in the element type beside it.
///
/// # Errors
/// Returns [`Error::NotFinite`] for a value that its type cannot hold, [`Error::Io`] if the system cannot
/// write the file, and [`Error::File`] if the format cannot hold the tensors.
pub fn write(
    path: &Path,
    tensors: Vec<(String, Tensor, DType)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    for (name, tensor, dtype) in &tensors {
        dtype.check(name, tensor)?;
    }
    let on_device = tensors.iter().map(|(_, tensor, _)| tensor.clone()).next();
    let dir = path.parent().unwrap_or(Path::new("."));
    // A folder, since the library writes beside the file that it is given and renames, too.
    let temporary =
        tempfile::Builder::new().prefix(PARTIAL).tempdir_in(dir).map_err(Error::io(dir, "write in"))?;
    let file = temporary.path().join("file");
    let views = tensors.into_iter().map(|(name, tensor, dtype)| (name, Stored { tensor, dtype }));
    let failed = |e: safetensors::SafeTensorError| match e {
        safetensors::SafeTensorError::IoError(reason) => {
            Error::Io { path: path.to_owned(), action: "write", reason }
        }
        other => Error::bad_file(path, format!("cannot write: {other}")),
    };
    // Neither tensors nor metadata, but a place for metadata: that would be written as broken JSON.
    let metadata = Some(metadata).filter(|m| !m.is_empty());
    safetensors::serialize_to_file(views, metadata, &file).map_err(failed)?;
    // Copies of a device that has failed are not what they should be.
    on_device.map_or(Ok(()), |tensor| tensor.settle())?;
    // A file that others cannot read is of no use: temporary files are private by default.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))
            .map_err(Error::io(path, "write"))?;
    }
    std::fs::File::open(&file).and_then(|f| f.sync_all()).map_err(Error::io(path, "write"))?;
    std::fs::rename(&file, path).map_err(Error::io(path, "write"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::TensorFile;

    #[test]
    fn a_file_without_tensors_can_be_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("empty.safetensors");
        write(&path, Vec::new(), HashMap::new()).expect("written");
        assert!(TensorFile::open(&path).expect("read").names().is_empty());
    }
}
