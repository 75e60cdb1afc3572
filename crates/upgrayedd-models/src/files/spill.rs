//! Tensors that are not to stay in memory, in files without names.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use upgrayedd_nn::{Format, Tensor};

use super::dtype::DType;
use super::mapped::Mapped;
use crate::{Error, Result};

/// A folder for tensors that are not to stay in memory. Its files have no names, and are gone when nobody reads them
/// any more or the program ends.
#[derive(Debug, Clone)]
pub struct Spill {
    dir: PathBuf,
}

/// Tensors in a file begin at multiples of this.
const ALIGNMENT: usize = 64;

impl Spill {
    /// Files go to `dir`, which is there.
    pub fn to(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// [`Self::keep_all`] of one.
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the system cannot write there.
    pub fn keep(&self, tensor: &Tensor) -> Result<Tensor> {
        // As many come out as went in.
        Ok(self.keep_all(std::slice::from_ref(tensor))?.swap_remove(0))
    }

    /// The same tensors, each in the type that it has, in one file. Pages of it stay in memory while they are looked
    /// at, and until [`Tensor::let_go`].
    ///
    /// # Errors
    /// Returns [`Error::Io`] if the system cannot write there.
    pub fn keep_all(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        if tensors.iter().all(Tensor::is_empty) {
            return Ok(tensors.to_vec());
        }
        let written = || {
            let file = tempfile::tempfile_in(&self.dir)?;
            let (mut writer, mut end, mut starts) = (BufWriter::new(&file), 0, Vec::new());
            for tensor in tensors {
                let bytes = DType::of(tensor.format().unwrap_or(Format::F32)).bytes(tensor);
                starts.push(end);
                writer.write_all(&bytes)?;
                let gap = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
                writer.write_all(&[0; ALIGNMENT][..gap])?;
                end += bytes.len() + gap;
                tensor.let_go();
            }
            writer.flush()?;
            drop(writer);
            Ok((Arc::new(Mapped::new(&file)?), starts))
        };
        let (map, starts) = written().map_err(Error::io(&self.dir, "write in"))?;
        let stored = |(tensor, start): (&Tensor, usize)| {
            let format = tensor.format().unwrap_or(Format::F32);
            Tensor::stored(tensor.shape(), map.clone(), start, format)
        };
        Ok(tensors.iter().zip(starts).map(stored).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_keep_their_bits_and_types_and_leave_no_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let wide = Tensor::from_vec(&[3, 2], vec![0.1, -0.0, 3.0e-40, 1.0e30, 5.0, -6.5]);
        let narrow = DType::BF16.store(&Tensor::full(&[5], 1.5)).expect("exact");
        let kept =
            Spill::to(dir.path()).keep_all(&[wide.clone(), Tensor::zeros(&[0, 4]), narrow]).expect("written");
        kept.iter().for_each(Tensor::let_go);
        assert_eq!(kept[0], wide);
        assert_eq!(kept[1].shape(), [0, 4]);
        assert_eq!((kept[2].format(), &kept[2]), (Some(Format::BF16), &Tensor::full(&[5], 1.5)));
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error =
            Spill::to(Path::new("/nowhere/at/all")).keep(&Tensor::zeros(&[2])).expect_err("no folder");
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
