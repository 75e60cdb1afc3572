//! Where weights come from.

use upgrayedd_nn::Tensor;

use crate::Result;
use crate::files::DType;

/// Weights by their Hugging Face names: in a folder's files, or in memory.
pub trait Weights {
    /// Every name.
    fn names(&self) -> Vec<String>;
    /// Shape of one tensor.
    ///
    /// # Errors
    /// Returns an error of the source's own; a folder's are those of
    /// [`TensorFile::shape`](crate::files::TensorFile::shape).
    fn shape(&self, name: &str) -> Result<Vec<usize>>;
    /// Element type of one tensor.
    ///
    /// # Errors
    /// Returns an error of the source's own; a folder's are those of
    /// [`TensorFile::dtype`](crate::files::TensorFile::dtype).
    fn dtype(&self, name: &str) -> Result<DType>;
    /// One tensor as `f32`; anything not finite is refused.
    ///
    /// # Errors
    /// Returns an error of the source's own; a folder's are those of
    /// [`TensorFile::read`](crate::files::TensorFile::read).
    fn read(&self, name: &str) -> Result<Tensor>;
    /// One tensor in its own type and place, if that can be had; anything not finite is refused.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn stored(&self, _name: &str) -> Result<Option<Tensor>> {
        Ok(None)
    }
}
