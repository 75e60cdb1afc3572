//! Hugging Face folders: smaller with a modeling file that rebuilds the layers, or dense with zeros.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde_json::{Value, json};
use upgrayedd_nn::optim::Lanes;
use upgrayedd_nn::{ParamId, Tensor};

use super::format::Format;
use crate::family::Task;
use crate::files::{DType, TensorFile, safetensors_file, write_file};
use crate::model::Model;
use crate::spec::Objective;
use crate::units::{CONFIG_KEY, FORMAT};
use crate::weights::{Layout, Weight, rows_in_tensor};
use crate::{Error, Result};

const MODELING_FILE: &str = "modeling_upgrayedd";

/// Really smaller: layers with the units that they have.
pub static HF: Format = Format {
    name: "hf",
    summary: "really smaller",
    note: |model| {
        if !model.units.is_full() {
            "really smaller: load it in transformers with trust_remote_code=True"
        } else {
            "nothing is missing: it loads anywhere"
        }
    },
    write: |model, dtype, dir| write(model, false, dtype, dir),
};

/// In the original shape, zeros where units were: loads anywhere, **no speed-up**.
pub static HF_DENSE: Format = Format {
    name: "hf-dense",
    summary: "zeros in the original shape, no speed-up",
    note: |_| "in its original shape with zeros where units were: it loads anywhere and is no faster",
    write: |model, dtype, dir| write(model, true, dtype, dir),
};

fn write(model: &Model, dense: bool, dtype: Option<DType>, dir: &Path) -> Result<()> {
    let pruned = !model.units.is_full() && !dense;
    let config = config_json(model, pruned, dtype.unwrap_or(model.dtype()));
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::malformed(e.to_string()))?;
    write_file(&dir.join("config.json"), text.as_bytes())?;
    if pruned {
        write_file(&dir.join(format!("{MODELING_FILE}.py")), model.family.modeling.text().as_bytes())?;
    }
    let mut tensors = tensors(model, dense);
    tensors.iter_mut().for_each(|(_, _, own)| *own = dtype.unwrap_or(*own));
    write_tensors(tensors, dir, HashMap::new())
}

const WEIGHTS_FILE: &str = "model.safetensors";

fn write_tensors(
    tensors: Vec<(String, Tensor, DType)>,
    dir: &Path,
    mut metadata: HashMap<String, String>,
) -> Result<()> {
    metadata.insert("format".to_owned(), "pt".to_owned());
    safetensors_file::write(&dir.join(WEIGHTS_FILE), tensors, metadata)
}

/// The key of the metadata that says which types the weights have that are wider in the file, by their
/// canonical names.
const OWN_DTYPES: &str = "upgrayedd.dtypes";

/// Writes the weights alone, with the units that are left, exactly as they are: those that their own element
/// type cannot hold in f32. [`own_dtypes`] has the types of those.
///
/// # Errors
/// Returns [`Error::NotFinite`] if a weight is not finite, and [`Error::Io`] if the system cannot write the
/// file.
pub fn write_weights(model: &Model, dir: &Path) -> Result<()> {
    let holds = |id: &ParamId| model.dtype_of(*id).holds(model.params.get(*id));
    let inexact = model.params.ids().filter(|id| !holds(id));
    // What is one tensor in the file is of one type there.
    let wide: BTreeSet<&str> = inexact.map(|id| model.weight(id).hf_name.as_str()).collect();
    let mut tensors = tensors(model, false);
    let is_wide = |name: &str| wide.iter().any(|wide| stored_name(model, wide) == name);
    tensors.iter_mut().filter(|(name, ..)| is_wide(name)).for_each(|(_, _, dtype)| *dtype = DType::F32);
    let widened = model.params.ids().filter(|id| wide.contains(model.weight(*id).hf_name.as_str()));
    let own: BTreeMap<&str, DType> = widened.map(|id| (model.params.name(id), model.dtype_of(id))).collect();
    let own = serde_json::to_string(&own).map_err(|e| Error::malformed(e.to_string()))?;
    write_tensors(tensors, dir, [(OWN_DTYPES.to_owned(), own)].into())
}

/// The types of weights that [`write_weights`] has written in wider ones, by canonical name.
///
/// # Errors
/// Returns [`Error::File`] if the file of weights is damaged or a link out of the folder, and [`Error::Io`]
/// if the system cannot read it.
pub fn own_dtypes(dir: &Path) -> Result<BTreeMap<String, DType>> {
    let path = dir.join(WEIGHTS_FILE);
    let metadata = TensorFile::open(&path)?.metadata();
    let own = metadata.get(OWN_DTYPES).map_or("{}", String::as_str);
    serde_json::from_str(own).map_err(|e| Error::bad_file(&path, format!("{OWN_DTYPES}: {e}")))
}

/// The model with a config.json that describes it as it is, units included.
pub fn with_own_config(mut model: Model) -> Model {
    model.config = config_json(&model, !model.units.is_full(), model.dtype());
    model
}

