//! Checkpoints: all that a run needs to go on to the same bits, in a folder each.
//!
//! `cycle-0002` is the state after two cycles, `cycle-0002-step-000040` that after 40 steps of learning in
//! the third. The file `BLAKE3SUMS` has a checksum of every other one, as `b3sum --check` reads them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use upgrayedd_nn::{ParamSet, Tensor, interrupt};

use crate::archive::ARCHIVE_FILE;
use crate::files::{DType, PARTIAL, TensorFile, hash_file, safetensors_file, write_file, write_folder};
use crate::learner::Learner;
use crate::model::Model;
use crate::units::UnitMap;
use crate::{Error, Result, surgery};

const STATE_FILE: &str = "state.json";
const WEIGHTS_FILE: &str = "weights.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The cycle's best weights so far, where a run measures while it learns.
const BEST_FILE: &str = "best.safetensors";
const SUMS_FILE: &str = "BLAKE3SUMS";
const FORMAT: u32 = 4;

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Saved<S> {
    /// Weights, units and archive, and the optimiser.
    pub learner: Learner,
    /// The best state of the cycle that is under way, if it is another.
    pub best: Option<Model>,
    /// Whatever the run keeps beside.
    pub state: S,
    /// How far `events.jsonl` went.
    pub events_bytes: u64,
}

/// The optimiser's history of one parameter, beside its moments.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LaneState {
    name: String,
    steps: Vec<u64>,
    lr_scale: Vec<f32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StateFile<S> {
    format_version: u32,
    units: Value,
    lanes: Vec<LaneState>,
    events_bytes: u64,
    state: S,
}

/// The name of the checkpoint after so many cycles, and steps of the next.
pub fn name(cycles: usize, step: Option<u64>) -> String {
    match step {
        None => format!("cycle-{cycles:04}"),
        Some(step) => format!("cycle-{cycles:04}-step-{step:06}"),
    }
}

/// The checkpoints in `dir`, oldest first. What a killed process left half written is not among them.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io(dir, "read"))?;
    let mut found: Vec<(u64, u64, PathBuf)> = entries.filter_map(|e| place(e.ok()?.path())).collect();
    found.sort();
    Ok(found.into_iter().map(|(.., path)| path).collect())
}

fn place(path: PathBuf) -> Option<(u64, u64, PathBuf)> {
    let name = path.file_name()?.to_str()?.strip_prefix("cycle-")?;
    let (cycle, step) = name.split_once("-step-").unwrap_or((name, "0"));
    Some((cycle.parse().ok()?, step.parse().ok()?, path))
}

/// Removes a checkpoint such that what a killed process leaves of it is not taken for one.
pub fn remove(checkpoint: &Path) -> Result<()> {
    let name = checkpoint.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let aside = checkpoint.with_file_name(format!("{PARTIAL}{name}"));
    std::fs::rename(checkpoint, &aside).map_err(Error::io(checkpoint, "remove"))?;
    std::fs::remove_dir_all(&aside).map_err(Error::io(checkpoint, "remove"))
}

