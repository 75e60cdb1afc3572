//! The run folder: configuration, events, checkpoints and the result. Every file appears whole or not at all.
//!
//! ```text
//! run.toml              resolved configuration, versions, hashes, what is trained and measured on
//! events.jsonl          one event a line
//! base/                 config.json and tokenizer files of the model that was given, and its weights if it came from memory
//! checkpoints/cycle-N/  weights, archive and optimiser as f32, and state.json
//! model/                the result, a Hugging Face folder
//! archive.safetensors   the heads that the result has lost
//! summary.json          before and after
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use upgrayedd_nn::optim::AdamW;
use upgrayedd_nn::{ParamSet, Tensor};

use crate::event::Event;
use crate::export::{safetensors_file, sync_dir, write_companions, write_file, write_folder, write_weights};
use crate::heads::{HeadMap, LayerHeads};
use crate::model::{DType, Model, TensorFile};
use crate::surgery::Archive;
use crate::train::lane_count;
use crate::{Error, Result};

/// The removed heads of a run's result.
pub const ARCHIVE_FILE: &str = "archive.safetensors";
const RUN_FILE: &str = "run.toml";
const EVENTS_FILE: &str = "events.jsonl";

/// A run's folder.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    events: File,
}

/// The optimiser's history of one parameter, beside its moments.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LaneState {
    name: String,
    steps: Vec<u64>,
    lr_scale: Vec<f32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CheckpointFile<S> {
    format_version: u32,
    heads: Vec<Vec<usize>>,
    lanes: Vec<LaneState>,
    events_bytes: u64,
    state: S,
}

impl RunDir {
    /// Creates the folder with `run.toml` and the base model's small files. Refuses a folder that exists.
    /// A model that was given in memory leaves its weights there too.
    pub fn create(path: &Path, run: &impl Serialize, model: &Model, keep_weights: bool) -> Result<Self> {
        let text = toml::to_string_pretty(run).map_err(|e| Error::invalid(format!("cannot write the configuration: {e}")))?;
        write_folder(path, |dir| {
            write_file(&dir.join(RUN_FILE), text.as_bytes())?;
            write_file(&dir.join(EVENTS_FILE), b"")?;
            for sub in ["base", "checkpoints"] {
                std::fs::create_dir(dir.join(sub)).map_err(Error::io(dir, "write"))?;
            }
            let config = serde_json::to_string_pretty(&model.config).map_err(|e| Error::invalid(e.to_string()))?;
            write_file(&dir.join("base/config.json"), config.as_bytes())?;
            if keep_weights {
                write_weights(model, &dir.join("base"))?;
                model.archive.save(&dir.join("base").join(ARCHIVE_FILE))?;
            }
            write_companions(model, &dir.join("base"))
        })?;
        Self::open_events(path, None)
    }

