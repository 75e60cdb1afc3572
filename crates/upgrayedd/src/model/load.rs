//! Reading Hugging Face folders: config.json, safetensors whole or sharded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use upgrayedd_nn::{ParamSet, Tensor};

use super::{Companions, DType, Model, ModelSpec, TensorFile};
use crate::family::{self, HfTensor, Layout};
use crate::heads::HeadMap;
use crate::pipeline::Pipeline;
use crate::surgery::Archive;
use crate::{Error, Result, builtin, checkpoint, hub};

/// The key in config.json under which an optimised model keeps its heads.
pub const CONFIG_KEY: &str = "upgrayedd";

/// What the user may say about a model that its files do not.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Family, for a config.json that does not tell.
    pub family: Option<String>,
}

/// Weights by their Hugging Face names: in a folder's files, or in memory.
pub trait Weights {
    /// Every name.
    fn names(&self) -> Vec<String>;
    /// Shape of one tensor.
    fn shape(&self, name: &str) -> Result<Vec<usize>>;
    /// Element type of one tensor.
    fn dtype(&self, name: &str) -> Result<DType>;
    /// One tensor as `f32`; anything not finite is refused.
    fn read(&self, name: &str) -> Result<Tensor>;
}

/// All tensors of a folder, by name.
struct TensorFolder {
    files: Vec<TensorFile>,
    index: BTreeMap<String, usize>,
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
}

impl TensorFolder {
    fn open(dir: &Path) -> Result<Self> {
        let mut folder = Self { files: Vec::new(), index: BTreeMap::new() };
        for path in weight_files(dir)? {
            let file = TensorFile::open(&path)?;
            for name in file.names() {
                folder.index.insert(name, folder.files.len());
            }
            folder.files.push(file);
        }
        Ok(folder)
    }
}

/// The name that a tensor has among `names`: its full name or without the base prefix; a LayerNorm also under the names that
/// TensorFlow gave it.
fn find<'n>(names: &'n BTreeSet<String>, name: &str, prefix: &str) -> Option<&'n str> {
    let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    let mut candidates = [name, &old].into_iter().flat_map(|n| [n, n.strip_prefix(prefix).unwrap_or(n)]);
    candidates.find_map(|n| names.get(n)).map(String::as_str)
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let whole = dir.join("model.safetensors");
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let index_path = dir.join("model.safetensors.index.json");
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
    let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if let Some(pickle) = pickles.into_iter().find(|name| dir.join(name).exists()) {
        return Err(Error::bad_file(
            dir.join(pickle),
            "is a Python pickle, which can run code when opened, and is not read. Convert it once with: \
             python -c \"import sys; from transformers import AutoModel as M; M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])\" OLD NEW \
             (with AutoModelForCausalLM, AutoModelForMaskedLM, … in place of AutoModel to keep the head)",
        ));
    }
    Err(Error::bad_file(dir, "holds no model.safetensors and no model.safetensors.index.json"))
}

