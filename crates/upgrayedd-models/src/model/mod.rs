//! A model, and what can be computed with it: one forward pass for all families, losses, generation, what it
//! costs.

mod attention_map;
mod batch;
mod cost;
mod forward;
mod generate;
mod loss;
mod spilled;
mod state;
mod sublayer;
mod text;

pub use batch::{Batch, Distill, Hooks, KvCache, LayerVars, Look};
pub use cost::Cost;
pub use generate::{GenerateOptions, Generation};
pub use state::{Companions, Model};
