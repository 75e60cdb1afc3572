//! Llama: RMSNorm before each half-block, RoPE, SwiGLU, grouped-query attention (Touvron et al. 2023).

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family};
use crate::family::rope;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, SPEED, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm};
use crate::weights::{Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "llama",
    architectures: &[Architecture::causal_lm("LlamaForCausalLM")],
    modeling: include_str!("modeling.py"),
    base_prefix: "model.",
    marker: "layers.0.self_attn.q_proj.weight",
    task_markers: &[],
    config_aliases: &[],
    keys: KEYS,
    output_head: Some("lm_head.weight"),
    other_names: &[],
    tokenizer: None,
    types_are_tokens: false,
    buffers: &["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"],
    parse,
    weights,
    module: |layer| format!("model.layers.{layer}.self_attn"),
};

/// What becomes of each key of the configuration.
const KEYS: Keys = &[
    ("vocab_size", Used),
    ("hidden_size", Used),
    ("intermediate_size", Used),
    ("num_hidden_layers", Used),
    ("num_attention_heads", Used),
    ("num_key_value_heads", Used),
    ("head_dim", Used),
    ("hidden_act", Used),
    ("max_position_embeddings", Used),
    ("rms_norm_eps", Used),
    ("tie_word_embeddings", Used),
    ("attention_bias", Used),
    ("mlp_bias", Used),
    ("rope_parameters", Used),
    ("rope_scaling", Used),
    ("rope_theta", Used),
    ("partial_rotary_factor", Used),
    ("original_max_position_embeddings", Used),
    ("is_causal", Only(&["true"], "true, a decoder that looks back only")),
    ("pretraining_tp", Idle(SPEED)),
    ("attention_dropout", Idle(TRAINING)),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", 4096)?;
    let num_heads = config.size("num_attention_heads", 32)?;
    let head_dim = config.size_or_null("head_dim")?.unwrap_or((hidden_size / num_heads).max(1));
    let attention_bias = config.flag("attention_bias", false)?;
    let max_positions = config.size("max_position_embeddings", 2048)?;
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: config.size_or_null("num_key_value_heads")?.unwrap_or(num_heads),
        intermediate_size: config.size("intermediate_size", 11_008)?,
        window: None,
        rope: Some(0),
        block: Block::PreNorm,
    };
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 32_000)?,
        hidden_size,
        layers: vec![layer; config.layers("num_hidden_layers", 32)?],
        ropes: vec![rope::inv_freq(config, head_dim, max_positions)?],
        head_dim,
        max_positions,
        type_vocab_size: 0,
        norm: Norm::Rms,
        norm_eps: config.number("rms_norm_eps", Some(1e-6))? as f32,
        activation: config.activation("hidden_act", "silu")?,
        gated_mlp: true,
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        causal: true,
        tied_head: config.flag("tie_word_embeddings", false)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table
        .add(Part::Tokens, "model.embed_tokens")
        .add(Part::FinalNorm, "model.norm")
        .add(Part::Head, "lm_head");
    for layer in 0..spec.num_layers() {
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("model.layers.{layer}.{module}"));
        };
        add(Part::Norm1, "input_layernorm");
        add(Part::Q, "self_attn.q_proj");
        add(Part::K, "self_attn.k_proj");
        add(Part::V, "self_attn.v_proj");
        add(Part::O, "self_attn.o_proj");
        add(Part::Norm2, "post_attention_layernorm");
        add(Part::Gate, "mlp.gate_proj");
        add(Part::Up, "mlp.up_proj");
        add(Part::Down, "mlp.down_proj");
    }
    table.finish()
}
