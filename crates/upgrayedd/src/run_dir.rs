//! The run folder: configuration, events, checkpoints and the result. Every file appears whole or not at all.
//!
//! ```text
//! run.toml              resolved configuration, versions, hashes, what is trained and measured on
//! events.jsonl          one event a line
//! base/                 config.json and tokenizer files of the model that was given, and its weights if it came from memory;
//!                       the sequences that are not learned from if a data loader gave them
//! checkpoints/          see checkpoint.rs
//! model/                the result, a Hugging Face folder
//! archive.safetensors   the heads that the result has lost
//! summary.json          before and after
//! report.html           all that to look at, see report/
//! control/              the dense model learning the same way, a run folder of its own, where that was asked for
//! .lock                 held by the process that runs
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use upgrayedd_nn::interrupt::unstoppable;

use crate::archive::ARCHIVE_FILE;
use crate::checkpoint::{self, Saved};
use crate::config::OptimizeConfig;
use crate::data::{SetAside, Split};
use crate::event::Event;
use crate::export::{HISTORY_FILE, save_history, why_not_stock, write_companions, write_weights};
use crate::files::{PARTIAL, sync_dir, write_file, write_file_anew, write_folder};
use crate::learner::Learner;
use crate::model::Model;
use crate::record::Gpu;
use crate::timings::Timings;
use crate::{Error, Result};

/// The plan and what it was made of.
pub(crate) const RUN_FILE: &str = "run.toml";
/// What happened, an event a line.
pub(crate) const EVENTS_FILE: &str = "events.jsonl";
/// Before and after.
pub(crate) const SUMMARY_FILE: &str = "summary.json";
const LOCK_FILE: &str = ".lock";
const SET_ASIDE_FILE: &str = "set_aside.json";

/// Version of a run folder's layout.
pub const RUN_FORMAT: u32 = 6;

/// `run.toml`: everything that decides the result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this file's layout.
    pub format_version: u32,
    /// Version of the program.
    pub program_version: String,
    /// blake3 over config.json, tokenizer and all weights as they were given.
    pub model_hash: String,
    /// blake3 of the training files; of data that the caller gave whatever tells it from other data.
    pub data_hash: String,
    /// blake3 of the evaluation files, if there are any of their own.
    pub eval_data_hash: Option<String>,
    /// What was passed over or taken otherwise than files say, a line each.
    #[serde(default)]
    pub notices: Vec<String>,
    /// What the run began on; absent for the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Which parts the caller gave itself; they are not in the configuration.
    #[serde(default)]
    pub given: GivenParts,
    /// Which sequences serve what.
    pub split: Split,
    /// The plan, as a configuration that makes it again.
    pub config: OptimizeConfig,
    /// For a budget in latency: the times that it goes by.
    pub timings: Option<Timings>,
    /// What started it, where that starts runs anew: the number of a torchrun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<String>,
}

/// Which parts of a run its caller made itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenParts {
    /// The model is in `base/`.
    pub model: bool,
    /// The batches came from the caller.
    pub data: bool,
    /// The decisions came from the caller.
    pub strategy: bool,
}

/// A run's folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Absent in a process that only reads what another writes.
    writer: Option<Writer>,
}

/// What the one process has that writes.
#[derive(Debug)]
struct Writer {
    events: File,
    /// The system lets go of it when the process ends, however that comes.
    _lock: File,
}

impl RunDir {
    /// Creates the folder with `run.toml` and the base model's small files. Refuses a folder that exists. A
    /// model that was given in memory leaves its weights there too, a data loader the sequences that are not
    /// learned from.
    pub fn create(path: &Path, run: &RunRecord, model: &Model, set_aside: Option<&SetAside>) -> Result<Self> {
        let text = toml::to_string_pretty(run)
            .map_err(|e| Error::malformed(format!("cannot write the configuration: {e}")))?;
        write_folder(path, |dir| {
            write_file(&dir.join(RUN_FILE), text.as_bytes())?;
            write_file(&dir.join(EVENTS_FILE), b"")?;
            for sub in ["base", "checkpoints"] {
                std::fs::create_dir(dir.join(sub)).map_err(Error::io(dir, "write"))?;
            }
            let config =
                serde_json::to_string_pretty(&model.config).map_err(|e| Error::malformed(e.to_string()))?;
            write_file(&dir.join("base/config.json"), config.as_bytes())?;
            if run.given.model {
                write_weights(model, &dir.join("base"))?;
                model.archive().save(&dir.join("base").join(ARCHIVE_FILE), &model.paths())?;
            }
            if let Some(set_aside) = set_aside {
                let json = serde_json::to_vec(set_aside).map_err(|e| Error::malformed(e.to_string()))?;
                write_file(&dir.join("base").join(SET_ASIDE_FILE), &json)?;
            }
            write_companions(model, &dir.join("base"))
        })?;
        Self::open(path)
    }