/// The shards that an index names: plain file names, for an index from a stranger must not reach elsewhere.
pub(crate) fn shard_names(path: &Path, index: &Value) -> Result<Vec<String>> {
    let map =
        index["weight_map"].as_object().filter(|m| !m.is_empty()).ok_or_else(|| Error::bad_file(path, "has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    let plain = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    match names.iter().find(|name| !plain(name)) {
        Some(name) => Err(Error::bad_file(path, format!("names the shard {name:?}: expected a file of the same folder"))),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

/// The largest JSON file of a model folder that is read; the longest in use are tokenizers of some ten megabytes.
const LARGEST_JSON: u64 = 256 << 20;

/// Reads a JSON file of a model folder.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::bad_file(path, format!("is not valid JSON: {e}")))
}

/// Reads a text file of a model folder.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    check_link(path)?;
    let size = path.metadata().map_err(Error::io(path, "read"))?.len();
    if size > LARGEST_JSON {
        return Err(Error::bad_file(path, format!("has {size} bytes: at most {LARGEST_JSON} are read")));
    }
    std::fs::read_to_string(path).map_err(Error::io(path, "read"))
}

/// Refuses a file of a model folder that is a link to somewhere else: what a stranger's folder links to is the user's own, and
/// would be read, or copied into the result. Links into the blobs of a Hub cache are how that keeps its files.
pub(crate) fn check_link(path: &Path) -> Result<()> {
    let is_link = path.symlink_metadata().is_ok_and(|m| m.file_type().is_symlink());
    if !is_link {
        return Ok(());
    }
    let target = path.canonicalize().map_err(Error::io(path, "follow the link"))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(Error::io(folder, "read"))?;
    // The folder is a snapshot, or one in a snapshot.
    let snapshots = folder.ancestors().skip(1).take(2).find(|p| p.file_name().is_some_and(|n| n == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    if target.starts_with(&folder) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(());
    }
    Err(Error::bad_file(
        path,
        format!("is a link out of the model's folder, to {}: put a copy of the file in its place", target.display()),
    ))
}

/// Reads a folder's config.json.
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

/// Finds what `--model` names: a model folder, a run folder (its result), or a Hub id.
pub fn resolve(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.is_dir() {
        let result = path.join("model");
        return match (is_model_folder(path), is_model_folder(&result)) {
            (true, _) => Ok(path.to_owned()),
            (false, true) => Ok(result),
            (false, false) if path.join("run.toml").is_file() => Err(Error::bad_file(
                path,
                format!("is a run folder without a result yet: finish it with `upgrayedd resume {name}`"),
            )),
            _ => Err(Error::bad_file(path, "is not a model folder: it has no config.json")),
        };
    }
    if path.exists() {
        return Err(Error::bad_file(
            path,
            "is a file: expected a model folder (with config.json and model.safetensors) or a Hub id",
        ));
    }
    hub::fetch_model(name)
}

impl Model {
    /// Loads a model folder, run folder, checkpoint of a run, or Hub id; `builtin` is the model that is built in.
    pub fn from_pretrained(name: &str, options: &LoadOptions) -> Result<Self> {
        if name == "builtin" && !Path::new(name).exists() {
            return builtin::model();
        }
        if let Some(run) = checkpoint::run_of(Path::new(name)) {
            return checkpoint::load_model(Path::new(name), &Pipeline::recorded(&run)?.1);
        }
        let dir = resolve(name)?;
        let mut model = Self::load(&dir, options)?;
        // The result of a run brings the heads it lost.
        let archive = dir.parent().map(|run| run.join(crate::run_dir::ARCHIVE_FILE)).filter(|a| a.is_file());
        if let (Some(path), Some("model")) = (archive, dir.file_name().and_then(|n| n.to_str())) {
            model.archive = Archive::load(&path, &model)?;
        }
        Ok(model)
    }

    /// Loads a Hugging Face folder.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        if let Some(name) = &options.family {
            family::Family::named(name)?;
        }
        let config = read_config(dir)?;
        let mut model = Self::from_weights(config, &TensorFolder::open(dir)?, options).map_err(|e| match e {
            Error::Invalid(message) => Error::bad_file(dir, message),
            other => other,
        })?;
        model.companions = Companions::Folder(dir.to_owned());
        Ok(model)
    }

    /// A model of the weights that a config.json describes, wherever they are.
    pub fn from_weights(config: Value, weights: &dyn Weights, options: &LoadOptions) -> Result<Self> {
        let names: BTreeSet<String> = weights.names().into_iter().collect();
        let spec = family::recognise(&config, &names.iter().cloned().collect::<Vec<_>>(), options.family.as_deref())?;
        let heads = heads_from_config(&config, &spec)?;
        let prefix = spec.family.base_prefix;
        let mut params = ParamSet::default();
        let mut unread: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        for tensor in spec.family.tensors(&spec) {
            match find(&names, &tensor.name, prefix) {
                Some(name) => {
                    unread.remove(name);
                    let weight = read_canonical(weights, name, &tensor, &spec, &heads)?;
                    params.add(tensor.canonical, weight);
                }
                None if tensor.optional => {}
                None => return Err(Error::invalid(format!("the weight {} is missing", tensor.name))),
            }
        }
        if let Some(name) = unread.into_iter().find(|name| spec.family.is_layer_weight(name)) {
            return Err(Error::invalid(format!(
                "holds the weight {name}, which a {} model as config.json describes it does not have: it would compute something else without it",
                spec.family.model_type
            )));
        }
        let tokens = spec.family.tensors(&spec).into_iter().find(|t| t.canonical == "embed.tokens");
        let dtype = match tokens.and_then(|t| find(&names, &t.name, prefix)) {
            Some(name) => weights.dtype(name)?,
            None => DType::F32,
        };
        Ok(Self::from_params(spec, config, params, heads, dtype))
    }
}

