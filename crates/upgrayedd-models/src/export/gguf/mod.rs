//! GGUF, the files of llama.cpp and of all that is built on it (Ollama, LM Studio). Models whose layers are alike are
//! written for their family's own architecture, others for `deci`, where llama.cpp knows layers that differ.

mod arch;
mod file;
mod layers;
mod vocab;
mod weights;

use std::path::Path;

use serde_json::Value;

use self::arch::Arch;
use self::file::{Element, Entry};
use self::layers::{Added, CHANNELS, Layer};
use self::weights::{Writing, element_of, linear_factor};
use super::companions::MODULES;
use super::format::{Format, Kind};
use super::stock::{HeadsAre, stock};
use crate::files::{read_optional_json, read_text};
use crate::model::{Companions, Model};
use crate::spec::{ModelSpec, Norm, Objective};
use crate::{Error, Result};

/// The files of a folder that are written.
const FILE: &str = "model.gguf";
const FILE_Q8_0: &str = "model-q8_0.gguf";

/// A cap that changes no number of usual size.
const NO_CAP: f32 = 1e9;

/// Numbers as the weights have them.
pub static GGUF: Format = Format {
    name: "gguf",
    summary: "model.gguf with its tokenizer, for llama.cpp, Ollama and LM Studio: decoders, and BERT as an encoder",
    note,
    usage: |model, _| usage(model, FILE),
    kind: Kind::File,
    write: |model, dtype, dir| write(model, dtype.map(element_of), &dir.join(FILE)),
};

/// Numbers in 8 bits.
pub static GGUF_Q8_0: Format = Format {
    name: "gguf-q8_0",
    summary: "model-q8_0.gguf, the same with matrices in 8 bits (Q8_0), whatever dtype says",
    note,
    usage: |model, _| usage(model, FILE_Q8_0),
    kind: Kind::File,
    write: |model, _, dir| write(model, Some(Element::Q8_0), &dir.join(FILE_Q8_0)),
};

fn usage(model: &Model, file: &str) -> String {
    let (program, prompt) = match model.spec.objective {
        Objective::Encoder => ("llama-embedding", "A sentence"),
        _ => ("llama-cli", "Once upon a time"),
    };
    format!("```sh\n{program} -m {file} -p \"{prompt}\"\n```\n")
}

/// A model with the architecture that it is written for.
struct Found {
    arch: &'static Arch,
    model: Model,
    layers: Vec<Layer>,
    added: Added,
}

fn found(model: &Model) -> Result<Found> {
    let refuse = |why: String| Error::unsupported(format!("format gguf: {why}"));
    let plain = if model.units.is_full() {
        Ok(model.clone())
    } else {
        stock(model, HeadsAre::Counted).and_then(|stock| stock.of(model).map_err(|e| e.to_string()))
    };
    // Where the family's own does not do, there is the one for layers that differ.
    let own = match plain {
        Ok(plain) => arch::of_stock(&plain).map(|arch| (arch, plain)),
        Err(uneven) => Err(format!("it is no stock model: {uneven}")),
    };
    let free = |why: String| match arch::of_free(model) {
        Ok(arch) => Ok((arch, model.clone())),
        Err(other) => Err(refuse(format!("{why}; {other}"))),
    };
    let (arch, model) = own.or_else(free)?;
    let (layers, added) = layers::layers(&model);
    if layers.first().is_none_or(|layer| layer.queries.is_empty()) {
        return Err(refuse(
            "llama.cpp reads the number of heads in the first layer, which has none".to_owned(),
        ));
    }
    Ok(Found { arch, model, layers, added })
}

fn note(model: &Model) -> String {
    let Ok(Found { arch, model, added, .. }) = found(model) else { return String::new() };
    let mut note = format!("for llama.cpp, architecture {}", arch.name);
    if added.zeros + added.copies > 0 {
        note.push_str(&format!(
            ". Each key/value head has to have as many readers there: {} heads of zeros were added, and {} key/value heads are there again; shape uniform needs neither",
            added.zeros, added.copies
        ));
    }
    if added.mlps > 0 {
        note.push_str(&format!(
            ". Layers without an MLP would lose their attention there: {} got one of {CHANNELS} channels of zeros",
            added.mlps
        ));
    }
    if let Some(window) = short_context(arch, &model.spec) {
        note.push_str(&format!(
            ". This architecture has no windows: texts of up to {window} tokens are computed as in the model, and no longer ones"
        ));
    }
    if let Some((original, _)) = model.spec.ropes.first().and_then(|rope| rope.long.as_ref()) {
        note.push_str(&format!(
            ". llama.cpp takes the rotations for long texts wherever its context is longer than {original} tokens, the model where a text is: set the context (-c) to {original} for shorter ones"
        ));
    }
    for remark in model.tokenizer().iter().flat_map(vocab::remarks) {
        note.push_str(&format!(". {remark}"));
    }
    note
}

