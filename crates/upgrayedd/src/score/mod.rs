//! Importance scores: a number per head. One file a score. Scores read models and data and import nothing of
//! runs.

mod context;
mod definition;
mod entropy;
mod fisher;
mod gradient;
mod loss_impact;
mod magnitude;
mod outputs;
mod random;
mod registry;
mod similarity;
mod statistics;
mod surgeon;
mod task;
mod taylor;
mod wanda;

pub use context::ScoreContext;
pub use definition::{Score, compute_all};
pub(crate) use magnitude::weights_per_head;
pub use registry::{ALL, applies, named};
pub(crate) use registry::{fisher_blocks, gate_gradients};
pub(crate) use statistics::STRETCHES;
