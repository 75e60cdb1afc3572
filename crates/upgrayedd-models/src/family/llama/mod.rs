//! Llama: RMSNorm before each half-block, RoPE, SwiGLU, grouped-query attention (Touvron et al. 2023).

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
    model_type: "llama",
    architectures: &[Architecture::causal_lm("LlamaForCausalLM")],
    modeling: decoder::modeling!("llama", "Llama"),
    base_prefix: "model.",
    marker: decoder::MARKER,
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Named,
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::Divisors, &[]),
    parse,
    weights: decoder::weights,
    module: decoder::module,
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[("attention_bias", Used), ("mlp_bias", Used), ("pretraining_tp", Idle(SPEED))];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tied_head: false,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let bias = config.flag("attention_bias", false)?;
    Ok(ModelSpec {
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        ..decoder::spec(config, task, &DEFAULTS)?
    })
}