/// The length up to which windows hide nothing, where the architecture has none.
fn short_context(arch: &Arch, spec: &ModelSpec) -> Option<usize> {
    let shortest = spec.layers.iter().filter_map(|layer| layer.window).min()?;
    (arch.windows.is_none() && shortest < spec.max_positions).then_some(shortest)
}

fn write(model: &Model, element: Option<Element>, path: &Path) -> Result<()> {
    let Found { arch, model, layers, .. } = found(model)?;
    let tokenizer = model.tokenizer()?;
    let query_factor = model.spec.attention_scale() / own_scale(arch, &model.spec, &layers);
    let writing = Writing { model: &model, arch, layers: &layers, element, query_factor };
    let mut entries = general(&model, arch, element);
    entries.extend(shape(&model, arch, &layers)?);
    entries.extend(vocab::entries(&tokenizer, model.spec.vocab_size)?);
    if arch.encodes {
        let types = model.spec.type_vocab_size as u32;
        entries.push(("tokenizer.ggml.token_type_count".to_owned(), Entry::U32(types)));
    }
    if let Some(template) = model.chat_template()? {
        entries.push(("tokenizer.chat_template".to_owned(), Entry::Text(template)));
    }
    file::write(path, &entries, &writing.tensors())
}

/// What llama.cpp multiplies scores by.
fn own_scale(arch: &Arch, spec: &ModelSpec, layers: &[Layer]) -> f32 {
    // The largest models of these two families are told by their number of layers, and scaled by the model's width.
    let by_width = matches!((arch.name, layers.len()), ("gemma2", 46) | ("gemma3", 62));
    let heads = layers.first().map_or(1, |layer| layer.queries.len());
    let width = if by_width { spec.hidden_size / heads } else { spec.head_dim };
    1.0 / (width as f32).sqrt()
}

fn general(model: &Model, arch: &Arch, element: Option<Element>) -> Vec<(String, Entry)> {
    let element = element.unwrap_or(element_of(model.dtype()));
    let mut entries = vec![
        ("architecture", Entry::Text(arch.name.to_owned())),
        ("type", Entry::Text("model".to_owned())),
        ("file_type", Entry::U32(element.file_type())),
    ];
    if let Some(origin) = &model.origin {
        let id = origin.split('@').next().unwrap_or(origin);
        entries.push(("name", Entry::Text(id.rsplit('/').next().unwrap_or(id).to_owned())));
    }
    if element == Element::Q8_0 {
        entries.push(("quantization_version", Entry::U32(2)));
    }
    entries.into_iter().map(|(key, entry)| (format!("general.{key}"), entry)).collect()
}

