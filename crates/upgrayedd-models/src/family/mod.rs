//! Model families: config.json → [`ModelSpec`](crate::spec::ModelSpec), Hugging Face tensor names ↔ canonical weights. One file a family.

mod bert;
mod config;
mod definition;
mod document;
mod gpt2;
mod llama;
mod registry;
mod rope;

pub use definition::{Family, Task};
pub use document::keys_document;
pub use registry::{ALL, named, recognise};
