//! Writing models for other programs: one file a format, and what all of them share.

mod companions;
mod format;
mod hf;

pub use companions::{COMPANIONS, MODULES, has_companions, module_folders, write_companions};
pub use format::{Format, export, export_with};
pub use hf::{tensors, with_own_config, write_weights};