    /// Opens the folder of a run that was started before, for this process alone.
    pub fn open(path: &Path) -> Result<Self> {
        check_run(path)?;
        let lock_path = path.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let lock = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(Error::io(&lock_path, "write"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::bad_file(path, "is in use: another process runs or continues this run"));
            }
            Err(TryLockError::Error(reason)) => return Err(Error::io(&lock_path, "lock")(reason)),
        }
        for dir in [path.to_owned(), path.join("checkpoints")] {
            remove_partial(&dir)?;
        }
        let file = path.join(EVENTS_FILE);
        let events =
            OpenOptions::new().append(true).create(true).open(&file).map_err(Error::io(&file, "write"))?;
        Ok(Self { path: path.to_owned(), writer: Some(Writer { events, _lock: lock }) })
    }

    /// The folder of a run that another process writes: this one reads, and writes nothing.
    pub fn follow(path: &Path) -> Self {
        Self { path: path.to_owned(), writer: None }
    }

    /// Forgets the events from `length` bytes on.
    fn cut_events(&mut self, length: u64) -> Result<()> {
        let Some(Writer { events, .. }) = &self.writer else { return Ok(()) };
        events.set_len(length).map_err(Error::io(self.path.join(EVENTS_FILE), "write"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the model that was given left its small files, and its weights if it was given in memory.
    pub fn base(&self) -> PathBuf {
        self.path.join("base")
    }

    /// Where the result is.
    pub fn result(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Appends an event.
    pub fn write_event(&mut self, event: &Event) -> Result<()> {
        let Some(Writer { events, .. }) = &mut self.writer else { return Ok(()) };
        let path = self.path.join(EVENTS_FILE);
        let mut line = serde_json::to_vec(event).map_err(|e| Error::malformed(e.to_string()))?;
        line.push(b'\n');
        events.write_all(&line).map_err(Error::io(path, "write"))
    }

    fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Whether there is anything to continue from.
    pub fn has_checkpoint(&self) -> bool {
        checkpoint::list(&self.checkpoints()).is_ok_and(|found| !found.is_empty())
    }

    /// Saves a checkpoint, whatever is asked to stop meanwhile; all others but those called `keep` go once it
    /// is complete.
    pub fn save_checkpoint(
        &mut self,
        name: &str,
        of: &Learner,
        best: Option<&Model>,
        state: &impl Serialize,
        keep: &[String],
    ) -> Result<()> {
        let Some(Writer { events, .. }) = &self.writer else { return Ok(()) };
        let path = self.path.join(EVENTS_FILE);
        events.sync_all().map_err(Error::io(&path, "write"))?;
        let events_bytes = events.metadata().map_err(Error::io(&path, "read"))?.len();
        unstoppable(|| checkpoint::save(&self.checkpoints().join(name), of, best, state, events_bytes))?;
        for found in checkpoint::list(&self.checkpoints())? {
            let found_name = found.file_name().unwrap_or_default().to_string_lossy();
            if found_name != name && keep.iter().all(|k| *k != found_name) {
                checkpoint::remove(&found)?;
            }
        }
        Ok(())
    }

    /// Removes a checkpoint that is to be saved anew.
    pub fn forget_checkpoint(&self, name: &str) -> Result<()> {
        match self.writer {
            Some(_) => checkpoint::remove(&self.checkpoints().join(name)),
            None => Ok(()),
        }
    }

    /// Reads the newest checkpoint that is whole and cuts later events off; says in `damaged` what is wrong
    /// with newer ones. `None` if there is none, and the run starts anew. `base` is the model that the run
    /// started from.
    pub fn load_checkpoint<S: DeserializeOwned>(
        &mut self,
        base: &Model,
        weight_decay: f64,
        damaged: &mut Vec<Error>,
    ) -> Result<Option<Saved<S>>> {
        let written =
            std::fs::metadata(self.path.join(EVENTS_FILE)).map_err(Error::io(&self.path, "read"))?.len();
        for dir in checkpoint::list(&self.checkpoints())?.into_iter().rev() {
            match checkpoint::load::<S>(&dir, base, weight_decay) {
                Ok(saved) if saved.events_bytes <= written => {
                    self.cut_events(saved.events_bytes)?;
                    return Ok(Some(saved));
                }
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Ok(_) => damaged.push(Error::bad_file(
                    &dir,
                    format!("{EVENTS_FILE} does not reach as far as this checkpoint"),
                )),
                Err(error) => damaged.push(error),
            }
        }
        if damaged.is_empty() {
            self.cut_events(0)?;
            return Ok(None);
        }
        Err(Error::bad_file(
            self.checkpoints(),
            "every checkpoint is damaged: bring one back from a backup, or remove them all to start the run anew",
        ))
    }

    /// Reads the checkpoint after so many cycles, to which the one under way may be rolled back.
    pub fn load_cycle<S: DeserializeOwned>(
        &self,
        cycles: usize,
        base: &Model,
        weight_decay: f64,
    ) -> Result<Saved<S>> {
        checkpoint::load(&self.checkpoints().join(checkpoint::name(cycles, None)), base, weight_decay)
    }

    /// Writes the result: `model/`, the archive and `summary.json`.
    pub fn finish(
        &self,
        model: &Model,
        summary: &impl Serialize,
        export: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let Some(Writer { events, .. }) = &self.writer else { return Ok(()) };
        let result = self.result();
        if result.exists() {
            std::fs::remove_dir_all(&result).map_err(Error::io(&result, "replace"))?;
        }
        events.sync_all().map_err(Error::io(self.path.join(EVENTS_FILE), "write"))?;
        model.archive().save(&self.path.join(ARCHIVE_FILE), &model.paths())?;
        let history = self.path.join(HISTORY_FILE);
        if !model.units().is_full() && why_not_stock(model).is_none() {
            save_history(model, &history)?;
        } else if history.exists() {
            std::fs::remove_file(&history).map_err(Error::io(&history, "remove"))?;
        }
        let json = serde_json::to_vec_pretty(summary).map_err(|e| Error::malformed(e.to_string()))?;
        write_file_anew(&self.path.join(SUMMARY_FILE), &json)?;
        export(&result)?;
        sync_dir(&self.path)
    }

    /// Removes the folder of a run that failed before its first checkpoint.
    pub fn discard(self) -> Result<()> {
        match self.writer {
            Some(_) => std::fs::remove_dir_all(&self.path).map_err(Error::io(&self.path, "remove")),
            None => Ok(()),
        }
    }
}

/// Removes what a killed process left half written.
fn remove_partial(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "read"))?.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

fn check_run(path: &Path) -> Result<()> {
    if path.join(RUN_FILE).is_file() {
        return Ok(());
    }
    Err(Error::bad_file(path, "is not a run folder: it has no run.toml"))
}

/// The sequences that a run keeps because a data loader gave them.
///
/// # Errors
/// Returns [`Error::File`] if the run keeps none or its file is damaged, and [`Error::Io`] if the system
/// cannot read it.
pub fn read_set_aside(run: &Path) -> Result<SetAside> {
    let path = run.join("base").join(SET_ASIDE_FILE);
    if !path.exists() {
        return Err(Error::bad_file(
            run,
            format!("was not started with a data loader, or has lost base/{SET_ASIDE_FILE}"),
        ));
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(&path, format!("is damaged: {e}")))
}

/// Reads `run.toml`. Others may be at work on the run.
///
/// # Errors
/// Returns [`Error::File`] if `run` is no folder of a run of this program, or of another format, and
/// [`Error::Io`] if the system cannot read it.
pub fn read_run(run: &Path) -> Result<RunRecord> {
    check_run(run)?;
    let path = run.join(RUN_FILE);
    parse_run(&path, &std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?)
}

/// What the text of a `run.toml` says.
///
/// # Errors
/// Returns [`Error::File`] if the text is no run of this program, or has another format.
pub fn parse_run(path: &Path, text: &str) -> Result<RunRecord> {
    let not_ours =
        |e: toml::de::Error| Error::bad_file(path, format!("is not a run of this program: {}", e.message()));
    let table: toml::Table = toml::from_str(text).map_err(not_ours)?;
    match table.get("format_version").and_then(toml::Value::as_integer) {
        Some(version) if version != i64::from(RUN_FORMAT) => {
            Err(Error::unsupported(format!("has format {version}: this program reads {RUN_FORMAT}"))
                .of_file(path))
        }
        _ => toml::from_str(text).map_err(not_ours),
    }
}