    /// Opens the folder of a run that was started before.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.join(RUN_FILE).is_file() {
            return Err(Error::bad_file(path, "is not a run folder: it has no run.toml"));
        }
        for dir in [path.to_owned(), path.join("checkpoints")] {
            remove_partial(&dir)?;
        }
        Self::open_events(path, None)
    }

    fn open_events(path: &Path, truncate: Option<u64>) -> Result<Self> {
        let file = path.join(EVENTS_FILE);
        let events = OpenOptions::new().append(true).create(true).open(&file).map_err(Error::io(&file, "write"))?;
        if let Some(length) = truncate {
            events.set_len(length).map_err(Error::io(&file, "write"))?;
        }
        Ok(Self { path: path.to_owned(), events })
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

    /// Reads `run.toml`.
    pub fn read_run<T: DeserializeOwned>(&self) -> Result<T> {
        let path = self.path.join(RUN_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        toml::from_str(&text).map_err(|e| Error::bad_file(&path, format!("is not a run of this program: {}", e.message())))
    }

    /// Appends an event.
    pub fn write_event(&mut self, event: &Event) -> Result<()> {
        let path = self.path.join(EVENTS_FILE);
        let mut line = serde_json::to_vec(event).map_err(|e| Error::invalid(e.to_string()))?;
        line.push(b'\n');
        self.events.write_all(&line).map_err(Error::io(path, "write"))
    }

    fn checkpoints(&self) -> Result<Vec<PathBuf>> {
        let dir = self.path.join("checkpoints");
        let entries = std::fs::read_dir(&dir).map_err(Error::io(&dir, "read"))?;
        let complete = |path: &PathBuf| {
            let named = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("cycle-"));
            named && path.join("state.json").is_file()
        };
        let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(complete).collect();
        found.sort();
        Ok(found)
    }

    /// Whether there is anything to continue from.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoints().is_ok_and(|c| !c.is_empty())
    }

    /// Saves model, archive, optimiser and state after a cycle; older checkpoints go once the new one is complete.
    pub fn save_checkpoint(&mut self, cycle: usize, model: &Model, optim: &AdamW, state: &impl Serialize) -> Result<()> {
        let events = self.path.join(EVENTS_FILE);
        self.events.sync_all().map_err(Error::io(&events, "write"))?;
        let events_bytes = self.events.metadata().map_err(Error::io(&events, "read"))?.len();
        let older = self.checkpoints()?;
        let target = self.path.join("checkpoints").join(format!("cycle-{cycle:04}"));
        write_folder(&target, |dir| {
            let params = || model.params.ids().map(|id| (model.params.name(id).to_owned(), id));
            let weights = params().map(|(name, id)| (name, model.params.get(id).clone())).collect();
            safetensors_file::write(&dir.join("weights.safetensors"), weights, DType::F32, Default::default())?;
            model.archive.save(&dir.join(ARCHIVE_FILE))?;
            let moments = params().flat_map(|(name, id)| {
                let state = &optim.states[id.index()];
                let named = |kind: &str, t: &Option<Tensor>| t.clone().map(|t| (format!("{kind}.{name}"), t));
                [named("m", &state.m), named("v", &state.v)].into_iter().flatten().collect::<Vec<_>>()
            });
            safetensors_file::write(&dir.join("optimizer.safetensors"), moments.collect(), DType::F32, Default::default())?;
            let lanes = params().map(|(name, id)| {
                let state = &optim.states[id.index()];
                LaneState { name, steps: state.steps.clone(), lr_scale: state.lr_scale.clone() }
            });
            let file = CheckpointFile {
                format_version: 1,
                heads: model.heads.layers().iter().map(|l: &LayerHeads| l.active().to_vec()).collect(),
                lanes: lanes.collect(),
                events_bytes,
                state,
            };
            let json = serde_json::to_vec(&file).map_err(|e| Error::invalid(e.to_string()))?;
            write_file(&dir.join("state.json"), &json)
        })?;
        for old in older {
            std::fs::remove_dir_all(&old).map_err(Error::io(&old, "remove"))?;
        }
        Ok(())
    }

    /// Continues from the newest checkpoint: puts weights, heads, archive and optimiser back and cuts later events off.
    /// `model` must be the run's base model. `None` if no cycle has been completed.
    pub fn load_checkpoint<S: DeserializeOwned>(
        &mut self,
        model: Model,
        optim: impl FnOnce(&Model) -> AdamW,
    ) -> Result<(Model, AdamW, Option<S>)> {
        let Some(dir) = self.checkpoints()?.pop() else {
            *self = Self::open_events(&self.path, Some(0))?;
            let optim = optim(&model);
            return Ok((model, optim, None));
        };
        let state_path = dir.join("state.json");
        let bytes = std::fs::read(&state_path).map_err(Error::io(&state_path, "read"))?;
        let file: CheckpointFile<S> =
            serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(&state_path, format!("is damaged: {e}")))?;
        if file.format_version != 1 {
            return Err(Error::bad_file(&state_path, format!("has format {}: this program reads 1", file.format_version)));
        }
        let heads = HeadMap::from_active(model.spec.num_heads, model.spec.num_kv_heads, file.heads)
            .map_err(|e| Error::bad_file(&state_path, e.to_string()))?;
        let weights = TensorFile::open(&dir.join("weights.safetensors"))?;
        let mut params = ParamSet::default();
        for id in model.params.ids() {
            let name = model.params.name(id);
            let tensor = weights.read(name)?;
            if tensor.shape() != model.spec.shape_of(name, &heads) {
                return Err(Error::bad_file(
                    &dir,
                    format!("{name} has shape {:?}: the checkpoint does not fit the run's model", tensor.shape()),
                ));
            }
            params.add(name, tensor);
        }
        let mut restored = Model::from_params(model.spec, model.config, params, heads, model.dtype);
        restored.companions = model.companions;
        restored.archive = Archive::load(&dir.join(ARCHIVE_FILE), &restored)?;
        let mut optim = optim(&restored);
        read_moments(&dir, &restored, &mut optim, file.lanes)?;
        *self = Self::open_events(&self.path, Some(file.events_bytes))?;
        Ok((restored, optim, Some(file.state)))
    }

    /// Writes the result: `model/`, the archive and `summary.json`.
    pub fn finish(&self, archive: &Archive, summary: &impl Serialize, export: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let result = self.result();
        if result.exists() {
            std::fs::remove_dir_all(&result).map_err(Error::io(&result, "replace"))?;
        }
        archive.save(&self.path.join(ARCHIVE_FILE))?;
        let json = serde_json::to_vec_pretty(summary).map_err(|e| Error::invalid(e.to_string()))?;
        let path = self.path.join("summary.json");
        let beside = self.path.join(".summary.json");
        write_file(&beside, &json)?;
        std::fs::rename(&beside, &path).map_err(Error::io(&path, "write"))?;
        export(&result)?;
        sync_dir(&self.path)
    }

    /// Removes the folder of a run that failed before its first checkpoint.
    pub fn discard(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).map_err(Error::io(&self.path, "remove"))
    }
}

/// Removes what a killed process left half written.
fn remove_partial(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "read"))?.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(".partial-") {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

fn read_moments(dir: &Path, model: &Model, optim: &mut AdamW, lanes: Vec<LaneState>) -> Result<()> {
    let file = TensorFile::open(&dir.join("optimizer.safetensors"))?;
    let names = file.names()?;
    let damaged = || Error::bad_file(dir, "the optimiser's state does not fit the weights: the checkpoint is damaged");
    if lanes.len() != model.params.len() {
        return Err(damaged());
    }
    for (id, lane) in model.params.ids().zip(lanes) {
        let name = model.params.name(id);
        let (weight, state) = (model.params.get(id), &mut optim.states[id.index()]);
        let count = lane_count(weight, state.lanes);
        if lane.name != name || lane.steps.len() != count || lane.lr_scale.len() != count {
            return Err(damaged());
        }
        (state.steps, state.lr_scale) = (lane.steps, lane.lr_scale);
        for (kind, moment) in [("m", &mut state.m), ("v", &mut state.v)] {
            let key = format!("{kind}.{name}");
            if names.contains(&key) {
                let tensor = file.read(&key)?;
                if tensor.shape() != weight.shape() {
                    return Err(damaged());
                }
                *moment = Some(tensor);
            }
        }
    }
    Ok(())
}
