//! Gemma 2 and 3 (text): norms around one before and after attention and MLP, scaled embeddings, windows in most
//! layers (Gemma team 2024, 2025). Gemma 2 caps scores and logits; Gemma 3 has norms on each head's queries and
//! keys, and a rotation of its own in layers with a window.

use serde_json::Value;
use upgrayedd_nn::ops::Activation;

use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::rope;
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys,
};
use crate::spec::{ModelSpec, Norm, QkNorm};
use crate::weights::{Part, Table, Weight};
use crate::{Error, Result};

pub(crate) static GEMMA2: Family = family(
    "gemma2",
    &[Architecture::causal_lm("Gemma2ForCausalLM")],
    decoder::modeling!("gemma2", "Gemma2"),
    &[GEMMA2_KEYS, KEYS, decoder::KEYS],
    parse_gemma2,
);

pub(crate) static GEMMA3: Family = family(
    "gemma3_text",
    &[Architecture::causal_lm("Gemma3ForCausalLM")],
    decoder::modeling!("gemma3", "Gemma3"),
    &[GEMMA3_KEYS, KEYS, decoder::KEYS],
    parse_gemma3,
);

const fn family(
    model_type: &'static str,
    architectures: &'static [Architecture],
    modeling: Modeling,
    keys: &'static [Keys],
    parse: fn(&Config<'_>, Task) -> Result<ModelSpec>,
) -> Family {
    Family {
        model_type,
        architectures,
        modeling,
        base_prefix: "model.",
        marker: "layers.0.pre_feedforward_layernorm.weight",
        task_markers: &[],
        config_aliases: &[],
        keys,
        output_head: Some("lm_head.weight"),
        other_names: &[],
        old_names: &[],
        tokenizer: TokenizerClass::Usually("GemmaTokenizer"),
        types_are_tokens: false,
        buffers: decoder::BUFFERS,
        shape: decoder::shape(Heads::Divisors, &["layer_types"]),
        parse,
        weights,
        module: decoder::module,
    }
}

/// What becomes of the keys that both have.
const KEYS: Keys = &[
    ("hidden_activation", Used),
    ("hidden_act", Idle("hidden_activation is what counts")),
    ("attention_bias", Used),
    ("query_pre_attn_scalar", Used),
    ("sliding_window", Used),
    ("final_logit_softcapping", Used),
    ("use_bidirectional_attention", Only(&["null", "false"], "false, a decoder that looks back only")),
    (
        "layer_types",
        Only(
            &["null", "\"full_attention\"", "\"sliding_attention\""],
            "layers that see the whole text, or a window of it",
        ),
    ),
];

const GEMMA2_KEYS: Keys =
    &[("attn_logit_softcapping", Used), ("cache_implementation", Idle("the same result another way"))];

const GEMMA3_KEYS: Keys = &[
    ("attn_logit_softcapping", Idle("without effect in transformers")),
    ("sliding_window_pattern", Used),
    ("_sliding_window_pattern", Idle("sliding_window_pattern is what counts")),
    ("rope_local_base_freq", Used),
    ("cache_implementation", Idle("the same result another way")),
];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_layers: 26,
    num_heads: 8,
    num_kv_heads: Some(4),
    head_dim: Some(256),
    max_positions: 8192,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tied_head: true,
};

/// What both have; the rotations are yet to be read. Layers have a window unless `sees_all` says otherwise, where
/// the file is silent.
fn common(
    config: &Config<'_>,
    task: Task,
    defaults: &Defaults,
    sees_all: impl Fn(usize) -> bool,
) -> Result<ModelSpec> {
    let spec = decoder::without_rope(config, task, defaults)?;
    let scalar = config.number("query_pre_attn_scalar", Some(256.0))?;
    let score_scale = scalar.powf(-0.5) as f32;
    if !(score_scale.is_finite() && score_scale > 0.0) {
        return Err(Error::out_of_range(
            "config.json: query_pre_attn_scalar",
            scalar,
            "a number of usual size",
        ));
    }
    let bias = config.flag("attention_bias", false)?;
    let activation = match config.get("hidden_activation") {
        None | Some(Value::Null) => Activation::GeluTanh,
        Some(_) => config.activation("hidden_activation", "gelu_pytorch_tanh")?,
    };
    let mut spec = ModelSpec {
        norm: Norm::RmsAroundOne,
        activation,
        qkv_bias: bias,
        out_bias: bias,
        embedding_scale: Some((spec.hidden_size as f32).sqrt()),
        score_scale: Some(score_scale),
        begins_windows: true,
        ..spec
    };
    let width = if config.get("sliding_window").is_some() { None } else { Some(4096) };
    let window = config.size_or_null("sliding_window")?.or(width);
    decoder::set_windows(&mut spec, config, window, |layer| !sees_all(layer))?;
    Ok(spec)
}

