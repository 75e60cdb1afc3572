//! Model families: config.json → [`ModelSpec`](crate::spec::ModelSpec), Hugging Face tensor names ↔ canonical
//! weights. One folder a family.
//!
//! `registry.rs` has the line of each; [`register`] adds one from outside.

mod bert;
mod config;
mod decoder;
mod definition;
mod distilbert;
mod document;
mod encoder;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod modeling;
mod modernbert;
mod mpnet;
mod olmo2;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod registry;
mod roberta;
mod rope;
mod shape;
mod smollm3;
mod task;

pub use config::Config;
pub use definition::{Architecture, Family, TokenizerClass};
pub use document::keys_document;
pub use modeling::Modeling;
pub use registry::{all, named, names, recognise, register};
pub use shape::{Heads, Shape};
pub use task::Task;

pub use crate::keys::{Fate, Keys};
