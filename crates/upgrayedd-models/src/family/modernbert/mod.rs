//! ModernBERT: a pre-norm encoder with rotary positions, a gated MLP, and windows in most layers; masked-LM,
//! classifier or plain encoder (Warner et al. 2024).

use serde_json::Value;

use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::rope;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, SPEED, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm, Objective, Pooling, Rope};
use crate::weights::{Layout, Part, Table, Weight};
use crate::{Error, Result};

pub(crate) static FAMILY: Family = Family {
    model_type: "modernbert",
    architectures: &[
        Architecture::encoder("ModernBertModel"),
        Architecture::masked_lm("ModernBertForMaskedLM"),
        Architecture::classifier("ModernBertForSequenceClassification"),
    ],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "model.",
    marker: "layers.0.attn.Wqkv.weight",
    task_markers: &[("classifier.weight", Task::Classifier), ("head.dense.weight", Task::MaskedLm)],
    config_aliases: &[],
    keys: &[KEYS],
    output_head: Some("decoder.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Always("TokenizersBackend"),
    types_are_tokens: false,
    buffers: &["inv_freq"],
    shape: Shape::ENCODER,
    parse,
    weights,
    module: |layer| format!("model.layers.{layer}.attn"),
};

/// What becomes of each key of the configuration.
const KEYS: Keys = &[
    ("vocab_size", Used),
    ("hidden_size", Used),
    ("num_hidden_layers", Used),
    ("num_attention_heads", Used),
    ("intermediate_size", Used),
    ("hidden_activation", Used),
    ("head_dim", Only(&["null"], "null, the width of the model over its heads")),
    ("max_position_embeddings", Used),
    ("norm_eps", Used),
    ("norm_bias", Used),
    ("attention_bias", Used),
    ("mlp_bias", Used),
    ("decoder_bias", Used),
    ("classifier_bias", Used),
    ("classifier_activation", Used),
    ("classifier_pooling", Used),
    ("tie_word_embeddings", Used),
    ("local_attention", Used),
    ("global_attn_every_n_layers", Used),
    ("rope_parameters", Used),
    ("global_rope_theta", Used),
    ("local_rope_theta", Used),
    ("rope_scaling", Only(&["null"], "rope_parameters, one set for each type of layer")),
    ("rope_theta", Idle("global_rope_theta and local_rope_theta are what counts")),
    ("partial_rotary_factor", Idle("heads are rotated as a whole whatever it says")),
    ("original_max_position_embeddings", Used),
    (
        "layer_types",
        Only(
            &["null", "\"full_attention\"", "\"sliding_attention\""],
            "layers that see the whole text, or a window of it",
        ),
    ),
    ("is_causal", Idle("an encoder looks both ways")),
    ("sparse_prediction", Idle(SPEED)),
    ("sparse_pred_ignore_index", Only(&["-100"], "-100, what does not count everywhere")),
    ("reference_compile", Idle(SPEED)),
    ("repad_logits_with_grad", Idle(SPEED)),
    ("deterministic_flash_attn", Idle(SPEED)),
    ("position_embedding_type", Idle("without effect in transformers")),
    ("layer_norm_eps", Idle("norm_eps is what counts")),
    ("initializer_cutoff_factor", Idle(TRAINING)),
    ("embedding_dropout", Idle(TRAINING)),
    ("attention_dropout", Idle(TRAINING)),
    ("mlp_dropout", Idle(TRAINING)),
    ("classifier_dropout", Idle(TRAINING)),
];

/// The rotation of layers that see everything, and that of layers with a window.
const GLOBAL: (&str, &str, f64) = ("full_attention", "global_rope_theta", 160_000.0);
const LOCAL: (&str, &str, f64) = ("sliding_attention", "local_rope_theta", 10_000.0);

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", 768)?;
    let num_heads = config.size("num_attention_heads", 12)?;
    let head_dim = config.share_of(hidden_size, num_heads)?;
    let max_positions = config.size("max_position_embeddings", 8192)?;
    let num_layers = config.layers("num_hidden_layers", 22)?;
    let every = config.size("global_attn_every_n_layers", 3)?;
    let types = config.layer_types()?;
    // As far to either side as half of it.
    let window = config.size("local_attention", 128)? / 2 + 1;
    let intermediate_size = config.size("intermediate_size", 1152)?;
    let layer = |index: usize| {
        let slides = types.as_ref().map_or(!index.is_multiple_of(every), |types| types[index] == LOCAL.0);
        LayerSpec {
            num_heads,
            num_kv_heads: num_heads,
            intermediate_size,
            window: slides.then_some(window),
            rope: Some(usize::from(slides)),
            block: Block::PreNorm,
        }
    };
    let attention_bias = config.flag("attention_bias", false)?;
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 50_368)?,
        hidden_size,
        layers: (0..num_layers).map(layer).collect(),
        ropes: [GLOBAL, LOCAL]
            .iter()
            .map(|kind| rotation(config, *kind, head_dim, max_positions))
            .collect::<Result<_>>()?,
        head_dim,
        max_positions,
        norm: Norm::Layer,
        norm_bias: config.flag("norm_bias", false)?,
        norm_eps: config.number("norm_eps", Some(1e-5))? as f32,
        activation: config.activation("hidden_activation", "gelu")?,
        gated_mlp: true,
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        causal: false,
        tied_head: config.flag("tie_word_embeddings", true)?,
        transform_bias: config.flag("classifier_bias", false)?,
        head_bias: config.flag("decoder_bias", true)?,
        head_activation: config.activation("classifier_activation", "gelu")?,
        pooling: match config.text("classifier_pooling")? {
            None | Some("cls") => Pooling::First,
            Some("mean") => Pooling::Mean,
            Some(other) => {
                return Err(Error::unknown_name(
                    "classifier_pooling in config.json",
                    other,
                    &["cls", "mean"],
                ));
            }
        },
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

