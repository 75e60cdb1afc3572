//! Mistral: Llama with a window in every layer, which newer models leave out (Jiang et al. 2023), or in some, which
//! transformers calls Ministral.

use crate::Result;
use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Only, Used},
    Keys,
};
use crate::spec::ModelSpec;

pub(crate) static FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &[Architecture::causal_lm("MistralForCausalLM")],
    modeling: decoder::modeling!("mistral", "Mistral"),
    base_prefix: "model.",
    marker: decoder::MARKER,
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Always("TokenizersBackend"),
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::Any, &["layer_types"]),
    parse,
    weights: decoder::weights,
    module: decoder::module,
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[
    ("sliding_window", Used),
    (
        "layer_types",
        Only(
            &["null", "\"full_attention\"", "\"sliding_attention\""],
            "layers that see the whole text, or a window of it",
        ),
    ),
];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: Some(8),
    head_dim: None,
    max_positions: 131_072,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tied_head: false,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let mut spec = decoder::spec(config, task, &DEFAULTS)?;
    let width = if config.get("sliding_window").is_some() { None } else { Some(4096) };
    let window = config.size_or_null("sliding_window")?.or(width);
    decoder::set_windows(&mut spec, config, window, |_| true)?;
    Ok(spec)
}
