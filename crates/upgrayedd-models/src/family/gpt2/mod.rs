//! GPT-2: learned positions, LayerNorm before each half-block, transposed and fused projections (Radford et
//! al. 2019).

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{
    ELSEWHERE,
    Fate::{Idle, Only, Used},
    Keys, NO_ROPE, SPEED, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm};
use crate::weights::{Kind, Layout, Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &[Architecture::causal_lm("GPT2LMHeadModel")],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "transformer.",
    marker: "h.0.attn.c_attn.weight",
    task_markers: &[],
    config_aliases: &[
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
    ],
    keys: &[KEYS, NO_ROPE],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Usually("GPT2Tokenizer"),
    types_are_tokens: true,
    buffers: &[".attn.bias", ".attn.masked_bias"],
    shape: Shape { channels: Some("n_inner"), pruned_heads: true, ..Shape::NONE },
    parse,
    weights,
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
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: num_heads,
        intermediate_size: config.size_or_null("n_inner")?.unwrap_or(4 * hidden_size),
        window: None,
        rope: None,
        block: Block::PreNorm,
    };
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 50_257)?,
        hidden_size,
        layers: vec![layer; config.layers("n_layer", 12)?],
        ropes: Vec::new(),
        head_dim: config.share_of(hidden_size, num_heads)?,
        max_positions: config.size("n_positions", 1024)?,
        type_vocab_size: 0,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_epsilon", Some(1e-5))? as f32,
        activation: config.activation("activation_function", "gelu_new")?,
        gated_mlp: false,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: true,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "transformer.wte").add(Part::Positions, "transformer.wpe");
    table.add(Part::FinalNorm, "transformer.ln_f").add(Part::Head, "lm_head");
    let transposed = |kind| if kind == Kind::Weight { Layout::Transposed } else { Layout::Plain };
    for layer in 0..spec.num_layers() {
        let of = |module: &str| format!("transformer.h.{layer}.{module}");
        table.add_to(layer, Part::Norm1, &of("ln_1"));
        for (third, part) in [Part::Q, Part::K, Part::V].into_iter().enumerate() {
            table.add_laid(layer, part, &of("attn.c_attn"), |_| Layout::StackedTransposed(third));
        }
        table.add_laid(layer, Part::O, &of("attn.c_proj"), transposed);
        table.add_to(layer, Part::Norm2, &of("ln_2"));
        table.add_laid(layer, Part::Up, &of("mlp.c_fc"), transposed);
        table.add_laid(layer, Part::Down, &of("mlp.c_proj"), transposed);
    }
    table.finish()
}