fn heads_from_config(config: &Value, spec: &ModelSpec) -> Result<HeadMap> {
    let Some(ours) = config.get(CONFIG_KEY) else {
        let pruned = config["pruned_heads"].as_object().is_some_and(|p| !p.is_empty());
        return if pruned { pruned_by_transformers(config, spec) } else { Ok(spec.full_heads()) };
    };
    let version = ours["format_version"].as_u64();
    if version != Some(1) {
        return Err(Error::invalid(format!(
            "config.json: {CONFIG_KEY}.format_version is {}: this program reads version 1",
            ours["format_version"]
        )));
    }
    let active: Vec<Vec<usize>> = serde_json::from_value(ours["heads"].clone())
        .map_err(|e| Error::invalid(format!("config.json: {CONFIG_KEY}.heads: {e}")))?;
    if active.len() != spec.num_layers {
        return Err(Error::invalid(format!(
            "config.json: {CONFIG_KEY}.heads lists {} layers of {}",
            active.len(),
            spec.num_layers
        )));
    }
    HeadMap::from_active(spec.num_heads, spec.num_kv_heads, active)
}

/// transformers 4 recorded pruning as `pruned_heads`: layer → original indices removed.
fn pruned_by_transformers(config: &Value, spec: &ModelSpec) -> Result<HeadMap> {
    let pruned: BTreeMap<usize, Vec<usize>> = serde_json::from_value(config["pruned_heads"].clone())
        .map_err(|e| Error::invalid(format!("config.json: pruned_heads: {e}")))?;
    let mut heads = spec.full_heads();
    heads.remove(&pruned, 1)?;
    Ok(heads)
}

/// Reads one weight in canonical layout, after its stored shape has been checked.
fn read_canonical(weights: &dyn Weights, name: &str, tensor: &HfTensor, spec: &ModelSpec, heads: &HeadMap) -> Result<Tensor> {
    let want = spec.shape_of(&tensor.canonical, heads);
    let stored = stored_shape(&tensor.layout, &want);
    let found = weights.shape(name)?;
    if found != stored {
        return Err(Error::invalid(format!(
            "tensor {name} has shape {found:?}, but config.json asks for {stored:?}: weights and config do not belong together"
        )));
    }
    let read = weights.read(name)?;
    Ok(match tensor.layout {
        Layout::Plain => read,
        Layout::Transposed => read.transposed(),
        Layout::FusedThird(part) => {
            let width = read.cols() / 3;
            let columns: Vec<usize> = (part * width..(part + 1) * width).collect();
            let third = read.take_cols(&columns);
            if want.len() == 1 { third.reshaped(&want) } else { third.transposed() }
        }
    })
}

/// The shape in the file of a weight whose canonical shape is `want`.
fn stored_shape(layout: &Layout, want: &[usize]) -> Vec<usize> {
    match (layout, want) {
        (Layout::Transposed, [out, input]) => vec![*input, *out],
        (Layout::FusedThird(_), [out, input]) => vec![*input, 3 * out],
        (Layout::FusedThird(_), [out]) => vec![3 * out],
        _ => want.to_vec(),
    }
}
