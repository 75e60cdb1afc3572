//! Element types of weights.

use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use upgrayedd_nn::{Format, Tensor};

use crate::error::unknown_name;
use crate::{Error, Result};

/// Element type in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit float.
    #[serde(rename = "float32")]
    F32,
    /// 16-bit float.
    #[serde(rename = "float16")]
    F16,
    /// Brain float.
    #[serde(rename = "bfloat16")]
    BF16,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes per element.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// As the engine calls it.
    pub fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::F16 => Format::F16,
            Self::BF16 => Format::BF16,
        }
    }

    /// The type that the engine calls so.
    pub fn of(format: Format) -> Self {
        match format {
            Format::F32 => Self::F32,
            Format::F16 => Self::F16,
            Format::BF16 => Self::BF16,
        }
    }

    /// Whether this type has each of these values exactly.
    pub fn holds(self, values: &Tensor) -> bool {
        let exact = |values: &Tensor| values.to_host().data().par_iter().all(|&v| self.round(v).to_bits() == v.to_bits());
        self == Self::F32 || values.format() == Some(self.format()) || exact(values)
    }

    /// These values in 16 bits, if this is a type of so many that holds each of them exactly.
    pub fn store(self, values: &Tensor) -> Option<Tensor> {
        const CHUNK: usize = 1 << 16;
        if self == Self::F32 {
            return None;
        }
        let wide = values.to_host();
        let mut bytes = vec![0u8; 2 * wide.len()];
        let chunks = bytes.par_chunks_mut(2 * CHUNK).zip(wide.data().par_chunks(CHUNK));
        let exact = chunks.map(|(bytes, values)| {
            let pairs = bytes.as_chunks_mut::<2>().0.iter_mut().zip(values);
            pairs.fold(true, |exact, (bytes, &value)| {
                let (stored, back) = match self {
                    Self::F16 => (half::f16::from_f32(value).to_le_bytes(), half::f16::from_f32(value).to_f32()),
                    _ => (half::bf16::from_f32(value).to_le_bytes(), half::bf16::from_f32(value).to_f32()),
                };
                *bytes = stored;
                exact && back.to_bits() == value.to_bits()
            })
        });
        let exact = exact.reduce(|| true, |a, b| a && b);
        exact.then(|| Tensor::stored(values.shape(), Arc::new(bytes), 0, self.format()))
    }

    /// torch's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// The nearest value that the type can hold.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::BF16 => half::bf16::from_f32(value).to_f32(),
        }
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(|| unknown_name("dtype", name, &Self::ALL.map(Self::name)))
    }
}
