//! SmolLM3: Llama without rotary positions in every fourth layer (Bakouch et al. 2025).

use crate::Result;
use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Used},
    Keys, SPEED,
};
use crate::spec::ModelSpec;

pub(crate) static FAMILY: Family = Family {
    model_type: "smollm3",
    architectures: &[Architecture::causal_lm("SmolLM3ForCausalLM")],
    modeling: decoder::modeling!("smollm3", "SmolLM3"),
    base_prefix: "model.",
    marker: decoder::MARKER,
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, decoder::WINDOW_KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Named,
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::Any, &["no_rope_layers", "layer_types"]),
    parse,
    weights: decoder::weights,
    module: decoder::module,
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[
    ("attention_bias", Used),
    ("mlp_bias", Used),
    ("no_rope_layers", Used),
    ("no_rope_layer_interval", Used),
    ("pretraining_tp", Idle(SPEED)),
];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    intermediate_size: 11_008,
    num_layers: 36,
    num_heads: 16,
    num_kv_heads: Some(4),
    head_dim: None,
    max_positions: 32_768,
    norm_eps: 1e-6,
    rope_theta: 2_000_000.0,
    tied_head: true,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let bias = config.flag("attention_bias", false)?;
    let mut spec = ModelSpec {
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        ..decoder::spec(config, task, &DEFAULTS)?
    };
    let every = config.size("no_rope_layer_interval", 4)?;
    let turns = config.marks("no_rope_layers", spec.num_layers())?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let turns = turns.as_ref().map_or((index + 1) % every != 0, |turns| turns[index]);
        layer.rope = layer.rope.filter(|_| turns);
    }
    let ropes: Vec<bool> = spec.layers.iter().map(|layer| layer.rope.is_some()).collect();
    let slides = config.flag("use_sliding_window", false)?;
    let window = config.size_or_null("sliding_window")?.filter(|_| slides);
    decoder::set_windows(&mut spec, config, window, |layer| !ropes[layer])?;
    Ok(spec)
}
