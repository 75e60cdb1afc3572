//! Pages about runs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use upgrayedd::Error;
use upgrayedd::files::write_file_anew;
use upgrayedd::report::{Log, Page, REPORT_FILE, page};

use crate::args::ReportArgs;
use crate::text;

/// What a page of ours has in its head.
const OURS: &str = "<meta name=\"generator\" content=\"Upgrayedd";

pub fn run(args: &ReportArgs) -> Result<()> {
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join(REPORT_FILE),
        (None, _) => {
            return Err(Error::does_not_fit(
                "--out FILE is missing: a page of several runs is in none of them",
            )
            .into());
        }
    };
    let logs = open(&args.runs)?;
    check_replaceable(&out)?;
    write_file_anew(&out, page(&logs, Page::Kept)?.as_bytes())?;
    text::print(&out.display().to_string());
    Ok(())
}

/// Reads all runs.
pub fn open(runs: &[PathBuf]) -> upgrayedd::Result<Vec<Log>> {
    runs.iter().map(|run| Log::open(run)).collect()
}

/// A page of ours may be made anew; what somebody else wrote stays.
fn check_replaceable(out: &Path) -> upgrayedd::Result<()> {
    match std::fs::read(out) {
        Ok(bytes) if String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).contains(OURS) => Ok(()),
        Ok(_) => Err(Error::bad_file(
            out,
            "exists and is no page of this program: choose another place or remove it first",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(out, "read")(error)),
    }
}
