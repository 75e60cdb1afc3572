//! BERT: bidirectional, LayerNorm after each half-block, padding masks; masked-LM, classifier or plain encoder (Devlin et al. 2019).

use super::{Config, Family, HfTensor, Task, plain};
use crate::model::{Block, ModelSpec, Norm, Objective, Positions};
use crate::{Error, Result};

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
    parse,
    tensors,
    module: |layer| format!("bert.encoder.layer.{layer}.attention.self"),
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", None)?;
    let num_heads = config.size("num_attention_heads", None)?;
    if let Some(kind) = config.0["position_embedding_type"].as_str().filter(|k| *k != "absolute") {
        return Err(Error::invalid(format!(
            "config.json: position_embedding_type {kind:?} is not supported: expected \"absolute\""
        )));
    }
    if config.flag("is_decoder", false)? {
        return Err(Error::invalid("config.json: is_decoder = true is not supported for bert"));
    }
    Ok(ModelSpec {
        family: &FAMILY,
        vocab_size: config.size("vocab_size", None)?,
        hidden_size,
        intermediate_size: config.size("intermediate_size", None)?,
        num_layers: config.size("num_hidden_layers", None)?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: (hidden_size / num_heads).max(1),
        max_positions: config.size("max_position_embeddings", Some(512))?,
        type_vocab_size: config.size("type_vocab_size", Some(2))?,
        block: Block::PostNorm,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_eps", 1e-12)? as f32,
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
        linear("head.transform".into(), "cls.predictions.transform.dense".into(), false);
        linear("head.norm".into(), "cls.predictions.transform.LayerNorm".into(), false);
        all.push(plain("head.bias", "cls.predictions.bias"));
        if !spec.tied_head {
            all.push(plain("head.weight", "cls.predictions.decoder.weight"));
        }
    }
    all
}
