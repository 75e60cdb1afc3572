//! What encoders in the manner of BERT have in common: LayerNorm after each half-block, learned positions, and
//! the names of their weights.

use crate::Result;
use crate::family::config::Config;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm};
use crate::weights::{Part, Table};

/// The modeling file of a family whose classes in transformers begin with `stock`, and whose base model is
/// called `prefix`.
macro_rules! modeling {
    ($module:literal, $stock:literal, $prefix:literal) => {
        $crate::family::modeling::Modeling::shared(
            $crate::family::encoder::MODELING,
            &[("MODULE", $module), ("STOCK", $stock), ("PREFIX", $prefix)],
        )
    };
}
pub(super) use modeling;

pub(super) const MODELING: &str = include_str!("modeling.py");

pub(super) const MARKER: &str = "encoder.layer.0.attention.self.query.weight";

pub(super) const BUFFERS: &[&str] = &["embeddings.position_ids", "embeddings.token_type_ids"];

/// Keys that all of them have.
pub(super) const KEYS: Keys = &[
    ("vocab_size", Used),
    ("hidden_size", Used),
    ("num_hidden_layers", Used),
    ("num_attention_heads", Used),
    ("intermediate_size", Used),
    ("hidden_act", Used),
    ("max_position_embeddings", Used),
    ("type_vocab_size", Used),
    ("layer_norm_eps", Used),
    ("tie_word_embeddings", Used),
    ("position_embedding_type", Only(&["\"absolute\"", "null"], "\"absolute\", learned positions")),
    ("is_decoder", Only(&["false"], "false, an encoder")),
    ("add_cross_attention", Only(&["false"], "false, an encoder alone")),
    ("is_causal", Idle("an encoder looks both ways")),
    ("hidden_dropout_prob", Idle(TRAINING)),
    ("attention_probs_dropout_prob", Idle(TRAINING)),
    ("classifier_dropout", Idle(TRAINING)),
];

/// config.json → an encoder; `vocab_size` stands in for a missing key.
pub(super) fn spec(config: &Config<'_>, task: Task, vocab_size: usize) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", 768)?;
    let num_heads = config.size("num_attention_heads", 12)?;
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: num_heads,
        intermediate_size: config.size("intermediate_size", 3072)?,
        window: None,
        rope: None,
        block: Block::PostNorm,
    };
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", vocab_size)?,
        hidden_size,
        layers: vec![layer; config.layers("num_hidden_layers", 12)?],
        head_dim: config.share_of(hidden_size, num_heads)?,
        max_positions: config.size("max_position_embeddings", 512)?,
        type_vocab_size: config.size("type_vocab_size", 2)?,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_eps", Some(1e-12))? as f32,
        activation: config.activation("hidden_act", "gelu")?,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: false,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

/// The base model's weights, but for a pooler.
pub(super) fn add_base(table: &mut Table<'_>, prefix: &str) {
    table.add(Part::Tokens, &format!("{prefix}.embeddings.word_embeddings"));
    table.add(Part::Positions, &format!("{prefix}.embeddings.position_embeddings"));
    table.add(Part::Types, &format!("{prefix}.embeddings.token_type_embeddings"));
    table.add(Part::EmbedNorm, &format!("{prefix}.embeddings.LayerNorm"));
    for layer in 0..table.spec().num_layers() {
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("{prefix}.encoder.layer.{layer}.{module}"));
        };
        add(Part::Q, "attention.self.query");
        add(Part::K, "attention.self.key");
        add(Part::V, "attention.self.value");
        add(Part::O, "attention.output.dense");
        add(Part::Norm1, "attention.output.LayerNorm");
        add(Part::Up, "intermediate.dense");
        add(Part::Down, "output.dense");
        add(Part::Norm2, "output.LayerNorm");
    }
}
