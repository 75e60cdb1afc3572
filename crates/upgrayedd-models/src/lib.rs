//! Models and nothing about pruning runs: what a model is made of, reading and writing it, what can be
//! computed with it, and what can be taken out of it and put back.

pub mod archive;
pub mod data;
pub mod error;
pub mod export;
pub mod family;
pub mod files;
mod foreign;
mod keys;
pub mod load;
pub mod model;
mod options;
mod registry;
pub mod rng;
pub mod spec;
pub mod surgery;
pub mod tokenizer;
pub mod units;
pub mod weights;

pub use error::{Error, Result};
pub use model::Model;
pub use tokenizer::Tokenizer;