/// The rotation of a type of layers: its set of `rope_parameters`, or a base under a key of its own.
fn rotation(
    config: &Config<'_>,
    (kind, key, theta): (&str, &str, f64),
    head_dim: usize,
    max_positions: usize,
) -> Result<Rope> {
    let theta = config.number(key, Some(theta))?;
    let sets = config.object("rope_parameters")?;
    if let Some((other, _)) = sets
        .and_then(Value::as_object)
        .and_then(|sets| sets.iter().find(|(_, set)| !set.is_object() && !set.is_null()))
    {
        return Err(Error::malformed(format!(
            "config.json: rope_parameters has {other} for all layers: expected one set for each type of layer"
        )));
    }
    let set = sets.map(|sets| &sets[kind]).filter(|set| !set.is_null());
    // Nothing on the top level counts for sets that are apart.
    rope::rotation(&Config::new(&Value::Null, &[]), set, rope::Of { columns: head_dim, max_positions, theta })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "model.embeddings.tok_embeddings");
    table.add(Part::EmbedNorm, "model.embeddings.norm");
    for layer in 0..spec.num_layers() {
        let module = |module: &str| format!("model.layers.{layer}.{module}");
        // The first layer reads what the norm of the embeddings has made.
        if layer > 0 {
            table.add_to(layer, Part::Norm1, &module("attn_norm"));
        }
        for (order, part) in [Part::Q, Part::K, Part::V].into_iter().enumerate() {
            table.add_laid(layer, part, &module("attn.Wqkv"), |_| Layout::Stacked(order));
        }
        table.add_to(layer, Part::O, &module("attn.Wo"));
        table.add_to(layer, Part::Norm2, &module("mlp_norm"));
        for (order, part) in [Part::Gate, Part::Up].into_iter().enumerate() {
            table.add_laid(layer, part, &module("mlp.Wi"), |_| Layout::Stacked(order));
        }
        table.add_to(layer, Part::Down, &module("mlp.Wo"));
    }
    table.add(Part::FinalNorm, "model.final_norm");
    if spec.objective != Objective::Encoder {
        let head = if spec.objective == Objective::MaskedLm { "decoder" } else { "classifier" };
        table.add(Part::HeadTransform, "head.dense").add(Part::HeadNorm, "head.norm").add(Part::Head, head);
    }
    table.finish()
}
