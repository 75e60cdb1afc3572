//! A run as a page to look at: what came out, what went where, what happened meanwhile, how to do it again.
//!
//! In goes a run folder, complete or not; out comes one HTML file that needs no network and has no script of its own. Every
//! number is read from `events.jsonl`, `summary.json` and `run.toml`. Imports events, records and run folders, and nothing
//! that computes.

mod chart;
mod fate;
mod importance;
mod log;
mod map;
mod page;
mod show;
mod table;

use std::path::Path;

use crate::Result;
use crate::files::write_file_anew;

pub use log::Log;
pub use page::{Page, body, page};
pub use show::{counted, grouped};
pub use table::{Row, measured_on, rows};

/// The page's file in a run folder.
pub const REPORT_FILE: &str = "report.html";

/// Writes the page of a run into its folder, in place of the one that is there.
///
/// # Errors
/// Returns what [`Log::open`] returns, and [`Error::Io`](crate::Error::Io) if the page cannot be written.
pub fn write(run: &Path) -> Result<()> {
    let html = page(&[Log::open(run)?], Page::Kept)?;
    write_file_anew(&run.join(REPORT_FILE), html.as_bytes())
}