/// Writes a checkpoint, which appears whole or not at all. A whole one of the same name stays: a run comes to
/// the same place with the same state, so going on from either ends with the same bits. A damaged one makes
/// way.
pub fn save<S: Serialize>(
    target: &Path,
    Learner { model, optim }: &Learner,
    best: Option<&Model>,
    state: &S,
    events_bytes: u64,
) -> Result<()> {
    if target.exists() {
        if verify(target).is_ok() {
            return Ok(());
        }
        remove(target)?;
    }
    write_folder(target, |dir| {
        write_weights(&dir.join(WEIGHTS_FILE), model)?;
        if let Some(best) = best {
            write_weights(&dir.join(BEST_FILE), best)?;
        }
        model.archive().save(&dir.join(ARCHIVE_FILE), &model.paths())?;
        let named = |id| model.params().name(id).to_owned();
        let moments = model.params().ids().flat_map(|id| {
            let state = &optim.states[id.index()];
            let moment = |kind: &str, t: &Option<Tensor>| {
                t.clone().map(|t| (format!("{kind}.{}", named(id)), t, DType::F32))
            };
            [moment("m", &state.m), moment("v", &state.v)].into_iter().flatten().collect::<Vec<_>>()
        });
        safetensors_file::write(&dir.join(OPTIMIZER_FILE), moments.collect(), Default::default())?;
        let lanes = model.params().ids().map(|id| {
            let state = &optim.states[id.index()];
            LaneState { name: named(id), steps: state.steps.clone(), lr_scale: state.lr_scale.clone() }
        });
        let units = model.units().record(&model.paths());
        let file = StateFile { format_version: FORMAT, units, lanes: lanes.collect(), events_bytes, state };
        let json = serde_json::to_vec(&file).map_err(|e| Error::malformed(e.to_string()))?;
        write_file(&dir.join(STATE_FILE), &json)?;
        let mut sums = String::new();
        for name in [WEIGHTS_FILE, BEST_FILE, ARCHIVE_FILE, OPTIMIZER_FILE, STATE_FILE] {
            let path = dir.join(name);
            if path.exists() {
                // Writing to a string cannot fail.
                let _ = writeln!(sums, "{}  {name}", hash_file(&path)?);
            }
        }
        write_file(&dir.join(SUMS_FILE), sums.as_bytes())
    })
}

fn write_weights(path: &Path, model: &Model) -> Result<()> {
    // As they are: what has not learned yet may have 16 bits.
    let weights = model.params().ids().map(|id| {
        let tensor = model.params().get(id);
        (model.params().name(id).to_owned(), tensor.clone(), tensor.format().map_or(DType::F32, DType::of))
    });
    safetensors_file::write(path, weights.collect(), Default::default())
}

/// Compares every file with its checksum.
fn verify(dir: &Path) -> Result<()> {
    let path = dir.join(SUMS_FILE);
    let sums = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    for name in [WEIGHTS_FILE, ARCHIVE_FILE, OPTIMIZER_FILE, STATE_FILE] {
        if !sums.lines().any(|line| line.split_once("  ").is_some_and(|(_, listed)| listed == name)) {
            return Err(Error::bad_file(&path, format!("has no checksum of {name}")));
        }
    }
    if dir.join(BEST_FILE).exists() && !sums.lines().any(|line| line.ends_with(BEST_FILE)) {
        return Err(Error::bad_file(&path, format!("has no checksum of {BEST_FILE}")));
    }
    for (sum, name) in sums.lines().filter_map(|line| line.split_once("  ")) {
        // Only what this program writes: a sum of another file would be one of somewhere else.
        let known = [WEIGHTS_FILE, BEST_FILE, ARCHIVE_FILE, OPTIMIZER_FILE, STATE_FILE].contains(&name);
        if !known || hash_file(&dir.join(name))? != sum {
            return Err(Error::bad_file(dir, format!("{name} does not have its checksum")));
        }
    }
    Ok(())
}

/// Reads a checkpoint of the run that started from `base`. Nothing is believed that does not have its
/// checksum.
pub fn load<S: DeserializeOwned>(dir: &Path, base: &Model, weight_decay: f64) -> Result<Saved<S>> {
    let (model, file) = read_model(dir, base)?;
    let best_path = dir.join(BEST_FILE);
    let best = if best_path.exists() {
        let mut best = model.clone();
        *best.params_mut() = read_weights(&best_path, base, model.units())?;
        best.move_to(base.device());
        Some(best)
    } else {
        None
    };
    let mut learner = Learner::new(model, weight_decay);
    read_moments(dir, &mut learner, file.lanes)?;
    Ok(Saved { learner, best, state: file.state, events_bytes: file.events_bytes })
}

/// The run folder that a checkpoint lies in, if `dir` is one.
pub(crate) fn run_of(dir: &Path) -> Option<PathBuf> {
    let dir = dir.canonicalize().ok()?;
    let run = dir.parent().filter(|p| p.file_name().is_some_and(|n| n == "checkpoints"))?.parent()?;
    dir.join(SUMS_FILE).is_file().then(|| run.to_owned())
}

