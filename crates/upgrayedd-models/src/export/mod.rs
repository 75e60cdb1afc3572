//! Writing models for other programs: one file a format, a line in `registry.rs`, and what all of them share.

mod card;
mod companions;
mod format;
mod gguf;
mod hf;
mod history;
mod onnx;
mod registry;
mod spelling;
mod stock;
mod write;

pub use card::{CARD, Story, card_of};
pub use companions::{COMPANIONS, MODULES, has_companions, module_folders, write_companions};
pub use format::{Format, Kind, check_together};
pub use gguf::{GGUF, GGUF_Q8_0};
pub use hf::{HF, HF_DENSE, HF_V4, own_dtypes, tensors, with_own_config, write_weights};
pub use history::{HISTORY_FILE, save_history, with_history};
pub use onnx::ONNX;
pub use registry::{all, listed, named, register};
pub use stock::{why_not_heads, why_not_stock};
pub use write::{export, export_all};
