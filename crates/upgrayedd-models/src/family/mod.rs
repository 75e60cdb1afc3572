//! Model families: config.json → [`ModelSpec`](crate::spec::ModelSpec), Hugging Face tensor names ↔ canonical
//! weights. One folder a family.
//!
//! `registry.rs` has the line of each; [`register`] adds one from outside.

mod bert;
mod config;
mod definition;
mod document;
mod gpt2;
mod llama;
mod registry;
mod rope;
mod task;

pub use config::Config;
pub use definition::{Architecture, Family};
pub use document::keys_document;
pub use registry::{all, named, names, recognise, register};
pub use task::Task;

pub use crate::keys::{Fate, Keys};
