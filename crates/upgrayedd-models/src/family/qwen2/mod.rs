//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and windows in the upper layers where asked for (Yang et al. 2024).

use crate::Result;
use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::spec::ModelSpec;

pub(crate) static FAMILY: Family = Family {
    model_type: "qwen2",
    architectures: &[Architecture::causal_lm("Qwen2ForCausalLM")],
    modeling: decoder::modeling!("qwen2", "Qwen2"),
    base_prefix: "model.",
    marker: decoder::MARKER,
    task_markers: &[],
    config_aliases: &[],
    keys: &[decoder::WINDOW_KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Always("Qwen2Tokenizer"),
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::InTransformers, &["layer_types"]),
    parse,
    weights: decoder::weights,
    module: decoder::module,
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: Some(32),
    head_dim: None,
    max_positions: 32_768,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tied_head: false,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let mut spec = ModelSpec { qkv_bias: true, ..decoder::spec(config, task, &DEFAULTS)? };
    set_windows(&mut spec, config)?;
    Ok(spec)
}

/// Windows as Qwen2 and Qwen3 have them: only if asked for, and then in the upper layers.
pub(super) fn set_windows(spec: &mut ModelSpec, config: &Config<'_>) -> Result<()> {
    let width = if config.get("sliding_window").is_some() { None } else { Some(4096) };
    let width = config.size_or_null("sliding_window")?.or(width);
    let slides = config.flag("use_sliding_window", false)?;
    let window = width.filter(|_| slides);
    let from = config.count("max_window_layers", 28)?;
    decoder::set_windows(spec, config, window, |layer| layer >= from)
}
