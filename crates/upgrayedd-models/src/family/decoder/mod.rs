//! What decoders in the manner of Llama have in common: RMSNorm before each half-block, rotary positions, a
//! gated MLP, grouped-query attention, and the names of their weights.

use crate::Result;
use crate::family::config::Config;
use crate::family::rope;
use crate::family::shape::{Heads, Shape};
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm};
use crate::weights::{Part, Table, Weight};

/// The modeling file of a family whose classes in transformers begin with `stock`.
macro_rules! modeling {
    ($module:literal, $stock:literal) => {
        $crate::family::modeling::Modeling::shared(
            $crate::family::decoder::MODELING,
            &[("MODULE", $module), ("STOCK", $stock)],
        )
    };
}
pub(super) use modeling;

pub(super) const MODELING: &str = include_str!("modeling.py");

pub(super) const MARKER: &str = "layers.0.self_attn.q_proj.weight";

pub(super) const BUFFERS: &[&str] =
    &["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];

/// Keys that all of them have.
pub(super) const KEYS: Keys = &[
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
    ("rope_parameters", Used),
    ("rope_scaling", Used),
    ("rope_theta", Used),
    ("partial_rotary_factor", Used),
    ("original_max_position_embeddings", Used),
    ("is_causal", Only(&["true"], "true, a decoder that looks back only")),
    ("attention_dropout", Idle(TRAINING)),
];

/// Keys of windows, for families that have them.
pub(super) const WINDOW_KEYS: Keys = &[
    ("sliding_window", Used),
    ("use_sliding_window", Used),
    ("max_window_layers", Used),
    (
        "layer_types",
        Only(
            &["null", "\"full_attention\"", "\"sliding_attention\""],
            "layers that see the whole text, or a window of it",
        ),
    ),
];

/// The keys of sizes, and the lists with an entry for each layer.
pub(super) const fn shape(heads: Heads, by_layer: &'static [&'static str]) -> Shape {
    Shape {
        layers: Some("num_hidden_layers"),
        by_layer,
        heads,
        channels: Some("intermediate_size"),
        pruned_heads: false,
    }
}

/// What a family's configuration class says where config.json is silent.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_layers: usize,
    pub(super) num_heads: usize,
    /// As many as query heads if absent.
    pub(super) num_kv_heads: Option<usize>,
    /// The model's width over the heads if absent.
    pub(super) head_dim: Option<usize>,
    pub(super) max_positions: usize,
    pub(super) norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) tied_head: bool,
}

/// config.json → a model without biases and windows whose layers are all alike.
pub(super) fn spec(config: &Config<'_>, task: Task, defaults: &Defaults) -> Result<ModelSpec> {
    let spec = without_rope(config, task, defaults)?;
    let of =
        rope::Of { columns: spec.head_dim, max_positions: spec.max_positions, theta: defaults.rope_theta };
    Ok(ModelSpec { ropes: vec![rope::whole(config, of)?], ..spec })
}

/// The same, whose only rotation is yet to be read.
pub(super) fn without_rope(config: &Config<'_>, task: Task, defaults: &Defaults) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", defaults.hidden_size)?;
    let num_heads = config.size("num_attention_heads", defaults.num_heads)?;
    // null is not the default.
    let or = |key: &str, default: Option<usize>, derived: usize| -> Result<usize> {
        let default = if config.get(key).is_some() { None } else { default };
        Ok(config.size_or_null(key)?.or(default).unwrap_or(derived))
    };
    let head_dim = or("head_dim", defaults.head_dim, (hidden_size / num_heads).max(1))?;
    let max_positions = config.size("max_position_embeddings", defaults.max_positions)?;
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: or("num_key_value_heads", defaults.num_kv_heads, num_heads)?,
        intermediate_size: config.size("intermediate_size", defaults.intermediate_size)?,
        window: None,
        rope: Some(0),
        block: Block::PreNorm,
    };
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", defaults.vocab_size)?,
        hidden_size,
        layers: vec![layer; config.layers("num_hidden_layers", defaults.num_layers)?],
        head_dim,
        max_positions,
        norm: Norm::Rms,
        norm_eps: config.number("rms_norm_eps", Some(defaults.norm_eps))? as f32,
        activation: config.activation("hidden_act", "silu")?,
        gated_mlp: true,
        tied_head: config.flag("tie_word_embeddings", defaults.tied_head)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

/// Gives windows to the layers that `layer_types` names, or that `otherwise` says where it is silent.
///
/// # Errors
/// Refuses layers with a window where the file says no width.
pub(super) fn set_windows(
    spec: &mut ModelSpec,
    config: &Config<'_>,
    window: Option<usize>,
    otherwise: impl Fn(usize) -> bool,
) -> Result<()> {
    let named = config.layer_types()?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let slides = match &named {
            Some(types) => types[index] == "sliding_attention",
            None => window.is_some() && otherwise(index),
        };
        if slides && window.is_none() {
            return Err(crate::Error::malformed(format!(
                "config.json: layer_types says sliding_attention for layer {index}, but no sliding_window is in use: expected its width"
            )));
        }
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}

/// All weights; those that a model of this shape does not have are left out.
pub(super) fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    add_around(&mut table);
    for layer in 0..spec.num_layers() {
        add_projections(&mut table, layer);
        table.add_to(layer, Part::Norm1, &format!("model.layers.{layer}.input_layernorm"));
        table.add_to(layer, Part::Norm2, &format!("model.layers.{layer}.post_attention_layernorm"));
    }
    table.finish()
}

/// A layer's weights but for the norms of the stream.
pub(super) fn add_projections(table: &mut Table<'_>, layer: usize) {
    let mut add = |part, module: &str| {
        table.add_to(layer, part, &format!("model.layers.{layer}.{module}"));
    };
    add(Part::Q, "self_attn.q_proj");
    add(Part::K, "self_attn.k_proj");
    add(Part::V, "self_attn.v_proj");
    add(Part::QNorm, "self_attn.q_norm");
    add(Part::KNorm, "self_attn.k_norm");
    add(Part::O, "self_attn.o_proj");
    add(Part::Gate, "mlp.gate_proj");
    add(Part::Up, "mlp.up_proj");
    add(Part::Down, "mlp.down_proj");
}

/// The weights outside the layers.
pub(super) fn add_around(table: &mut Table<'_>) {
    table
        .add(Part::Tokens, "model.embed_tokens")
        .add(Part::FinalNorm, "model.norm")
        .add(Part::Head, "lm_head");
}

/// The module path of a layer's attention.
pub(super) fn module(layer: usize) -> String {
    format!("model.layers.{layer}.self_attn")
}
