//! Phi-3 and Phi-4-mini: Llama with fused projections, heads that may be rotated in part, and rotations for long
//! texts (Abdin et al. 2024, Ding et al. 2024).

use serde_json::{Value, json};

use crate::Result;
use crate::family::config::Config;
use crate::family::decoder::{self, Defaults};
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::rope;
use crate::family::shape::Heads;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Used},
    Keys, TRAINING,
};
use crate::spec::ModelSpec;
use crate::weights::{Layout, Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "phi3",
    architectures: &[Architecture::causal_lm("Phi3ForCausalLM")],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "model.",
    marker: "layers.0.self_attn.qkv_proj.weight",
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, decoder::KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Always("TokenizersBackend"),
    types_are_tokens: false,
    buffers: decoder::BUFFERS,
    shape: decoder::shape(Heads::InTransformers, &[]),
    parse,
    weights,
    module: decoder::module,
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[
    ("sliding_window", Used),
    ("resid_pdrop", Idle(TRAINING)),
    ("embd_pdrop", Idle(TRAINING)),
    ("attention_bias", Idle("there are no biases whatever it says")),
    ("mlp_bias", Idle("there are no biases whatever it says")),
    ("lm_head_bias", Idle("there are no biases whatever it says")),
    ("full_attn_mod", Idle("without effect in transformers")),
    ("interpolate_factor", Idle("without effect in transformers")),
];

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    head_dim: None,
    max_positions: 4096,
    norm_eps: 1e-5,
    rope_theta: 10_000.0,
    tied_head: false,
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let mut spec = decoder::without_rope(config, task, &DEFAULTS)?;
    let mut parameters = rope::parameters(config)?.cloned().unwrap_or_else(|| json!({}));
    for key in ["rope_type", "type"] {
        // The names of older files.
        if ["su", "yarn"].iter().any(|old| parameters[key] == *old) {
            parameters[key] = "longrope".into();
        }
    }
    let share = match config.get("partial_rotary_factor") {
        None | Some(Value::Null) => 1.0,
        Some(_) => config.number("partial_rotary_factor", None)?,
    };
    let of = rope::Of {
        columns: rope::part_of(Some(&parameters), share, spec.head_dim)?,
        max_positions: spec.max_positions,
        theta: config.number("rope_theta", Some(DEFAULTS.rope_theta))?,
    };
    let original = "original_max_position_embeddings";
    if config.get(original).is_none() {
        // The class has one of its own, which goes first.
        parameters[original] = DEFAULTS.max_positions.into();
    }
    spec.ropes = vec![rope::rotation(config, Some(&parameters), of)?];
    let window = config.size_or_null("sliding_window")?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    decoder::add_around(&mut table);
    for layer in 0..spec.num_layers() {
        let module = |module: &str| format!("model.layers.{layer}.{module}");
        table.add_to(layer, Part::Norm1, &module("input_layernorm"));
        for (order, part) in [Part::Q, Part::K, Part::V].into_iter().enumerate() {
            table.add_laid(layer, part, &module("self_attn.qkv_proj"), |_| Layout::Stacked(order));
        }
        table.add_to(layer, Part::O, &module("self_attn.o_proj"));
        table.add_to(layer, Part::Norm2, &module("post_attention_layernorm"));
        for (order, part) in [Part::Gate, Part::Up].into_iter().enumerate() {
            table.add_laid(layer, part, &module("mlp.gate_up_proj"), |_| Layout::Stacked(order));
        }
        table.add_to(layer, Part::Down, &module("mlp.down_proj"));
    }
    table.finish()
}
