//! Elements as a file has them: read only, in their own type, widened where they are used.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::profile::Tasks;
use crate::simd::simd;

/// Element types of files; numbers are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// Brain float: the upper half of a 32-bit one.
    BF16,
}

impl Format {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Memory that holds such elements.
pub trait Source: Send + Sync {
    /// All of it.
    fn bytes(&self) -> &[u8];
    /// Whether it is a file's.
    fn is_file(&self) -> bool;
    /// Says that these bytes need not stay in this process's memory until they are read again: of a mapped file.
    fn let_go(&self, range: Range<usize>);
}

impl Source for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn is_file(&self) -> bool {
        false
    }

    /// There is nowhere to read them again.
    fn let_go(&self, _: Range<usize>) {}
}

/// Such memory, which several tensors share.
pub type Bytes = Arc<dyn Source>;

/// Elements somewhere in such memory.
#[derive(Clone)]
pub(crate) struct Stored {
    bytes: Bytes,
    range: Range<usize>,
    format: Format,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} elements as {:?}", self.len(), self.format)
    }
}

impl Stored {
    /// # Panics
    /// If the memory does not reach so far.
    pub(crate) fn new(bytes: Bytes, start: usize, elements: usize, format: Format) -> Self {
        let range = start..start + elements * format.size();
        assert!(range.end <= bytes.bytes().len(), "stored elements beyond their memory");
        Self { bytes, range, format }
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len() / self.format.size()
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes.bytes()[self.range.clone()]
    }

    pub(crate) fn is_in_file(&self) -> bool {
        self.bytes.is_file()
    }

    pub(crate) fn let_go(&self) {
        self.bytes.let_go(self.range.clone());
    }

    pub(crate) fn elements(&self) -> Elements<'_> {
        let bytes = self.as_bytes();
        match bytemuck::try_cast_slice(bytes) {
            Ok(values) if self.format == Format::F32 && cfg!(target_endian = "little") => {
                Elements::F32(values)
            }
            _ => Elements::Bytes(bytes, self.format),
        }
    }
}

/// Elements as the CPU's kernels read them.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    Bytes(&'a [u8], Format),
}

impl<'a> Elements<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bytes(bytes, format) => bytes.len() / format.size(),
        }
    }

    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::Bytes(bytes, format) => {
                let size = format.size();
                Self::Bytes(&bytes[range.start * size..range.end * size], format)
            }
        }
    }

    /// [`Self::widen`] on all threads.
    pub(crate) fn widen_all(self, to: &mut [f32]) {
        const CHUNK: usize = 1 << 16;
        to.par_chunks_mut(CHUNK).enumerate().for_each_task(|(i, to)| {
            simd(
                #[inline(always)]
                || self.slice(i * CHUNK..i * CHUNK + to.len()).widen(to),
            );
        });
    }

    /// Writes all of them into `to`, which has as many.
    #[inline(always)]
    pub(crate) fn widen(self, to: &mut [f32]) {
        match self {
            Self::F32(values) => to.copy_from_slice(values),
            Self::Bytes(bytes, Format::F32) => {
                to.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(to, b)| *to = f32::from_le_bytes(*b));
            }
            Self::Bytes(bytes, Format::F16) => {
                to.iter_mut()
                    .zip(bytes.as_chunks::<2>().0)
                    .for_each(|(to, b)| *to = from_f16(u16::from_le_bytes(*b)));
            }
            Self::Bytes(bytes, Format::BF16) => {
                let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                to.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(to, b)| *to = wide(b));
            }
        }
    }
}

/// The same number in 32 bits.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // Exponents of 16 bits are 112 smaller. Multiplying is exact for normal numbers and for those below.
    let value = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    let value = if rest >= 0x7c00 { f32::from_bits(0x7f80_0000 | rest << 13) } else { value };
    f32::from_bits(value.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_number_is_the_same_in_32() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (from_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#06x}");
            let mut wide = [0.0f32];
            Elements::Bytes(&bits.to_le_bytes(), Format::BF16).widen(&mut wide);
            let theirs = half::bf16::from_bits(bits).to_f32();
            assert!(
                wide[0].to_bits() == theirs.to_bits() || wide[0].is_nan() && theirs.is_nan(),
                "{bits:#06x}"
            );
        }
    }
}
