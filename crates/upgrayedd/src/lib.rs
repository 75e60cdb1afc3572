//! Upgrayedd: smaller, faster Hugging Face transformers by *neural plasticity cycles*.

pub mod budget;
pub mod builtin;
pub mod config;
pub mod data;
mod error;
pub mod eval;
pub mod event;
pub mod export;
pub mod family;
pub mod grow;
pub mod heads;
mod hub;
pub mod model;
pub mod pipeline;
pub mod rng;
pub mod run_dir;
pub mod score;
pub mod strategy;
pub mod surgery;
pub mod tokenizer;
pub mod train;

pub use config::OptimizeConfig;
pub use error::{Error, Result};
pub use model::Model;
pub use pipeline::{Pipeline, Summary};
pub use tokenizer::Tokenizer;
pub use upgrayedd_nn as nn;