/// A cap; `default` stands in for a missing key.
fn cap(config: &Config<'_>, key: &str, default: Option<f64>) -> Result<Option<f32>> {
    match config.get(key) {
        None => Ok(default.map(|cap| cap as f32)),
        Some(Value::Null) => Ok(None),
        Some(value) => {
            let cap = config.number(key, None)? as f32;
            let usable = cap.is_finite() && cap > 0.0;
            if usable {
                Ok(Some(cap))
            } else {
                Err(Error::out_of_range(format!("config.json: {key}"), value, "a positive number"))
            }
        }
    }
}

fn parse_gemma2(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let spec = common(config, task, &DEFAULTS, |layer| layer % 2 == 1)?;
    let of =
        rope::Of { columns: spec.head_dim, max_positions: spec.max_positions, theta: DEFAULTS.rope_theta };
    Ok(ModelSpec {
        ropes: vec![rope::whole(config, of)?],
        score_cap: cap(config, "attn_logit_softcapping", Some(50.0))?,
        logit_cap: cap(config, "final_logit_softcapping", Some(30.0))?,
        ..spec
    })
}

fn parse_gemma3(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let defaults = Defaults { vocab_size: 262_208, max_positions: 131_072, ..DEFAULTS };
    let every = config.size("sliding_window_pattern", 6)?;
    let spec = common(config, task, &defaults, |layer| (layer + 1).is_multiple_of(every))?;
    let of = |theta| rope::Of { columns: spec.head_dim, max_positions: spec.max_positions, theta };
    let (global, local) = (
        of(config.number("rope_theta", Some(1e6))?),
        of(config.number("rope_local_base_freq", Some(10_000.0))?),
    );
    // Nothing on the top level counts for sets that are apart.
    let inner = Config::new(&Value::Null, &[]);
    // One set a type of layers; the old spelling is that of layers without a window.
    let sets = config.object("rope_parameters")?;
    if let Some((key, _)) = sets
        .and_then(Value::as_object)
        .and_then(|sets| sets.iter().find(|(_, set)| !set.is_object() && !set.is_null()))
    {
        return Err(Error::malformed(format!(
            "config.json: rope_parameters has {key} for all layers: expected one set for each type of layer"
        )));
    }
    let set = |kind: &str| sets.map(|sets| &sets[kind]).filter(|set| !set.is_null());
    // transformers puts it over the set of these layers, and reads rope_type there, not the older type.
    let scaling = config.object("rope_scaling")?.and_then(Value::as_object).map(|scaling| {
        let mut merged = set("full_attention").and_then(Value::as_object).cloned().unwrap_or_default();
        merged.extend(scaling.clone());
        merged.shift_remove("type");
        Value::Object(merged)
    });
    let full = rope::rotation(&inner, scaling.as_ref().or(set("full_attention")), global)?;
    let slides = rope::rotation(&inner, set("sliding_attention"), local)?;
    let mut spec = ModelSpec {
        qk_norm: QkNorm::Heads,
        logit_cap: cap(config, "final_logit_softcapping", None)?,
        ropes: vec![full, slides],
        ..spec
    };
    spec.layers.iter_mut().for_each(|layer| layer.rope = Some(usize::from(layer.window.is_some())));
    Ok(spec)
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    decoder::add_around(&mut table);
    for layer in 0..spec.num_layers() {
        decoder::add_projections(&mut table, layer);
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("model.layers.{layer}.{module}"));
        };
        add(Part::Norm1, "input_layernorm");
        add(Part::Post1, "post_attention_layernorm");
        add(Part::Norm2, "pre_feedforward_layernorm");
        add(Part::Post2, "post_feedforward_layernorm");
    }
    table.finish()
}
