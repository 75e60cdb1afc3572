//! Text, JSONL, Parquet, TSV, CSV and labelled examples → token batches; training, calibration and held-out
//! parts never overlap.

mod chat;
mod dataset;
mod documents;
mod labelled;
mod masking;
mod options;
mod record;
mod records;
mod rows;
mod source;
mod table;
mod text;
mod tokens;

pub use dataset::{Dataset, Split, check_length, many_unknown};
pub use options::{ChatLoss, DataOptions, Documents, Pass, ReadOptions};
pub use rows::{Row, Targets};
pub use source::{BatchSource, DatasetBatches, Part, RunData, SetAside, TakeBatch};
pub use tokens::cache_dir;
