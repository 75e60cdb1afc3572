//! One safetensors file: f32, f16, bf16, and f64 rounded to f32.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use upgrayedd_nn::{Source, Tensor};

use super::dtype::DType;
use super::json::check_link;
use super::mapped::Mapped;
use crate::{Error, Result};

/// A safetensors file, mapped and checked.
pub struct TensorFile {
    path: PathBuf,
    map: Arc<Mapped>,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl TensorFile {
    /// Maps a file and checks its header: lengths, offsets and overlaps.
    ///
    /// # Errors
    /// Returns [`Error::File`] if the file is damaged, is no safetensors file or is a link out of its folder,
    /// and [`Error::Io`] if the system cannot read it.
    pub fn open(path: &Path) -> Result<Self> {
        check_link(path)?;
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let map = Mapped::new(&file).map_err(Error::io(path, "read"))?;
        let (length, header) = SafeTensors::read_metadata(map.bytes()).map_err(|e| {
            Error::bad_file(
                path,
                format!("not a valid safetensors file ({e}): it is damaged or incomplete, fetch it again"),
            )
        })?;
        Ok(Self { path: path.to_owned(), map: Arc::new(map), header, data: size_of::<u64>() + length })
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The metadata of the header.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header.metadata().clone().unwrap_or_default().into_iter().collect()
    }

    /// Shape of one tensor.
    ///
    /// # Errors
    /// Returns [`Error::File`] if there is no such tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.info(name)?.shape.clone())
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header
            .info(name)
            .ok_or_else(|| Error::bad_file(&self.path, format!("tensor {name} is not in the file")))
    }

    /// Element type of one tensor; f64 counts as f32, as which it is read.
    ///
    /// # Errors
    /// Returns [`Error::File`] if there is no such tensor, or its type is not read.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        match self.info(name)?.dtype {
            // Nobody computes in f64, and nothing else is wide enough.
            Dtype::F32 | Dtype::F64 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            other => Err(Error::bad_file(
                &self.path,
                format!(
                    "tensor {name} is stored as {other:?}: expected F32, F16 or BF16, so save the model dequantised"
                ),
            )),
        }
    }

    /// Whether some tensor is wider than what it is read as.
    pub fn is_narrowed(&self) -> bool {
        self.header.tensors().values().any(|info| info.dtype == Dtype::F64)
    }

    /// One tensor as `f32`. The file's pages are let go again.
    ///
    /// # Errors
    /// Returns [`Error::File`] if there is no such tensor, its type is not read, or a value is not finite.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let (dtype, info) = (self.dtype(name)?, self.info(name)?);
        let (start, end) = info.data_offsets;
        let range = self.data + start..self.data + end;
        let mut out = vec![0.0f32; info.shape.iter().product()];
        match info.dtype {
            Dtype::F64 => narrow(&self.map.bytes()[range.clone()], &mut out),
            _ => convert(&self.map.bytes()[range.clone()], dtype, &mut out),
        }
        self.map.let_go(range);
        if let Some(at) = out.par_iter().position_first(|v| !v.is_finite()) {
            return Err(self.not_finite(name, at, out[at]));
        }
        Ok(Tensor::from_vec(&info.shape, out))
    }

    /// One tensor where it lies, in its own type. `None` for types that are read as another.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn stored(&self, name: &str) -> Result<Option<Tensor>> {
        let (dtype, info) = (self.dtype(name)?, self.info(name)?);
        if info.dtype == Dtype::F64 {
            return Ok(None);
        }
        let start = self.data + info.data_offsets.0;
        let range = start..self.data + info.data_offsets.1;
        const CHUNK: usize = 1 << 18;
        let chunks = self.map.bytes()[range.clone()].par_chunks(CHUNK).enumerate();
        let found = chunks.find_map_first(|(chunk, bytes)| {
            let mut wide = vec![0.0f32; bytes.len() / dtype.size()];
            convert(bytes, dtype, &mut wide);
            let at = wide.iter().position(|v| !v.is_finite())?;
            Some((chunk * CHUNK / dtype.size() + at, wide[at]))
        });
        self.map.let_go(range);
        if let Some((at, value)) = found {
            return Err(self.not_finite(name, at, value));
        }
        Ok(Some(Tensor::stored(&info.shape, self.map.clone(), start, dtype.format())))
    }

    /// One tensor in memory, in its own type if that has 16 bits: for files that may go while it is in use.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn copied(&self, name: &str) -> Result<Tensor> {
        match self.stored(name)? {
            Some(stored) if self.dtype(name)? != DType::F32 => {
                let bytes = stored.stored_bytes().unwrap_or_default().to_vec();
                let copy = Tensor::stored(stored.shape(), Arc::new(bytes), 0, self.dtype(name)?.format());
                stored.let_go();
                Ok(copy)
            }
            _ => self.read(name),
        }
    }

    fn not_finite(&self, name: &str, at: usize, value: f32) -> Error {
        Error::bad_file(
            &self.path,
            format!(
                "tensor {name} holds {value} at element {at}: the checkpoint is damaged or its training diverged"
            ),
        )
    }
}

fn narrow(bytes: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(bytes.as_chunks::<8>().0).for_each(|(o, b)| *o = f64::from_le_bytes(*b) as f32);
}

fn convert(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    const CHUNK: usize = 1 << 16;
    out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * dtype.size())).for_each(
        |(out, bytes)| match dtype {
            DType::F32 => {
                out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(o, b)| *o = f32::from_le_bytes(*b))
            }
            DType::F16 => out
                .iter_mut()
                .zip(bytes.as_chunks::<2>().0)
                .for_each(|(o, b)| *o = half::f16::from_le_bytes(*b).to_f32()),
            DType::BF16 => out
                .iter_mut()
                .zip(bytes.as_chunks::<2>().0)
                .for_each(|(o, b)| *o = half::bf16::from_le_bytes(*b).to_f32()),
        },
    );
}
