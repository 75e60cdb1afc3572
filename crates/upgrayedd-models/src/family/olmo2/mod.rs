//! OLMo 2: Llama whose norms stand after attention and MLP, with norms over the queries and keys of all heads
//! together (OLMo team 2025). Those keep heads from being pruned.

use crate::Result;
use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::keys::{Fate::Used, Keys};
use crate::spec::{ModelSpec, QkNorm};
use crate::weights::{Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "olmo2",
    architectures: &[Architecture::causal_lm("Olmo2ForCausalLM")],
    modeling: decoder::modeling!("olmo2", "Olmo2"),
    base_prefix: "model.",
    marker: "layers.0.post_feedforward_layernorm.weight",
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Always("TokenizersBackend"),
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::Width, &[]),
    parse,
    weights,
    module: decoder::module,
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[("attention_bias", Used)];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_304,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tied_head: false,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let bias = config.flag("attention_bias", false)?;
    let spec = decoder::spec(config, task, &DEFAULTS)?;
    Ok(ModelSpec { qkv_bias: bias, out_bias: bias, qk_norm: QkNorm::All, ..spec })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    decoder::add_around(&mut table);
    for layer in 0..spec.num_layers() {
        decoder::add_projections(&mut table, layer);
        table.add_to(layer, Part::Post1, &format!("model.layers.{layer}.post_attention_layernorm"));
        table.add_to(layer, Part::Post2, &format!("model.layers.{layer}.post_feedforward_layernorm"));
    }
    table.finish()
}
