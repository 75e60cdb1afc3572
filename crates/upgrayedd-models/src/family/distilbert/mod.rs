//! DistilBERT: BERT without token types and pooler, under names of its own; masked-LM, classifier or plain
//! encoder (Sanh et al. 2019).

use upgrayedd_nn::ops::Activation;

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Used},
    Keys, NO_ROPE, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm, Objective};
use crate::weights::{Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "distilbert",
    architectures: &[
        Architecture::encoder("DistilBertModel"),
        Architecture::masked_lm("DistilBertForMaskedLM"),
        Architecture::classifier("DistilBertForSequenceClassification"),
    ],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "distilbert.",
    marker: "transformer.layer.0.attention.q_lin.weight",
    task_markers: &[("vocab_transform.weight", Task::MaskedLm), ("pre_classifier.weight", Task::Classifier)],
    config_aliases: &[
        ("hidden_size", "dim"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
    ],
    keys: &[KEYS, NO_ROPE],
    output_head: Some("vocab_projector.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Usually("BertTokenizer"),
    types_are_tokens: false,
    buffers: &["embeddings.position_ids"],
    shape: Shape { channels: Some("hidden_dim"), pruned_heads: true, ..Shape::NONE },
    parse,
    weights,
    module: |layer| format!("distilbert.transformer.layer.{layer}.attention"),
};

/// What becomes of each key of the configuration.
const KEYS: Keys = &[
    ("vocab_size", Used),
    ("dim", Used),
    ("n_layers", Used),
    ("n_heads", Used),
    ("hidden_dim", Used),
    ("hidden_size", Used),
    ("num_hidden_layers", Used),
    ("num_attention_heads", Used),
    ("max_position_embeddings", Used),
    ("activation", Used),
    ("tie_word_embeddings", Used),
    ("sinusoidal_pos_embds", Idle("says how the table began, which is in the file either way")),
    ("tie_weights_", Idle("tie_word_embeddings is what counts")),
    ("is_causal", Idle("an encoder looks both ways")),
    ("dropout", Idle(TRAINING)),
    ("attention_dropout", Idle(TRAINING)),
    ("qa_dropout", Idle(TRAINING)),
    ("seq_classif_dropout", Idle(TRAINING)),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("dim", 768)?;
    let num_heads = config.size("n_heads", 12)?;
    let activation = config.activation("activation", "gelu")?;
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: num_heads,
        intermediate_size: config.size("hidden_dim", 3072)?,
        window: None,
        rope: None,
        block: Block::PostNorm,
    };
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 30_522)?,
        hidden_size,
        layers: vec![layer; config.layers("n_layers", 6)?],
        head_dim: config.share_of(hidden_size, num_heads)?,
        max_positions: config.size("max_position_embeddings", 512)?,
        norm: Norm::Layer,
        norm_eps: 1e-12,
        activation,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: false,
        tied_head: config.flag("tie_word_embeddings", true)?,
        head_activation: activation,
        pooler_activation: Activation::Relu,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "distilbert.embeddings.word_embeddings");
    table.add(Part::Positions, "distilbert.embeddings.position_embeddings");
    table.add(Part::EmbedNorm, "distilbert.embeddings.LayerNorm");
    for layer in 0..spec.num_layers() {
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("distilbert.transformer.layer.{layer}.{module}"));
        };
        add(Part::Q, "attention.q_lin");
        add(Part::K, "attention.k_lin");
        add(Part::V, "attention.v_lin");
        add(Part::O, "attention.out_lin");
        add(Part::Norm1, "sa_layer_norm");
        add(Part::Up, "ffn.lin1");
        add(Part::Down, "ffn.lin2");
        add(Part::Norm2, "output_layer_norm");
    }
    match spec.objective {
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => {
            table.add(Part::Pooler, "pre_classifier").add(Part::Head, "classifier");
        }
        Objective::MaskedLm => {
            table.add(Part::HeadTransform, "vocab_transform");
            table.add(Part::HeadNorm, "vocab_layer_norm");
            table.add(Part::Head, "vocab_projector");
        }
        _ => {}
    }
    table.finish()
}
