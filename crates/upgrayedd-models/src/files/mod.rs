//! Files of models: small ones read with care, weights mapped, and everything written whole or not at all.
//! Imports nothing but errors.

mod dtype;
mod hash;
mod json;
mod mapped;
pub mod safetensors_file;
mod spill;
mod tensor_file;
mod write;

pub use dtype::DType;
pub use hash::hash_file;
pub use json::{check_link, read_json, read_optional_json, read_text};
pub use spill::Spill;
pub use tensor_file::TensorFile;
pub use write::{PARTIAL, check_new, sync_dir, write_file, write_file_anew, write_folder};
