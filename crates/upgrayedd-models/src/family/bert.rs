//! BERT: bidirectional, LayerNorm after each half-block, padding masks; masked-LM, classifier or plain encoder (Devlin et al. 2019).

use super::config::Config;
use super::definition::{Family, HfTensor, Task, plain};
use crate::Result;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, TRAINING,
};
use crate::spec::{Block, ModelSpec, Norm, Objective, Positions};

pub(super) static FAMILY: Family = Family {
    model_type: "bert",
    architectures: &[
        ("BertModel", Task::Encoder),
        ("BertForMaskedLM", Task::MaskedLm),
        ("BertForPreTraining", Task::MaskedLm),
        ("BertForSequenceClassification", Task::Classifier),
    ],
    base_prefix: "bert.",
    marker: "encoder.layer.0.attention.self.query.weight",
    task_markers: &[("cls.predictions.transform.dense.weight", Task::MaskedLm), ("classifier.weight", Task::Classifier)],
    config_aliases: &[],
    keys: KEYS,
    output_head: Some("cls.predictions.decoder.weight"),
    // One bias under two names; what the decoder itself has is what transformers computes with.
    other_names: &[("cls.predictions.bias", "cls.predictions.decoder.bias")],
    types_are_tokens: false,
    buffers: &["embeddings.position_ids", "embeddings.token_type_ids"],
    parse,
    tensors,
    module: |layer| format!("bert.encoder.layer.{layer}.attention.self"),
};

/// What becomes of each key of the configuration.
const KEYS: Keys = &[
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
    ("pooler_fc_size", Idle("of Google's first files, without effect in transformers")),
    ("pooler_num_attention_heads", Idle("of Google's first files, without effect in transformers")),
    ("pooler_num_fc_layers", Idle("of Google's first files, without effect in transformers")),
    ("pooler_size_per_head", Idle("of Google's first files, without effect in transformers")),
    ("pooler_type", Idle("of Google's first files, without effect in transformers")),
    ("directionality", Idle("of Google's first files, without effect in transformers")),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", 768)?;
    let num_heads = config.size("num_attention_heads", 12)?;
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 30_522)?,
        hidden_size,
        intermediate_size: config.size("intermediate_size", 3072)?,
        num_layers: config.layers("num_hidden_layers", 12)?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: (hidden_size / num_heads).max(1),
        max_positions: config.size("max_position_embeddings", 512)?,
        type_vocab_size: config.size("type_vocab_size", 2)?,
        block: Block::PostNorm,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_eps", Some(1e-12))? as f32,
        positions: Positions::Learned,
        activation: config.activation("hidden_act", "gelu")?,
        gated_mlp: false,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: false,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
    })
}

fn tensors(spec: &ModelSpec) -> Vec<HfTensor> {
    let mut all = vec![
        plain("embed.tokens", "bert.embeddings.word_embeddings.weight"),
        plain("embed.positions", "bert.embeddings.position_embeddings.weight"),
        plain("embed.types", "bert.embeddings.token_type_embeddings.weight"),
        plain("embed.norm.weight", "bert.embeddings.LayerNorm.weight"),
        plain("embed.norm.bias", "bert.embeddings.LayerNorm.bias"),
    ];
    let mut linear = |ours: String, theirs: String, optional: bool| {
        for kind in ["weight", "bias"] {
            all.push(HfTensor { optional, ..plain(format!("{ours}.{kind}"), format!("{theirs}.{kind}")) });
        }
    };
    for i in 0..spec.num_layers {
        let parts = [
            ("attn.q", "attention.self.query"),
            ("attn.k", "attention.self.key"),
            ("attn.v", "attention.self.value"),
            ("attn.o", "attention.output.dense"),
            ("norm1", "attention.output.LayerNorm"),
            ("mlp.up", "intermediate.dense"),
            ("mlp.down", "output.dense"),
            ("norm2", "output.LayerNorm"),
        ];
        for (ours, theirs) in parts {
            linear(format!("layers.{i}.{ours}"), format!("bert.encoder.layer.{i}.{theirs}"), false);
        }
    }
    let classifier = matches!(spec.objective, Objective::Classifier { .. });
    linear("pooler".into(), "bert.pooler.dense".into(), !classifier);
    if classifier {
        linear("head".into(), "classifier".into(), false);
    }
    if spec.objective == Objective::MaskedLm {
        // The head for next-sentence prediction of a BertForPreTraining comes along; nothing is learned with it.
        linear("next_sentence".into(), "cls.seq_relationship".into(), true);
        linear("head.transform".into(), "cls.predictions.transform.dense".into(), false);
        linear("head.norm".into(), "cls.predictions.transform.LayerNorm".into(), false);
        all.push(plain("head.bias", "cls.predictions.bias"));
        if !spec.tied_head {
            all.push(plain("head.weight", "cls.predictions.decoder.weight"));
        }
    }
    all
}
