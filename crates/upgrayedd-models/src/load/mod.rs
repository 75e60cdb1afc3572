//! Reading models: config.json, safetensors whole or sharded, names that wrappers have changed.

mod folder;
mod names;
mod read;
mod source;

pub use folder::{ADAPTERS, MERGE, is_model_folder, read_config, refuse_adapter, shard_names};
pub use read::LoadOptions;
pub use source::Weights;

pub(crate) use read::units_from_config;
