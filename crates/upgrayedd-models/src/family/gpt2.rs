//! GPT-2: learned positions, LayerNorm before each half-block, transposed and fused projections (Radford et al. 2019).

use super::config::Config;
use super::definition::{Family, HfTensor, Layout, Task, plain};
use crate::Result;
use crate::keys::{
    ELSEWHERE,
    Fate::{Idle, Only, Used},
    Keys, SPEED, TRAINING,
};
use crate::spec::{Block, ModelSpec, Norm, Positions};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &[("GPT2LMHeadModel", Task::CausalLm)],
    base_prefix: "transformer.",
    marker: "h.0.attn.c_attn.weight",
    task_markers: &[],
    config_aliases: &[
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
    ],
    keys: KEYS,
    output_head: Some("lm_head.weight"),
    other_names: &[],
    types_are_tokens: true,
    buffers: &[".attn.bias", ".attn.masked_bias"],
    parse,
    tensors,
    module: |layer| format!("transformer.h.{layer}.attn"),
};

/// What becomes of each key of the configuration.
const KEYS: Keys = &[
    ("vocab_size", Used),
    ("n_embd", Used),
    ("n_layer", Used),
    ("n_head", Used),
    ("n_positions", Used),
    ("n_inner", Used),
    ("hidden_size", Used),
    ("num_hidden_layers", Used),
    ("num_attention_heads", Used),
    ("max_position_embeddings", Used),
    ("activation_function", Used),
    ("layer_norm_epsilon", Used),
    ("tie_word_embeddings", Used),
    ("scale_attn_weights", Only(&["true"], "true, scores divided by the root of the head's width")),
    ("scale_attn_by_inverse_layer_idx", Only(&["false"], "false, scores scaled alike in all layers")),
    ("add_cross_attention", Only(&["false"], "false, a decoder alone")),
    ("is_causal", Only(&["true"], "true, a decoder that looks back only")),
    ("reorder_and_upcast_attn", Idle(SPEED)),
    ("n_ctx", Idle("n_positions is what counts")),
    ("resid_pdrop", Idle(TRAINING)),
    ("embd_pdrop", Idle(TRAINING)),
    ("attn_pdrop", Idle(TRAINING)),
    ("summary_type", Idle(ELSEWHERE)),
    ("summary_use_proj", Idle(ELSEWHERE)),
    ("summary_activation", Idle(ELSEWHERE)),
    ("summary_proj_to_labels", Idle(ELSEWHERE)),
    ("summary_first_dropout", Idle(ELSEWHERE)),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("n_embd", 768)?;
    let num_heads = config.size("n_head", 12)?;
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 50_257)?,
        hidden_size,
        intermediate_size: config.size_or_null("n_inner")?.unwrap_or(4 * hidden_size),
        num_layers: config.layers("n_layer", 12)?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: (hidden_size / num_heads).max(1),
        max_positions: config.size("n_positions", 1024)?,
        type_vocab_size: 0,
        block: Block::PreNorm,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_epsilon", Some(1e-5))? as f32,
        positions: Positions::Learned,
        activation: config.activation("activation_function", "gelu_new")?,
        gated_mlp: false,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: true,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
    })
}

fn tensors(spec: &ModelSpec) -> Vec<HfTensor> {
    let mut all = vec![
        plain("embed.tokens", "transformer.wte.weight"),
        plain("embed.positions", "transformer.wpe.weight"),
        plain("final_norm.weight", "transformer.ln_f.weight"),
        plain("final_norm.bias", "transformer.ln_f.bias"),
    ];
    if !spec.tied_head {
        all.push(plain("head.weight", "lm_head.weight"));
    }
    for i in 0..spec.num_layers {
        let (ours, theirs) = (format!("layers.{i}"), format!("transformer.h.{i}"));
        let mut add = |ours_part: &str, their_part: &str, weight: Layout, bias: Layout| {
            for (kind, layout) in [("weight", weight), ("bias", bias)] {
                let tensor = plain(format!("{ours}.{ours_part}.{kind}"), format!("{theirs}.{their_part}.{kind}"));
                all.push(HfTensor { layout, ..tensor });
            }
        };
        add("norm1", "ln_1", Layout::Plain, Layout::Plain);
        for (third, name) in ["attn.q", "attn.k", "attn.v"].into_iter().enumerate() {
            add(name, "attn.c_attn", Layout::FusedThird(third), Layout::FusedThird(third));
        }
        add("attn.o", "attn.c_proj", Layout::Transposed, Layout::Plain);
        add("norm2", "ln_2", Layout::Plain, Layout::Plain);
        add("mlp.up", "mlp.c_fc", Layout::Transposed, Layout::Plain);
        add("mlp.down", "mlp.c_proj", Layout::Transposed, Layout::Plain);
    }
    all
}
