//! GPT-NeoX, the family of Pythia: attention and MLP side by side, heads that are rotated in part, LayerNorm and
//! biases (Black et al. 2022, Biderman et al. 2023).

use serde_json::Value;

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::modeling::Modeling;
use crate::family::rope;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only, Used},
    Keys, TRAINING,
};
use crate::spec::{Block, LayerSpec, ModelSpec, Norm};
use crate::weights::{Layout, Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "gpt_neox",
    architectures: &[Architecture::causal_lm("GPTNeoXForCausalLM")],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "gpt_neox.",
    marker: "layers.0.attention.query_key_value.weight",
    task_markers: &[],
    config_aliases: &[],
    keys: &[KEYS],
    output_head: Some("lm_head.weight"),
    other_names: &[],
    old_names: &[("lm_head.weight", "embed_out.weight")],
    tokenizer: TokenizerClass::Usually("GPTNeoXTokenizer"),
    types_are_tokens: false,
    buffers: &[".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"],
    shape: Shape { channels: Some("intermediate_size"), ..Shape::NONE },
    parse,
    weights,
    module: |layer| format!("gpt_neox.layers.{layer}.attention"),
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
    ("layer_norm_eps", Used),
    ("tie_word_embeddings", Used),
    ("attention_bias", Used),
    ("use_parallel_residual", Used),
    ("rope_parameters", Used),
    ("rope_scaling", Used),
    ("rotary_pct", Used),
    ("rotary_emb_base", Used),
    ("original_max_position_embeddings", Used),
    ("head_dim", Only(&["null"], "null, the width of the model over its heads")),
    ("rope_theta", Idle("rotary_emb_base is what counts")),
    ("partial_rotary_factor", Idle("rotary_pct is what counts")),
    ("is_causal", Only(&["true"], "true, a decoder that looks back only")),
    ("attention_dropout", Idle(TRAINING)),
    ("hidden_dropout", Idle(TRAINING)),
    ("classifier_dropout", Idle(TRAINING)),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", 6144)?;
    let num_heads = config.size("num_attention_heads", 64)?;
    let head_dim = config.share_of(hidden_size, num_heads)?;
    let max_positions = config.size("max_position_embeddings", 2048)?;
    let parameters = rope::parameters(config)?;
    let share = match config.get("rotary_pct") {
        None | Some(Value::Null) => 0.25,
        Some(_) => config.number("rotary_pct", None)?,
    };
    let of = rope::Of {
        columns: rope::part_of(parameters, share, head_dim)?,
        max_positions,
        theta: config.number("rotary_emb_base", Some(10_000.0))?,
    };
    let bias = config.flag("attention_bias", true)?;
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: num_heads,
        intermediate_size: config.size("intermediate_size", 24_576)?,
        window: None,
        rope: Some(0),
        block: Block::PreNorm,
    };
    Ok(ModelSpec {
        vocab_size: config.size("vocab_size", 50_432)?,
        hidden_size,
        layers: vec![layer; config.layers("num_hidden_layers", 44)?],
        ropes: vec![rope::rotation(config, parameters, of)?],
        head_dim,
        max_positions,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_eps", Some(1e-5))? as f32,
        activation: config.activation("hidden_act", "gelu")?,
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: true,
        parallel: config.flag("use_parallel_residual", true)?,
        tied_head: config.flag("tie_word_embeddings", false)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "gpt_neox.embed_in");
    for layer in 0..spec.num_layers() {
        let module = |module: &str| format!("gpt_neox.layers.{layer}.{module}");
        table.add_to(layer, Part::Norm1, &module("input_layernorm"));
        for (order, part) in [Part::Q, Part::K, Part::V].into_iter().enumerate() {
            let width = spec.head_dim;
            let layout = |_| Layout::Interleaved { order, width };
            table.add_laid(layer, part, &module("attention.query_key_value"), layout);
        }
        table.add_to(layer, Part::O, &module("attention.dense"));
        table.add_to(layer, Part::Norm2, &module("post_attention_layernorm"));
        table.add_to(layer, Part::Up, &module("mlp.dense_h_to_4h"));
        table.add_to(layer, Part::Down, &module("mlp.dense_4h_to_h"));
    }
    table.add(Part::FinalNorm, "gpt_neox.final_layer_norm").add(Part::Head, "lm_head");
    table.finish()
}