/// The config as it was read, with the units that are left.
fn config_json(model: &Model, pruned: bool, dtype: DType) -> Value {
    let mut config = model.config.clone();
    let Some(map) = config.as_object_mut() else { return config };
    for key in [CONFIG_KEY, "auto_map", "pruned_heads"] {
        map.shift_remove(key);
    }
    map.entry("model_type").or_insert_with(|| json!(model.family.model_type));
    let named: Vec<&str> =
        ["dtype", "torch_dtype"].into_iter().filter(|key| map.contains_key(*key)).collect();
    for key in if named.is_empty() { vec!["torch_dtype"] } else { named } {
        map.insert(key.to_owned(), json!(dtype.name()));
    }
    let architecture = model.family.architecture_of(Task::of(model.spec.objective));
    // A class of ours names the code of a pruned model; what it stands for is the stock one.
    let named = map.get("architectures").and_then(|a| a[0].as_str());
    let named =
        named.is_some_and(|class| !model.family.architectures.iter().any(|known| known.pruned == class));
    if let Some(architecture) = architecture.filter(|_| !named) {
        map.insert("architectures".to_owned(), json!([architecture.class]));
    }
    if pruned {
        map.insert(
            CONFIG_KEY.to_owned(),
            json!({ "format_version": FORMAT, "units": model.units.record(&model.paths()) }),
        );
        let class = |name: &str| format!("{MODELING_FILE}.{name}");
        let mut auto_map = json!({ "AutoModel": class("UpgrayeddModel") });
        if let Some(architecture) = architecture {
            auto_map[architecture.auto] = class(architecture.pruned).into();
        }
        map.insert("auto_map".to_owned(), auto_map);
    }
    config
}

/// A weight's name in files that are written: the base model of a plain encoder is saved without prefix, as
/// transformers does.
fn stored_name<'a>(model: &Model, hf_name: &'a str) -> &'a str {
    match model.spec.objective {
        Objective::Encoder => hf_name.strip_prefix(model.family.base_prefix).unwrap_or(hf_name),
        _ => hf_name,
    }
}

/// All weights under their Hugging Face names, in their layout, and the type that each has in files; `dense`
/// puts zeros where units are missing. Those that nothing has changed may still be as their file has them
/// ([`Tensor::to_host`]).
pub fn tensors(model: &Model, dense: bool) -> Vec<(String, Tensor, DType)> {
    let table = (model.family.weights)(&model.spec);
    let units = if dense { model.spec.full_units() } else { model.units.clone() };
    let mut parts: BTreeMap<&str, Vec<Piece>> = BTreeMap::new();
    for id in model.params.ids() {
        let weight = model.weight(id);
        let tensor = model.params.get(id);
        let tensor = if dense { expand(model, weight, &tensor.to_host()) } else { tensor.clone() };
        let (rows, outputs) = rows_in_tensor(&table, weight, &units);
        let piece = Piece { layout: weight.layout, tensor, rows, outputs, dtype: model.dtype_of(id) };
        parts.entry(stored_name(model, &weight.hf_name)).or_default().push(piece);
    }
    let assembled = parts.into_iter().map(|(name, pieces)| {
        let dtype = pieces[0].dtype;
        (name.to_owned(), assemble(&pieces), dtype)
    });
    let mut all: Vec<(String, Tensor, DType)> = assembled.collect();
    // transformers takes a weight with two names for one only where the output projection is the embedding.
    if !model.spec.tied_head {
        for (own, other) in model.family.other_names {
            let found = all.iter().find(|(name, ..)| name == own);
            let copy = found.map(|(_, tensor, dtype)| ((*other).to_owned(), tensor.clone(), *dtype));
            all.extend(copy);
        }
    }
    all
}

/// A weight on its way into a tensor of a file.
struct Piece {
    layout: Layout,
    tensor: Tensor,
    /// Where its outputs go.
    rows: Vec<usize>,
    /// How many outputs the tensor has.
    outputs: usize,
    dtype: DType,
}

/// The tensor of a file that these make up.
fn assemble(pieces: &[Piece]) -> Tensor {
    let transposed = pieces[0].layout.is_transposed();
    let tensor = match pieces {
        [piece] => piece.tensor.clone(),
        _ => {
            let mut shape = pieces[0].tensor.shape().to_vec();
            shape[0] = pieces[0].outputs;
            let width = shape.get(1).copied().unwrap_or(1);
            let mut whole = Tensor::zeros(&shape);
            for piece in pieces {
                let values = piece.tensor.to_host();
                for (from, &to) in values.data().chunks_exact(width.max(1)).zip(&piece.rows) {
                    whole.data_mut()[to * width..(to + 1) * width].copy_from_slice(from);
                }
            }
            whole
        }
    };
    if transposed && tensor.shape().len() == 2 { tensor.to_host().transposed() } else { tensor }
}

/// A weight in the unpruned shape, zeros where units are missing.
fn expand(model: &Model, weight: &Weight, tensor: &Tensor) -> Tensor {
    let (lanes, owner) = (weight.lanes(), weight.owner());
    let Some((layer, (site, width))) = weight.layer.zip(owner) else { return tensor.clone() };
    let present = model.units.layers()[layer].units(site);
    let features: Vec<usize> = present.iter().flat_map(|unit| unit * width..(unit + 1) * width).collect();
    let shape = weight.shape(&model.spec.full_units());
    let mut full = Tensor::zeros(&shape);
    let (from_cols, to_cols) = (tensor.cols(), full.cols());
    let out = full.data_mut();
    if lanes == Lanes::Rows {
        for (row, &to) in tensor.data().chunks_exact(from_cols.max(1)).zip(&features) {
            out[to * to_cols..(to + 1) * to_cols].copy_from_slice(row);
        }
    } else {
        for (row, out) in tensor.data().chunks_exact(from_cols.max(1)).zip(out.chunks_exact_mut(to_cols)) {
            for (&value, &to) in row.iter().zip(&features) {
                out[to] = value;
            }
        }
    }
    full
}
