//! ONNX graphs of encoders and classifiers, for onnxruntime, transformers.js and optimum.

mod encoder;
mod graph;
mod proto;

use std::path::Path;

use prost::Message;

use super::format::{Format, Kind};
use super::hf::original_config;
use crate::files::{DType, write_file};
use crate::model::Model;
use crate::spec::{Norm, Objective, QkNorm};
use crate::{Error, Result};

/// Where programs look for graphs in a model's folder.
const FOLDER: &str = "onnx";

/// Protocol buffers end there.
const LARGEST: usize = i32::MAX as usize;

/// A graph with its weights.
pub static ONNX: Format = Format {
    name: "onnx",
    summary: "onnx/model.onnx, for onnxruntime and transformers.js: encoders and classifiers",
    note: |model| {
        let of = if model.spec.objective == Objective::Encoder { "last_hidden_state" } else { "logits" };
        format!(
            "for onnxruntime and transformers.js: {of} of input_ids and attention_mask, whatever the shapes of layers are"
        )
    },
    usage: |model, dtype| {
        let task = match model.spec.objective {
            Objective::MaskedLm => "fill-mask",
            Objective::Encoder => "feature-extraction",
            _ => "text-classification",
        };
        format!(
            "```js\nimport {{pipeline}} from \"@huggingface/transformers\";\n\nconst run = await pipeline(\"{task}\", \"FOLDER\", {{dtype: \"{}\"}});\n```\n",
            if is_half(model, dtype) { "fp16" } else { "fp32" }
        )
    },
    kind: Kind::Part,
    write,
};

fn write(model: &Model, dtype: Option<DType>, dir: &Path) -> Result<()> {
    check(model)?;
    for id in model.params.ids() {
        let dtype = dtype.unwrap_or(model.dtype_of(id));
        // The others are written as float32.
        let dtype = if dtype == DType::F16 { dtype } else { DType::F32 };
        dtype.check(model.params.name(id), model.params.get(id))?;
    }
    let graph = encoder::encode(model, dtype);
    let size = graph.encoded_len();
    if size > LARGEST {
        return Err(Error::unsupported(format!(
            "format onnx: the graph has {size} bytes, and a file of this format {LARGEST} at most: export as float16"
        )));
    }
    let folder = dir.join(FOLDER);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
    // The names that transformers.js looks for.
    write_file(
        &folder.join(if is_half(model, dtype) { "model_fp16.onnx" } else { "model.onnx" }),
        &graph.encode_to_vec(),
    )?;
    let config = dir.join("config.json");
    // Beside another format there is one already.
    if config.exists() { Ok(()) } else { write_file(&config, original_config(model, dtype)?.as_bytes()) }
}

fn is_half(model: &Model, dtype: Option<DType>) -> bool {
    dtype.unwrap_or(model.dtype()) == DType::F16
}

/// Refuses what no graph is written for.
fn check(model: &Model) -> Result<()> {
    let spec = &model.spec;
    if spec.causal {
        return Err(Error::unsupported(
            "format onnx is for encoders and classifiers: a decoder goes to other programs as format gguf",
        ));
    }
    let whole = spec.ropes.iter().all(|rope| 2 * rope.inv_freq.len() == spec.head_dim && rope.long.is_none());
    let usual = spec.norm == Norm::Layer
        && spec.qk_norm == QkNorm::None
        && spec.score_cap.is_none()
        && spec.embedding_scale.is_none()
        && !spec.parallel
        && whole;
    if usual {
        Ok(())
    } else {
        Err(Error::unsupported(format!(
            "format onnx: graphs of {} models are not written",
            model.family.model_type
        )))
    }
}
