//! BERT: bidirectional, LayerNorm after each half-block, padding masks; masked-LM, classifier or plain
//! encoder (Devlin et al. 2019).

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family};
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm, Objective};
use crate::weights::{Kind, Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "bert",
    architectures: &[
        Architecture::encoder("BertModel"),
        Architecture::masked_lm("BertForMaskedLM"),
        Architecture::masked_lm("BertForPreTraining"),
        Architecture::classifier("BertForSequenceClassification"),
    ],
    modeling: include_str!("modeling.py"),
    base_prefix: "bert.",
    marker: "encoder.layer.0.attention.self.query.weight",
    task_markers: &[
        ("cls.predictions.transform.dense.weight", Task::MaskedLm),
        ("classifier.weight", Task::Classifier),
    ],
    config_aliases: &[],
    keys: KEYS,
    output_head: Some("cls.predictions.decoder.weight"),
    // One bias under two names; what the decoder itself has is what transformers computes with.
    other_names: &[("cls.predictions.bias", "cls.predictions.decoder.bias")],
    tokenizer: Some("BertTokenizer"),
    types_are_tokens: false,
    buffers: &["embeddings.position_ids", "embeddings.token_type_ids"],
    parse,
    weights,
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
    ("rope_scaling", Idle("this family has no rotary positions")),
    ("rope_parameters", Idle("this family has no rotary positions")),
    ("rope_theta", Idle("this family has no rotary positions")),
    ("partial_rotary_factor", Idle("this family has no rotary positions")),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
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
        vocab_size: config.size("vocab_size", 30_522)?,
        hidden_size,
        layers: vec![layer; config.layers("num_hidden_layers", 12)?],
        head_dim: config.share_of(hidden_size, num_heads)?,
        max_positions: config.size("max_position_embeddings", 512)?,
        type_vocab_size: config.size("type_vocab_size", 2)?,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_eps", Some(1e-12))? as f32,
        activation: config.activation("hidden_act", "gelu")?,
        gated_mlp: false,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: false,
        tied_head: config.flag("tie_word_embeddings", true)?,
        head_activation: config.activation("hidden_act", "gelu")?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "bert.embeddings.word_embeddings");
    table.add(Part::Positions, "bert.embeddings.position_embeddings");
    table.add(Part::Types, "bert.embeddings.token_type_embeddings");
    table.add(Part::EmbedNorm, "bert.embeddings.LayerNorm");
    for layer in 0..spec.num_layers() {
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("bert.encoder.layer.{layer}.{module}"));
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
    match spec.objective {
        Objective::Classifier { .. } => {
            table.add(Part::Pooler, "bert.pooler.dense").add(Part::Head, "classifier");
        }
        Objective::MaskedLm => {
            table.add_optional(Part::Pooler, "bert.pooler.dense");
            // The head for next-sentence prediction of a BertForPreTraining comes along; nothing is learned
            // with it.
            table.add_optional(Part::NextSentence, "cls.seq_relationship");
            table.add(Part::HeadTransform, "cls.predictions.transform.dense");
            table.add(Part::HeadNorm, "cls.predictions.transform.LayerNorm");
            table.add_one(Part::Head, Kind::Bias, "cls.predictions.bias");
            table.add_one(Part::Head, Kind::Weight, "cls.predictions.decoder.weight");
        }
        _ => {
            table.add_optional(Part::Pooler, "bert.pooler.dense");
        }
    }
    table.finish()
}
