//! Dense `f32` tensors: a shape, and elements in host memory (a shared, copy-on-write buffer), in a device's
//! own, or as a file has them.

use std::any::Any;
use std::sync::Arc;

use crate::stored::{Bytes, Elements, Format, Stored};
use crate::{Result, pool};

/// Elements in host memory; goes back to the buffer pool when dropped.
#[derive(Debug)]
struct Buffer(Vec<f32>);

impl Drop for Buffer {
    fn drop(&mut self) {
        pool::give_back(std::mem::take(&mut self.0));
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = pool::take(self.0.len());
        copy.copy_from_slice(&self.0);
        Self(copy)
    }
}

/// What a device keeps in its own memory: elements, or a number. Only its kernels know what it is.
pub(crate) trait DeviceMemory: std::fmt::Debug + Send + Sync {
    /// Elements.
    fn len(&self) -> usize;
    /// Copies the elements to the host.
    fn to_host(&self) -> Vec<f32>;
    /// Copies a number to the host.
    fn number(&self) -> f64;
    /// Waits for the device, and says whether it has failed.
    fn settle(&self) -> Result<()>;
    /// The elements as `f32` where they are, if they are not.
    fn widened(&self) -> Option<Arc<dyn DeviceMemory>>;
    /// What it is, for its own device.
    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug, Clone)]
enum Storage {
    Host(Arc<Buffer>),
    Stored(Stored),
    Device(Arc<dyn DeviceMemory>),
}

/// A dense, row-major `f32` tensor. Clones share memory until one of them is written to.
///
/// Its elements are in host memory, or in that of the device whose kernels made it, or, for weights that are
/// only read, in the type and place in which a file has them. The host reads the latter two by an explicit
/// copy, [`Tensor::to_host`].
#[derive(Debug, Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

const ELSEWHERE: &str =
    "the elements are in a device's memory or in their stored type: the host reads them by to_host";

