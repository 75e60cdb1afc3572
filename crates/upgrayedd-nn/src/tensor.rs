//! Dense `f32` tensors: a shape and a shared, copy-on-write buffer.

use std::sync::Arc;

use crate::pool;

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

/// A dense, row-major `f32` tensor. Clones share memory until one of them is written to.
#[derive(Debug, Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    buffer: Arc<Buffer>,
}

impl Tensor {
    /// A tensor over `data`.
    ///
    /// # Panics
    /// If `data` does not have as many elements as `shape` asks for.
    pub fn from_vec(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} does not fit the data");
        Self { shape: shape.to_vec(), buffer: Arc::new(Buffer(data)) }
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::full(shape, 0.0)
    }

    /// Zeros in memory of their own and no more than they need, not from the pool: for what lives as long as the weights.
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
        Self { shape: shape.to_vec(), buffer: Arc::new(Buffer(pool::take(shape.iter().product()))) }
    }

    /// The extent of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.buffer.0.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.buffer.0.is_empty()
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
    pub fn data(&self) -> &[f32] {
        &self.buffer.0
    }

    /// The elements for writing; copies them first if another tensor shares them.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut Arc::make_mut(&mut self.buffer).0
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "cannot reshape {:?} to {shape:?}", self.shape);
        self.shape = shape.to_vec();
        self
    }

    /// The given matrix rows, in the order given.
    pub fn take_rows(&self, rows: &[usize]) -> Self {
        let cols = self.cols();
        let mut out = Vec::with_capacity(rows.len() * cols);
        for &row in rows {
            out.extend_from_slice(&self.data()[row * cols..(row + 1) * cols]);
        }
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self::from_vec(&shape, out)
    }

    /// The given matrix columns, in the order given.
    pub fn take_cols(&self, cols: &[usize]) -> Self {
        let width = self.cols();
        let mut out = Vec::with_capacity(self.rows() * cols.len());
        for row in self.data().chunks_exact(width.max(1)) {
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
        self.shape == other.shape && self.data().iter().zip(other.data()).all(|(a, b)| a.to_bits() == b.to_bits())
    }
}
