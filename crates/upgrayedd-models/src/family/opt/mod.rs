//! OPT: learned positions that are counted without padding, ReLU, LayerNorm before or after each half-block
//! (Zhang et al. 2022).

use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, NO_ROPE, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm, Positions};
use crate::weights::{Part, Table, Weight};
use crate::{Error, Result};

pub(crate) static FAMILY: Family = Family {
    model_type: "opt",
    architectures: &[Architecture::causal_lm("OPTForCausalLM")],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "model.",
    marker: "decoder.layers.0.self_attn.q_proj.weight",
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS, NO_ROPE],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Usually("GPT2Tokenizer"),
    types_are_tokens: false,
    buffers: &[],
    shape: Shape { layers: Some("num_hidden_layers"), channels: Some("ffn_dim"), ..Shape::NONE },
    parse,
    weights,
    module: |layer| format!("model.decoder.layers.{layer}.self_attn"),
};

/// What becomes of each key of the configuration.
const KEYS: Keys = &[
    ("vocab_size", Used),
    ("hidden_size", Used),
    ("num_hidden_layers", Used),
    ("num_attention_heads", Used),
    ("ffn_dim", Used),
    ("max_position_embeddings", Used),
    ("activation_function", Used),
    ("do_layer_norm_before", Used),
    ("enable_bias", Used),
    ("tie_word_embeddings", Used),
    ("word_embed_proj_dim", Used),
    ("layer_norm_elementwise_affine", Only(&["true"], "true, norms that have weights")),
    ("_remove_final_layer_norm", Only(&["false"], "false, a norm after the last layer")),
    ("is_causal", Only(&["true"], "true, a decoder that looks back only")),
    ("dropout", Idle(TRAINING)),
    ("activation_dropout", Idle(TRAINING)),
    ("attention_dropout", Idle(TRAINING)),
    ("layerdrop", Idle(TRAINING)),
    ("init_std", Idle(TRAINING)),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", 768)?;
    let num_heads = config.size("num_attention_heads", 12)?;
    let embedded = config.size_or_null("word_embed_proj_dim")?.unwrap_or(hidden_size);
    if embedded != hidden_size {
        return Err(Error::unsupported(format!(
            "config.json: word_embed_proj_dim is {embedded}, which is not supported: expected {hidden_size}, the width of the model"
        )));
    }
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: num_heads,
        intermediate_size: config.size("ffn_dim", 3072)?,
        window: None,
        rope: None,
        block: if config.flag("do_layer_norm_before", true)? { Block::PreNorm } else { Block::PostNorm },
    };
    let bias = config.flag("enable_bias", true)?;
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 50_272)?,
        hidden_size,
        layers: vec![layer; config.layers("num_hidden_layers", 12)?],
        head_dim: config.share_of(hidden_size, num_heads)?,
        max_positions: config.size("max_position_embeddings", 2048)?,
        positions: Positions::Unmasked,
        first_position: 2,
        norm: Norm::Layer,
        norm_eps: 1e-5,
        activation: config.activation("activation_function", "relu")?,
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: bias,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "model.decoder.embed_tokens");
    table.add(Part::Positions, "model.decoder.embed_positions");
    for layer in 0..spec.num_layers() {
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("model.decoder.layers.{layer}.{module}"));
        };
        add(Part::Norm1, "self_attn_layer_norm");
        add(Part::Q, "self_attn.q_proj");
        add(Part::K, "self_attn.k_proj");
        add(Part::V, "self_attn.v_proj");
        add(Part::O, "self_attn.out_proj");
        add(Part::Norm2, "final_layer_norm");
        add(Part::Up, "fc1");
        add(Part::Down, "fc2");
    }
    if spec.layers.iter().all(|layer| layer.block == Block::PreNorm) {
        table.add(Part::FinalNorm, "model.decoder.final_layer_norm");
    }
    table.add(Part::Head, "lm_head");
    table.finish()
}
