//! Tokenizers as Hugging Face folders have them: `tokenizer.json`, else `vocab.json` with `merges.txt`, else
//! BERT's `vocab.txt`.

mod class;
mod encode;
mod files;
mod limits;
mod parts;
mod reach;
mod special;

pub use encode::{Tokenizer, end_tokens};
pub use reach::{MOST_RUNS, Reach};