/// Sizes, under the architecture's name.
fn shape(model: &Model, arch: &Arch, layers: &[Layer]) -> Result<Vec<(String, Entry)>> {
    let spec = &model.spec;
    let number = |n: usize| Entry::U32(n as u32);
    // One number where all layers have the same.
    let each = |of: &dyn Fn(&Layer) -> usize| {
        let all: Vec<u32> = layers.iter().map(|layer| of(layer) as u32).collect();
        if all.windows(2).all(|pair| pair[0] == pair[1]) { Entry::U32(all[0]) } else { Entry::U32s(all) }
    };
    let epsilon = if spec.norm == Norm::Layer { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    let context = short_context(arch, spec).unwrap_or(spec.max_positions);
    let mut entries = vec![
        ("context_length".to_owned(), number(context)),
        ("embedding_length".to_owned(), number(spec.hidden_size)),
        ("block_count".to_owned(), number(layers.len())),
        ("feed_forward_length".to_owned(), each(&|layer| layer.channels.len())),
        ("attention.head_count".to_owned(), each(&|layer| layer.queries.len())),
        ("attention.head_count_kv".to_owned(), each(&|layer| layer.keys.len())),
        ("attention.key_length".to_owned(), number(spec.head_dim)),
        ("attention.value_length".to_owned(), number(spec.head_dim)),
        (format!("attention.{epsilon}"), Entry::F32(spec.norm_eps)),
        ("vocab_size".to_owned(), number(spec.vocab_size)),
    ];
    // Where Gemma 2 says nothing, llama.cpp caps as its first models did.
    let or_none = |cap: Option<f32>| cap.or((arch.name == "gemma2").then_some(NO_CAP));
    let caps = [
        ("attn_logit_softcapping", or_none(spec.score_cap)),
        ("final_logit_softcapping", or_none(spec.logit_cap)),
    ];
    entries.extend(caps.into_iter().filter_map(|(key, cap)| Some((key.to_owned(), Entry::F32(cap?)))));
    if let Some(window) = spec.layers.iter().find_map(|layer| layer.window).filter(|_| arch.windows.is_some())
    {
        entries.push(("attention.sliding_window".to_owned(), number(window)));
    }
    if arch.encodes {
        entries.push(("attention.causal".to_owned(), Entry::Bool(false)));
        entries.push(("pooling_type".to_owned(), Entry::U32(pooling(model)?)));
    }
    if arch.name == "gptneox" {
        entries.push(("use_parallel_residual".to_owned(), Entry::Bool(spec.parallel)));
    }
    entries.extend(rotation(arch, spec)?);
    Ok(entries.into_iter().map(|(key, entry)| (format!("{}.{key}", arch.name), entry)).collect())
}

/// What llama.cpp makes of the hidden states of a text: nothing, their mean, or the first.
fn pooling(model: &Model) -> Result<u32> {
    const NONE: u32 = 0;
    const MEAN: u32 = 1;
    const FIRST: u32 = 2;
    let refuse = |what: String| {
        Error::unsupported(format!(
            "format gguf: llama.cpp takes the mean or the first of hidden states, and {what}"
        ))
    };
    let Companions::Folder(folder) = &model.companions else { return Ok(NONE) };
    let path = folder.join(MODULES);
    if !path.is_file() {
        return Ok(NONE);
    }
    let modules: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::bad_file(&path, format!("is not valid JSON: {e}")))?;
    let mut taken = NONE;
    for module in modules.as_array().into_iter().flatten() {
        let kind = module["type"].as_str().unwrap_or_default().rsplit('.').next().unwrap_or_default();
        match kind {
            "Transformer" | "Normalize" => {}
            "Pooling" => {
                let path = module["path"].as_str().unwrap_or_default();
                let config = read_optional_json(&folder.join(path).join("config.json"))?;
                let modes = config.as_object().into_iter().flatten();
                let asked: Vec<&str> = modes
                    .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true)
                    .map(|(key, _)| key.as_str())
                    .collect();
                taken = match asked[..] {
                    ["pooling_mode_mean_tokens"] => MEAN,
                    ["pooling_mode_cls_token"] => FIRST,
                    _ => return Err(refuse(format!("{path}/config.json asks for {}", asked.join(", ")))),
                };
            }
            other => return Err(refuse(format!("{MODULES} has a module {other}"))),
        }
    }
    Ok(taken)
}

/// How heads are rotated.
fn rotation(arch: &Arch, spec: &ModelSpec) -> Result<Vec<(String, Entry)>> {
    let Some(rope) = spec.ropes.first() else { return Ok(Vec::new()) };
    let mut entries = vec![
        ("rope.dimension_count", Entry::U32(2 * rope.inv_freq.len() as u32)),
        ("rope.freq_base", Entry::F32(rope.base as f32)),
    ];
    match (&rope.long, linear_factor(rope)) {
        (Some((original, _)), _) => {
            entries.push(("rope.scaling.original_context_length", Entry::U32(*original as u32)));
            entries.push(("rope.scaling.attn_factor", Entry::F32(rope.scale)));
        }
        (None, Some(1.0)) => {}
        (None, _) if arch.takes_factors => {}
        (None, Some(factor)) => {
            entries.push(("rope.scaling.type", Entry::Text("linear".to_owned())));
            entries.push(("rope.scaling.factor", Entry::F32(factor)));
        }
        (None, None) => {
            return Err(Error::unsupported(format!(
                "format gguf: llama.cpp's {} cannot be told of these rotations: expected frequencies that are powers of a base",
                arch.name
            )));
        }
    }
    // The second is that of layers with a window.
    if let Some(windows) = spec.ropes.get(1) {
        if linear_factor(windows) != Some(1.0) {
            return Err(Error::unsupported(format!(
                "format gguf: llama.cpp's {} does not scale the rotations of layers with a window",
                arch.name
            )));
        }
        entries.push(("rope.freq_base_swa", Entry::F32(windows.base as f32)));
    }
    Ok(entries.into_iter().map(|(key, entry)| (key.to_owned(), entry)).collect())
}
