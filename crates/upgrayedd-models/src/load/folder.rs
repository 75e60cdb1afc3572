//! The files of a Hugging Face folder: which there are, and reading them without following a stranger's
//! links.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use upgrayedd_nn::Tensor;

use super::source::Weights;
use crate::files::{DType, TensorFile, read_json};
use crate::{Error, Result};

/// All tensors of a folder, by name.
pub(super) struct TensorFolder {
    files: Vec<TensorFile>,
    index: BTreeMap<String, usize>,
    /// What is there and not read, or not read as it is.
    pub(super) notes: Vec<String>,
}

impl Weights for TensorFolder {
    fn names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.files[self.index[name]].shape(name)
    }

    fn dtype(&self, name: &str) -> Result<DType> {
        self.files[self.index[name]].dtype(name)
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        self.files[self.index[name]].read(name)
    }

    fn stored(&self, name: &str) -> Result<Option<Tensor>> {
        self.files[self.index[name]].stored(name)
    }
}

impl TensorFolder {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        refuse_adapter(dir)?;
        let mut folder = Self { files: Vec::new(), index: BTreeMap::new(), notes: Vec::new() };
        if dir.join(WHOLE).is_file() && dir.join(INDEX).is_file() {
            folder.notes.push(format!("{WHOLE} is read, and not the shards that {INDEX} names"));
        }
        for path in weight_files(dir)? {
            let file = TensorFile::open(&path)?;
            for name in file.names() {
                if folder.index.contains_key(&name) {
                    return Err(Error::bad_file(
                        &path,
                        format!("holds the tensor {name}, which another shard holds too"),
                    ));
                }
                folder.index.insert(name, folder.files.len());
            }
            if file.is_narrowed() {
                folder
                    .notes
                    .push(format!("{} holds 64-bit numbers, which are rounded to 32 bits", path.display()));
            }
            folder.files.push(file);
        }
        Ok(folder)
    }
}

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files of an adapter.
pub const ADAPTERS: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"];
/// What to do about one.
pub const MERGE: &str = "merge it into its model with merge_and_unload() and save that, or remove it";

/// Checks that there is no adapter beside a model: that would change what transformers computes.
///
/// # Errors
/// Returns [`Error::File`] if there is one.
pub fn refuse_adapter(dir: &Path) -> Result<()> {
    match ADAPTERS.into_iter().find(|name| dir.join(name).exists()) {
        Some(name) => Err(Error::bad_file(
            dir.join(name),
            format!("is an adapter (PEFT), which is not applied: {MERGE}"),
        )),
        None => Ok(()),
    }
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let whole = dir.join(WHOLE);
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let index_path = dir.join(INDEX);
    if index_path.is_file() {
        let index = read_json(&index_path)?;
        return shard_names(&index_path, &index)?
            .into_iter()
            .map(|name| {
                let path = dir.join(name);
                if path.is_file() {
                    Ok(path)
                } else {
                    Err(Error::bad_file(&path, "is named in the index but missing: fetch the model again"))
                }
            })
            .collect();
    }
    Err(missing_weights(dir))
}

/// Says what a folder without the expected files has instead.
fn missing_weights(dir: &Path) -> Error {
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if let Some(pickle) = pickles.into_iter().find(|name| dir.join(name).exists()) {
        return Error::bad_file(
            dir.join(pickle),
            "is a Python pickle, which can run code when opened, and is not read. Convert it once with: \
             python -c \"import sys; from transformers import AutoModel as M; M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])\" OLD NEW \
             (with AutoModelForCausalLM, AutoModelForMaskedLM, … in place of AutoModel to keep the head)",
        );
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let weights = [".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx"];
    let mut found: Vec<String> = names.filter(|name| weights.iter().any(|end| name.ends_with(end))).collect();
    found.sort();
    let expected = format!("holds no model.safetensors and no {INDEX}");
    let shards = found.iter().filter(|name| name.contains("-of-") && name.ends_with(".safetensors")).count();
    Error::bad_file(
        dir,
        match (&found[..], shards) {
            ([], _) => expected,
            (_, 1..) => {
                format!(
                    "holds {shards} shards such as {} but no {INDEX}, which says what is in them: fetch it",
                    found[0]
                )
            }
            ([one], _) if one.ends_with(".safetensors") => {
                format!(
                    "{expected}, but {one}: if these are the model's weights, rename it to model.safetensors"
                )
            }
            _ => format!(
                "{expected}, but {}: expected the model's weights in safetensors under that name",
                found.join(", ")
            ),
        },
    )
}

/// The shards that an index names: plain file names, for an index from a stranger must not reach elsewhere.
///
/// # Errors
/// Returns [`Error::File`] if the index names no shards, or one that is no plain file name.
pub fn shard_names(path: &Path, index: &Value) -> Result<Vec<String>> {
    let map = index["weight_map"]
        .as_object()
        .filter(|m| !m.is_empty())
        .ok_or_else(|| Error::bad_file(path, "has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let plain =
        |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    match names.iter().find(|name| !plain(name)) {
        Some(name) => Err(Error::bad_file(
            path,
            format!("names the shard {name:?}: expected a file of the same folder"),
        )),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

/// Reads a folder's config.json.
///
/// # Errors
/// Returns [`Error::File`] if there is none or it is no JSON, and [`Error::Io`] if the system cannot read it.
pub fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    if !path.is_file() {
        return Err(Error::bad_file(dir, "is not a model folder: it has no config.json"));
    }
    read_json(&path)
}

/// Whether a folder holds a model.
pub fn is_model_folder(dir: &Path) -> bool {
    dir.join("config.json").is_file()
}
