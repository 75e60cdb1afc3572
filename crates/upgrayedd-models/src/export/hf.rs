//! Hugging Face folders: smaller with a modeling file that rebuilds the layers, or dense with zeros.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use upgrayedd_nn::Tensor;
use upgrayedd_nn::optim::Lanes;

use super::format::Format;
use crate::family::Task;
use crate::files::{DType, safetensors_file, write_file};
use crate::model::Model;
use crate::spec::Objective;
use crate::units::{CONFIG_KEY, FORMAT};
use crate::weights::{Layout, Weight};
use crate::{Error, Result};

const MODELING_FILE: &str = "modeling_upgrayedd";

/// Really smaller: layers with the heads that they have.
pub static HF: Format = Format {
    name: "hf",
    summary: "really smaller",
    note: |model| {
        if model.units.num_pruned() > 0 {
            "really smaller: load it in transformers with trust_remote_code=True"
        } else {
            "all heads are there: it loads anywhere"
        }
    },
    write: |model, dtype, dir| write(model, false, dtype, dir),
};

/// In the original shape, zeros where heads were: loads anywhere, **no speed-up**.
pub static HF_DENSE: Format = Format {
    name: "hf-dense",
    summary: "zeros in the original shape, no speed-up",
    note: |_| "in its original shape with zeros where heads were: it loads anywhere and is no faster",
    write: |model, dtype, dir| write(model, true, dtype, dir),
};

fn write(model: &Model, dense: bool, dtype: DType, dir: &Path) -> Result<()> {
    let pruned = model.units.num_pruned() > 0 && !dense;
    let config = config_json(model, pruned, dtype);
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::invalid(e.to_string()))?;
    write_file(&dir.join("config.json"), text.as_bytes())?;
    if pruned {
        write_file(&dir.join(format!("{MODELING_FILE}.py")), model.family.modeling.as_bytes())?;
    }
    write_tensors(tensors(model, dense), dtype, dir)
}

fn write_tensors(tensors: Vec<(String, Tensor)>, dtype: DType, dir: &Path) -> Result<()> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors_file::write(&dir.join("model.safetensors"), tensors, dtype, metadata)
}

/// Writes the weights alone, with the heads that are left, exactly as they are: in the model's own element type, or in f32 where some
/// are none of its numbers.
pub fn write_weights(model: &Model, dir: &Path) -> Result<()> {
    let exact = |t: &Tensor| {
        t.format() == Some(model.dtype.format())
            || t.to_host().data().iter().all(|&v| model.dtype.round(v).to_bits() == v.to_bits())
    };
    let fits = model.dtype == DType::F32 || model.params.ids().all(|id| exact(model.params.get(id)));
    write_tensors(tensors(model, false), if fits { model.dtype } else { DType::F32 }, dir)
}

/// The model with a config.json that describes it as it is, heads included.
pub fn with_own_config(mut model: Model) -> Model {
    model.config = config_json(&model, model.units.num_pruned() > 0, model.dtype);
    model
}

/// The config as it was read, with the heads that are left.
fn config_json(model: &Model, pruned: bool, dtype: DType) -> Value {
    let mut config = model.config.clone();
    let Some(map) = config.as_object_mut() else { return config };
    for key in [CONFIG_KEY, "auto_map", "pruned_heads"] {
        map.shift_remove(key);
    }
    map.entry("model_type").or_insert_with(|| json!(model.family.model_type));
    let named: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| map.contains_key(*key)).collect();
    for key in if named.is_empty() { vec!["torch_dtype"] } else { named } {
        map.insert(key.to_owned(), json!(dtype.name()));
    }
    let architecture = model.family.architecture_of(Task::of(model.spec.objective));
    // A class of ours names the code of a pruned model; what it stands for is the stock one.
    let named = map.get("architectures").and_then(|a| a[0].as_str());
    let named = named.is_some_and(|class| !model.family.architectures.iter().any(|known| known.pruned == class));
    if let Some(architecture) = architecture.filter(|_| !named) {
        map.insert("architectures".to_owned(), json!([architecture.class]));
    }
    if pruned {
        map.insert(CONFIG_KEY.to_owned(), json!({ "format_version": FORMAT, "units": model.units.record(&model.layer_names()) }));
        let class = |name: &str| format!("{MODELING_FILE}.{name}");
        let mut auto_map = json!({ "AutoModel": class("UpgrayeddModel") });
        if let Some(architecture) = architecture {
            auto_map[architecture.auto] = class(architecture.pruned).into();
        }
        map.insert("auto_map".to_owned(), auto_map);
    }
    config
}

/// All weights under their Hugging Face names and in their layout; `dense` puts zeros where heads are missing. Those that nothing has
/// changed may still be as their file has them ([`Tensor::to_host`]).
pub fn tensors(model: &Model, dense: bool) -> Vec<(String, Tensor)> {
    let mut parts: BTreeMap<String, Vec<(Layout, Tensor)>> = BTreeMap::new();
    for id in model.params.ids() {
        let weight = model.weight(id);
        let tensor = model.params.get(id);
        let tensor = if dense { expand(model, weight, &tensor.to_host()) } else { tensor.clone() };
        // The base model of a plain encoder is saved without prefix, as transformers does.
        let name = match model.spec.objective {
            Objective::Encoder => weight.hf_name.strip_prefix(model.family.base_prefix).unwrap_or(&weight.hf_name).to_owned(),
            _ => weight.hf_name.clone(),
        };
        parts.entry(name).or_default().push((weight.layout, tensor));
    }
    let mut all: Vec<(String, Tensor)> = parts.into_iter().map(|(name, parts)| (name, assemble(parts))).collect();
    // transformers takes a weight with two names for one only where the output projection is the embedding.
    if !model.spec.tied_head {
        for (own, other) in model.family.other_names {
            let copy = all.iter().find(|(name, _)| name == own).map(|(_, tensor)| ((*other).to_owned(), tensor.clone()));
            all.extend(copy);
        }
    }
    all
}

fn assemble(mut parts: Vec<(Layout, Tensor)>) -> Tensor {
    if let [(layout, tensor)] = &parts[..] {
        return if *layout == Layout::Transposed { tensor.to_host().transposed() } else { tensor.clone() };
    }
    parts.sort_by_key(|(layout, _)| match layout {
        Layout::FusedThird(part) => *part,
        _ => 0,
    });
    let data: Vec<f32> = parts.iter().flat_map(|(_, t)| t.to_host().data().to_vec()).collect();
    let rows: usize = parts.iter().map(|(_, t)| t.shape()[0]).sum();
    match parts[0].1.shape() {
        [_, input] => Tensor::from_vec(&[rows, *input], data).transposed(),
        _ => Tensor::from_vec(&[rows], data),
    }
}

/// A weight in the unpruned shape, zeros where heads are missing.
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
        for (row, &to) in tensor.data().chunks_exact(from_cols).zip(&features) {
            out[to * to_cols..(to + 1) * to_cols].copy_from_slice(row);
        }
    } else {
        for (row, out) in tensor.data().chunks_exact(from_cols).zip(out.chunks_exact_mut(to_cols)) {
            for (&value, &to) in row.iter().zip(&features) {
                out[to] = value;
            }
        }
    }
    full
}
