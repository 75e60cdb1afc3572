//! Qwen3: Qwen2 without biases, with an RMSNorm on each head's queries and keys (Yang et al. 2025).

use crate::Result;
use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::qwen2;
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::keys::{Fate::Used, Keys};
use crate::spec::{ModelSpec, QkNorm};

pub(crate) static FAMILY: Family = Family {
    model_type: "qwen3",
    architectures: &[Architecture::causal_lm("Qwen3ForCausalLM")],
    modeling: decoder::modeling!("qwen3", "Qwen3"),
    base_prefix: "model.",
    marker: decoder::MARKER,
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, decoder::WINDOW_KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Usually("Qwen2Tokenizer"),
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::Any, &["layer_types"]),
    parse,
    weights: decoder::weights,
    module: decoder::module,
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[("attention_bias", Used)];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: Some(32),
    head_dim: Some(128),
    max_positions: 32_768,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tied_head: false,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let bias = config.flag("attention_bias", false)?;
    let mut spec = ModelSpec {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: QkNorm::Heads,
        ..decoder::spec(config, task, &DEFAULTS)?
    };
    qwen2::set_windows(&mut spec, config)?;
    Ok(spec)
}
