//! Element types of weights.

use std::borrow::Cow;
use std::sync::Arc;

use rayon::prelude::*;
use upgrayedd_nn::{Format, Tensor};

use crate::{Error, Result, named_enum};

named_enum! {
    /// Element type in files.
    DType, "dtype" {
        /// 32-bit float.
        #[default]
        F32 = "float32",
        /// 16-bit float.
        F16 = "float16",
        /// Brain float.
        BF16 = "bfloat16",
    }
}

impl DType {
    /// All of them.
    pub(crate) const EACH: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

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
        let exact = |values: &Tensor| {
            values.to_host().data().par_iter().all(|&v| self.round(v).to_bits() == v.to_bits())
        };
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
                    Self::F16 => {
                        (half::f16::from_f32(value).to_le_bytes(), half::f16::from_f32(value).to_f32())
                    }
                    _ => (half::bf16::from_f32(value).to_le_bytes(), half::bf16::from_f32(value).to_f32()),
                };
                *bytes = stored;
                exact && back.to_bits() == value.to_bits()
            })
        });
        let exact = exact.reduce(|| true, |a, b| a && b);
        exact.then(|| Tensor::stored(values.shape(), Arc::new(bytes), 0, self.format()))
    }

    /// The elements as files have them in this type: little-endian. What is in that type already is not copied.
    pub fn bytes(self, values: &Tensor) -> Cow<'_, [u8]> {
        if let Some(bytes) = values.stored_bytes().filter(|_| values.format() == Some(self.format())) {
            return Cow::Borrowed(bytes);
        }
        if let Some(values) = values.as_f32().filter(|_| self == Self::F32 && cfg!(target_endian = "little"))
        {
            return Cow::Borrowed(bytemuck::cast_slice(values));
        }
        let wide = values.to_host();
        let values = wide.data();
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }

    /// Checks that numbers can be stored in this type.
    ///
    /// # Errors
    /// Returns [`Error::NotFinite`] for one that is not finite, or not in this type.
    pub fn check(self, name: &str, tensor: &Tensor) -> Result<()> {
        // What has been read in so few bits can be stored in them.
        if self != Self::F32 && tensor.format() == Some(self.format()) {
            return Ok(());
        }
        let wide = tensor.to_host();
        tensor.let_go();
        match wide.data().iter().find(|v| !self.round(**v).is_finite()) {
            Some(value) => Err(Error::NotFinite(format!(
                "{name} holds {value}, which {} cannot store: export as float32 or bfloat16",
                self.name()
            ))),
            None => Ok(()),
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
