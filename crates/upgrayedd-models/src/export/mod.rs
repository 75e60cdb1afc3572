//! Writing models for other programs: one file a format, a line in `registry.rs`, and what all of them share.

mod companions;
mod format;
mod gguf;
mod hf;
mod onnx;
mod registry;
mod spelling;
mod stock;

pub use companions::{COMPANIONS, MODULES, has_companions, module_folders, write_companions};
pub use format::{Format, Kind, check_together, export, export_all};
pub use gguf::{GGUF, GGUF_Q8_0};
pub use hf::{HF, HF_DENSE, HF_V4, own_dtypes, tensors, with_own_config, write_weights};
pub use onnx::ONNX;
pub use registry::{all, listed, named, register};
pub use stock::{why_not_heads, why_not_stock};