impl Tensor {
    /// A tensor over `data`.
    ///
    /// # Panics
    /// If `data` does not have as many elements as `shape` asks for.
    pub fn from_vec(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} does not fit the data");
        Self { shape: shape.to_vec(), storage: Storage::Host(Arc::new(Buffer(data))) }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::full(shape, 0.0)
    }

    /// Zeros in memory of their own and no more than they need, not from the pool: for what lives as long as
    /// the weights.
    pub(crate) fn lasting_zeros(shape: &[usize]) -> Self {
        Self::from_vec(shape, vec![0.0; shape.iter().product()])
    }

    /// A tensor whose elements are all `value`.
    pub fn full(shape: &[usize], value: f32) -> Self {
        let mut tensor = Self::scratch(shape);
        tensor.data_mut().fill(value);
        tensor
    }

    /// A tensor of unspecified contents, to be overwritten.
    pub(crate) fn scratch(shape: &[usize]) -> Self {
        Self {
            shape: shape.to_vec(),
            storage: Storage::Host(Arc::new(Buffer(pool::take(shape.iter().product())))),
        }
    }

    /// A tensor over elements as a file has them, from byte `start` of `bytes` on, which is read only:
    /// kernels widen what they read.
    ///
    /// # Panics
    /// If `bytes` do not reach so far.
    pub fn stored(shape: &[usize], bytes: Bytes, start: usize, format: Format) -> Self {
        let stored = Stored::new(bytes, start, shape.iter().product(), format);
        Self { shape: shape.to_vec(), storage: Storage::Stored(stored) }
    }

    /// What the CPU's kernels read.
    pub(crate) fn elements(&self) -> Elements<'_> {
        match &self.storage {
            Storage::Stored(stored) => stored.elements(),
            _ => Elements::F32(self.data()),
        }
    }

    /// A tensor over a device's memory.
    pub(crate) fn on_device(shape: &[usize], memory: Arc<dyn DeviceMemory>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), memory.len(), "shape {shape:?} does not fit the memory");
        Self { shape: shape.to_vec(), storage: Storage::Device(memory) }
    }

    /// The device's memory, if the elements are in one's.
    pub(crate) fn device_memory(&self) -> Option<&dyn DeviceMemory> {
        match &self.storage {
            Storage::Host(_) | Storage::Stored(_) => None,
            Storage::Device(memory) => Some(memory.as_ref()),
        }
    }

    /// The same elements where the host reads them: a copy if they are in a device's memory.
    #[must_use]
    pub fn from_device(&self) -> Self {
        if self.is_on_device() { self.to_host() } else { self.clone() }
    }

    /// The type in which the elements are stored, if they are as a file has them.
    pub fn format(&self) -> Option<Format> {
        match &self.storage {
            Storage::Stored(stored) => Some(stored.format()),
            _ => None,
        }
    }

    /// The elements, if the host has them as `f32`, in memory or in a mapped file.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.storage {
            Storage::Host(buffer) => Some(&buffer.0),
            Storage::Stored(stored) => match stored.elements() {
                Elements::F32(values) => Some(values),
                Elements::Bytes(..) => None,
            },
            Storage::Device(_) => None,
        }
    }

    /// The elements' bytes, if they are as a file has them.
    pub fn stored_bytes(&self) -> Option<&[u8]> {
        match &self.storage {
            Storage::Stored(stored) => Some(stored.as_bytes()),
            _ => None,
        }
    }

    /// Says that the elements need not stay in memory until they are read again, if a file has them.
    pub fn let_go(&self) {
        if let Storage::Stored(stored) = &self.storage {
            stored.let_go();
        }
    }

    /// Whether a file has the elements.
    pub fn is_in_file(&self) -> bool {
        matches!(&self.storage, Storage::Stored(stored) if stored.is_in_file())
    }

    /// A copy in memory, as `f32`, of elements that a file has, which is let go of; others as they are.
    #[must_use]
    pub fn in_memory(&self) -> Self {
        if !matches!(self.storage, Storage::Stored(_)) {
            return self.clone();
        }
        let copy = self.to_host();
        self.let_go();
        copy
    }

    /// As `f32`, if the elements are in another type.
    #[must_use]
    pub fn widened(&self) -> Self {
        match &self.storage {
            Storage::Stored(stored) => {
                // In memory of its own: this may last.
                let mut wide = vec![0.0; stored.len()];
                stored.elements().widen_all(&mut wide);
                Self::from_vec(&self.shape, wide)
            }
            Storage::Device(memory) => match memory.widened() {
                Some(memory) => Self { shape: self.shape.clone(), storage: Storage::Device(memory) },
                None => self.clone(),
            },
            Storage::Host(_) => self.clone(),
        }
    }

    /// Whether no other tensor shares the elements.
    pub(crate) fn is_alone(&self) -> bool {
        match &self.storage {
            Storage::Host(buffer) => Arc::strong_count(buffer) == 1,
            Storage::Stored(_) => false,
            Storage::Device(memory) => Arc::strong_count(memory) == 1,
        }
    }

    pub(crate) fn is_on_device(&self) -> bool {
        matches!(self.storage, Storage::Device(_))
    }

    pub(crate) fn is_on_host(&self) -> bool {
        matches!(self.storage, Storage::Host(_))
    }

    /// The same elements in host memory, as `f32`: a copy if they are in a device's memory or in their stored
    /// type.
    #[must_use]
    pub fn to_host(&self) -> Self {
        match &self.storage {
            Storage::Host(_) => self.clone(),
            Storage::Stored(stored) => {
                let mut wide = Self::scratch(&self.shape);
                stored.elements().widen_all(wide.data_mut());
                wide
            }
            Storage::Device(memory) => Self::from_vec(&self.shape, memory.to_host()),
        }
    }

    /// Says whether what [`Tensor::to_host`] has copied until now is what was computed.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device has failed.
    pub fn settle(&self) -> Result<()> {
        match &self.storage {
            Storage::Device(memory) => memory.settle(),
            Storage::Host(_) | Storage::Stored(_) => Ok(()),
        }
    }

    /// The extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match &self.storage {
            Storage::Host(buffer) => buffer.0.len(),
            Storage::Stored(stored) => stored.len(),
            Storage::Device(memory) => memory.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows when seen as a matrix: the product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Columns when seen as a matrix: the last axis.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The elements, row by row.
    ///
    /// # Panics
    /// If they are in a device's memory or in their stored type: copy them with [`Tensor::to_host`].
    pub fn data(&self) -> &[f32] {
        match &self.storage {
            Storage::Host(buffer) => &buffer.0,
            Storage::Stored(_) | Storage::Device(_) => unreachable!("{ELSEWHERE}"),
        }
    }

    /// The elements for writing; copies them first if another tensor shares them.
    ///
    /// # Panics
    /// As [`Tensor::data`].
    pub fn data_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::Host(buffer) => &mut Arc::make_mut(buffer).0,
            Storage::Stored(_) | Storage::Device(_) => unreachable!("{ELSEWHERE}"),
        }
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            self.len(),
            "cannot reshape {:?} to {shape:?}",
            self.shape
        );
        self.shape = shape.to_vec();
        self
    }

    /// The given matrix rows, in the order given.
    pub fn take_rows(&self, rows: &[usize]) -> Self {
        let cols = self.cols();
        let mut out = vec![0.0; rows.len() * cols];
        for (out, &row) in out.chunks_exact_mut(cols.max(1)).zip(rows) {
            self.elements().slice(row * cols..(row + 1) * cols).widen(out);
        }
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self::from_vec(&shape, out)
    }

    /// The given matrix columns, in the order given.
    pub fn take_cols(&self, cols: &[usize]) -> Self {
        let width = self.cols();
        let mut out = Vec::with_capacity(self.rows() * cols.len());
        let mut row = vec![0.0; width];
        for r in 0..self.rows() {
            self.elements().slice(r * width..(r + 1) * width).widen(&mut row);
            out.extend(cols.iter().map(|&c| row[c]));
        }
        Self::from_vec(&[self.rows(), cols.len()], out)
    }

    /// Sets the rows to zero where `mask` is 0.
    pub fn blank_rows(&mut self, mask: &[u8]) {
        let cols = self.cols().max(1);
        for (row, _) in self.data_mut().chunks_exact_mut(cols).zip(mask).filter(|(_, m)| **m == 0) {
            row.fill(0.0);
        }
    }

    /// The transpose of a matrix.
    pub fn transposed(&self) -> Self {
        let (rows, cols) = (self.rows(), self.cols());
        let mut out = vec![0.0; self.len()];
        for (r, row) in self.data().chunks_exact(cols.max(1)).enumerate() {
            for (c, &value) in row.iter().enumerate() {
                out[c * rows + r] = value;
            }
        }
        Self::from_vec(&[cols, rows], out)
    }
}

impl PartialEq for Tensor {
    /// Equal shapes and equal bits.
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        self.shape == other.shape && self.to_host().data().iter().zip(other.to_host().data()).all(same)
    }
}
