//! Where weights come from.

use upgrayedd_nn::Tensor;

use crate::Result;
use crate::files::DType;

/// Weights by their Hugging Face names: in a folder's files, or in memory.
pub trait Weights {
    /// Every name.
    fn names(&self) -> Vec<String>;
    /// Shape of one tensor.
    fn shape(&self, name: &str) -> Result<Vec<usize>>;
    /// Element type of one tensor.
    fn dtype(&self, name: &str) -> Result<DType>;
    /// One tensor as `f32`; anything not finite is refused.
    fn read(&self, name: &str) -> Result<Tensor>;
    /// One tensor in its own type and place, if that can be had; anything not finite is refused.
    fn stored(&self, _name: &str) -> Result<Option<Tensor>> {
        Ok(None)
    }
}