/// The model that a checkpoint holds.
pub(crate) fn load_model(dir: &Path, base: &Model) -> Result<Model> {
    Ok(read_model::<IgnoredAny>(dir, base)?.0)
}

fn read_model<S: DeserializeOwned>(dir: &Path, base: &Model) -> Result<(Model, StateFile<S>)> {
    verify(dir)?;
    let state_path = dir.join(STATE_FILE);
    let bytes = std::fs::read(&state_path).map_err(Error::io(&state_path, "read"))?;
    let file: StateFile<S> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::bad_file(&state_path, format!("is damaged: {e}")))?;
    if file.format_version != FORMAT {
        let found = format!("has format {}: this program reads {FORMAT}", file.format_version);
        return Err(Error::unsupported(found).of_file(&state_path));
    }
    let heads = base.spec().full_units().with_record(&file.units, &base.paths());
    let heads = heads.map_err(|e| Error::bad_file(&state_path, e.to_string()))?;
    let params = read_weights(&dir.join(WEIGHTS_FILE), base, &heads)?;
    let mut model = Model::from_params(
        base.family(),
        base.spec().clone(),
        base.config.clone(),
        params,
        heads,
        base.dtype(),
    )?;
    model.set_dtypes_of(base);
    model.companions = base.companions.clone();
    model.origin = base.origin.clone();
    model.move_to(base.device());
    if let Some(reference) = base.reference() {
        model.set_reference(reference.clone())?;
    }
    model.set_archive(surgery::load_archive(&dir.join(ARCHIVE_FILE), &model)?);
    if let Some(spill) = base.spill() {
        model.set_spill(spill.clone())?;
    }
    Ok((model, file))
}

fn read_weights(path: &Path, base: &Model, heads: &UnitMap) -> Result<ParamSet> {
    let weights = TensorFile::open(path)?;
    let mut params = ParamSet::default();
    for id in base.params().ids() {
        interrupt::check()?;
        let name = base.params().name(id);
        let tensor = weights.copied(name)?;
        if tensor.shape() != base.weight(id).shape(heads) {
            let shape = tensor.shape();
            return Err(Error::bad_file(
                path,
                format!("{name} has shape {shape:?}: the checkpoint does not fit the run's model"),
            ));
        }
        params.add(name, tensor);
    }
    Ok(params)
}

fn read_moments(dir: &Path, Learner { model, optim }: &mut Learner, lanes: Vec<LaneState>) -> Result<()> {
    let file = TensorFile::open(&dir.join(OPTIMIZER_FILE))?;
    let names = file.names();
    let damaged =
        || Error::bad_file(dir, "the optimiser's state does not fit the weights: the checkpoint is damaged");
    if lanes.len() != model.params().len() {
        return Err(damaged());
    }
    for (id, lane) in model.params().ids().zip(lanes) {
        let name = model.params().name(id);
        let (weight, state) = (model.params().get(id), &mut optim.states[id.index()]);
        let count = state.lanes.count(weight);
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
                *moment = Some(model.device().upload(tensor));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_checksum_is_not_believed() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut sums = String::new();
        for name in [WEIGHTS_FILE, ARCHIVE_FILE, OPTIMIZER_FILE, STATE_FILE] {
            std::fs::write(dir.path().join(name), name).expect("written");
            let _ = writeln!(sums, "{}  {name}", hash_file(&dir.path().join(name)).expect("read"));
        }
        std::fs::write(dir.path().join(SUMS_FILE), &sums).expect("written");
        assert!(verify(dir.path()).is_ok());
        std::fs::write(dir.path().join(BEST_FILE), "another's").expect("written");
        let refused = verify(dir.path()).expect_err("it has no checksum").to_string();
        assert!(refused.contains(BEST_FILE), "{refused}");
    }
}
