//! The fused ops that model families compose: one file an op, each with its backward.

mod activation;
mod add;
mod attention;
mod embedding;
mod gate;
mod linear;
mod loss;
mod norm;
mod rope;
mod scale;

pub use crate::kernels::{Activation, AttentionShape, EntropyProbe, IGNORE, Number};
pub use activation::{activation, gated_activation};
pub use add::add;
pub use attention::{AttentionInputs, attention, attention_with_entropy};
pub use embedding::{embedding, mean_rows, select_rows, write_rows};
pub use gate::gate;
pub use linear::{gram, linear, linear_over, multiply};
pub use loss::{
    Head, Loss, Teacher, binary_cross_entropy, combine, cross_entropy, distillation, relative_distance,
    squared_error,
};
pub use norm::{layer_norm, rms_norm};
pub use rope::{RopeTable, rope};
pub use scale::{scale, soft_cap};
