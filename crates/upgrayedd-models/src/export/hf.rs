//! Hugging Face folders: smaller with a modeling file that rebuilds the layers, or dense with zeros.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};
use upgrayedd_nn::optim::Lanes;
use upgrayedd_nn::{ParamId, Tensor};

use super::card::in_python;
use super::format::{Format, Kind};
use super::spelling::{add_older_keys, why_not_older};
use super::stock::{HeadsAre, stock, why_not_stock};
use crate::family::{Heads, Task};
use crate::files::{DType, TensorFile, safetensors_file, write_file};
use crate::model::Model;
use crate::spec::Objective;
use crate::units::{CONFIG_KEY, FORMAT, Site};
use crate::weights::{Layout, Weight, rows_in_tensor};
use crate::{Error, Result};

const MODELING_FILE: &str = "modeling_upgrayedd";

/// Really smaller: layers with the units that they have. A stock model of the family where they are all alike.
pub static HF: Format = Format {
    name: "hf",
    summary: "really smaller; loads anywhere if all layers are alike, else in transformers 5 with trust_remote_code",
    note: |model| match why_not_stock(model) {
        None if model.units.is_full() => "nothing is missing: it loads wherever the original does".to_owned(),
        None => match limits(model) {
            None => "really smaller, and a stock model of its family: it loads anywhere".to_owned(),
            Some(limit) => {
                format!("really smaller, and a stock model of its family in transformers: {limit}")
            }
        },
        Some(why) => format!(
            "really smaller: load it in transformers 5 with trust_remote_code=True. It is no stock model, which would load anywhere: {why}"
        ),
    },
    usage: |model, _| {
        let own = why_not_stock(model).is_some();
        let mut text = in_python(model, own);
        if own {
            let _ = write!(
                text,
                "\nThat runs `{MODELING_FILE}.py`, whose second line has the BLAKE3 hash of the rest of it: {}. The hashes of all \
                 releases stand in docs/formats.md of Upgrayedd.\n",
                model.family.modeling.hash()
            );
        }
        text
    },
    kind: Kind::Folder,
    write: |model, dtype, dir| match stock(model, HeadsAre::Counted) {
        Ok(stock) if !model.units.is_full() => write(&stock.of(model)?, Shape::Original, dtype, dir),
        _ => write(model, Shape::Pruned, dtype, dir),
    },
};

/// Where a stock model does not load, in a clause; nothing if it loads anywhere.
fn limits(model: &Model) -> Option<String> {
    let heads = |layer: usize| model.units.layers()[layer].count(Site::Head);
    let fewer =
        (0..model.spec.num_layers()).any(|l| heads(l) > 0 && heads(l) < model.spec.layers[l].num_heads);
    if fewer && model.family.shape.heads == Heads::InTransformers {
        return Some(format!(
            "other programs, such as MLX, vLLM and llama.cpp's converter, do not expect heads of a {} model to be narrower together than the model",
            model.family.model_type
        ));
    }
    why_not_older(&model.config, model.family, &model.spec)
        .map(|what| format!("in version 5, since version 4 knows no {what}"))
}

/// In the original shape, zeros where units were: loads anywhere, **no speed-up**.
pub static HF_DENSE: Format = Format {
    name: "hf-dense",
    summary: "zeros in the original shape: loads anywhere, no speed-up",
    note: |_| {
        "in its original shape with zeros where units were: it loads anywhere and is no faster".to_owned()
    },
    usage: |model, _| in_python(model, false),
    kind: Kind::Folder,
    write: |model, dtype, dir| write(model, Shape::Original, dtype, dir),
};

/// The key under which transformers 4 lists heads that are gone.
const PRUNED_HEADS: &str = "pruned_heads";

/// Really smaller, for transformers 4: heads that are gone are listed.
pub static HF_V4: Format = Format {
    name: "hf-v4",
    summary: "really smaller by the pruned_heads of transformers 4, without remote code: GPT-2, BERT, RoBERTa, DistilBERT",
    note: |_| {
        "really smaller: it loads in transformers 4, and not in 5, which knows no pruned_heads any more"
            .to_owned()
    },
    usage: |model, _| in_python(model, false),
    kind: Kind::Folder,
    write: write_v4,
};

fn write_v4(model: &Model, dtype: Option<DType>, dir: &Path) -> Result<()> {
    if !model.family.shape.pruned_heads {
        return Err(Error::unsupported(format!(
            "format hf-v4: transformers 4 has no pruned_heads for {} models: expected gpt2, bert, roberta, xlm-roberta, camembert or distilbert",
            model.family.model_type
        )));
    }
    let listed = stock(model, HeadsAre::Listed)
        .map_err(|why| Error::unsupported(format!("format hf-v4 cannot say this model: {why}")))?;
    let pruned: Map<String, Value> =
        listed.pruned().iter().map(|(layer, heads)| (layer.to_string(), json!(heads))).collect();
    write(&listed.of(model)?, Shape::Listed(pruned), dtype, dir)
}

/// A config.json for files beside weights of any shape: the family's own, as it was before anything went.
pub(super) fn original_config(model: &Model, dtype: Option<DType>) -> Result<String> {
    let mut config = config_json(model, false, dtype.unwrap_or(model.dtype()));
    add_older_keys(&mut config, model.family, &model.spec);
    serde_json::to_string_pretty(&config).map_err(|e| Error::malformed(e.to_string()))
}

/// How a folder says the shape of its layers.
enum Shape {
    /// In keys of our own, with a modeling file where something is gone.
    Pruned,
    /// As the family does. What is not there is zero.
    Original,
    /// The same, with the heads that are gone.
    Listed(Map<String, Value>),
}

fn write(model: &Model, shape: Shape, dtype: Option<DType>, dir: &Path) -> Result<()> {
    let own = matches!(shape, Shape::Pruned) && !model.units.is_full();
    let mut config = config_json(model, own, dtype.unwrap_or(model.dtype()));
    if !own {
        add_older_keys(&mut config, model.family, &model.spec);
    }
    let dense = matches!(shape, Shape::Original) && !model.units.is_full();
    if let Shape::Listed(pruned) = shape {
        config[PRUNED_HEADS] = pruned.into();
    }
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::malformed(e.to_string()))?;
    write_file(&dir.join("config.json"), text.as_bytes())?;
    if own {
        write_file(&dir.join(format!("{MODELING_FILE}.py")), model.family.modeling.text().as_bytes())?;
    }
    let mut tensors = tensors(model, dense);
    for (name, _, stored) in &mut tensors {
        *stored = dtype.unwrap_or(*stored);
        // transformers 5 reads older names as well, and 4 reads no others; classes of our own are of 5.
        if let Some((_, old)) = model.family.old_names.iter().find(|(new, _)| new == name && !own) {
            (*old).clone_into(name);
        }
    }
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
    // The last is where somebody had the model.
    for key in [CONFIG_KEY, "auto_map", PRUNED_HEADS, "_name_or_path"] {
        map.shift_remove(key);
    }
    map.entry("model_type").or_insert_with(|| json!(model.family.model_type));
    // transformers 4 reads the second.
    for key in ["dtype", "torch_dtype"] {
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
