//! A family that the crate does not know: a decoder with a gated MLP. Its first layer has half the heads and
//! sees two tokens, the others have wider MLPs. A family is this one table and `register`.

use upgrayedd_models::Result;
use upgrayedd_models::family::Fate::Used;
use upgrayedd_models::family::{Architecture, Config, Family, Modeling, Shape, Task, TokenizerClass};
use upgrayedd_models::spec::{Block, LayerSpec, ModelSpec, Norm, Rope};
use upgrayedd_models::weights::{Part, Table, Weight};

pub static FAMILY: Family = Family {
    model_type: "toy",
    architectures: &[Architecture::causal_lm("ToyForCausalLM")],
    modeling: Modeling::own("# transformers has no toys\n"),
    base_prefix: "toy.",
    marker: "blocks.0.query.weight",
    task_markers: &[],
    config_aliases: &[("hidden_size", "width")],
    keys: &[&[
        ("tokens", Used),
        ("width", Used),
        ("hidden_size", Used),
        ("depth", Used),
        ("heads", Used),
        ("tie_word_embeddings", Used),
    ]],
    output_head: Some("predict.weight"),
    other_names: &[],
    old_names: &[],
    tokenizer: TokenizerClass::Named,
    types_are_tokens: false,
    buffers: &[],
    shape: Shape::NONE,
    parse,
    weights,
    module: |layer| format!("toy.blocks.{layer}"),
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let (hidden_size, num_heads) = (config.size("width", 16)?, config.size("heads", 4)?);
    let layer = LayerSpec {
        num_heads,
        num_kv_heads: num_heads,
        intermediate_size: 3 * hidden_size,
        window: None,
        rope: Some(0),
        block: Block::PreNorm,
    };
    let mut layers = vec![layer; config.layers("depth", 2)?];
    layers[0] = LayerSpec {
        num_heads: num_heads / 2,
        num_kv_heads: 1,
        intermediate_size: hidden_size,
        window: Some(2),
        ..layer
    };
    Ok(ModelSpec {
        vocab_size: config.size("tokens", 20)?,
        hidden_size,
        layers,
        ropes: vec![Rope { base: 100.0, inv_freq: vec![1.0, 0.1], scale: 1.0, long: None }],
        head_dim: hidden_size / num_heads,
        max_positions: 32,
        type_vocab_size: 0,
        norm: Norm::Rms,
        norm_eps: 1e-6,
        activation: config.activation("act", "silu")?,
        gated_mlp: true,
        qkv_bias: true,
        out_bias: false,
        mlp_bias: false,
        causal: true,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
        ..ModelSpec::default()
    })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "toy.words").add(Part::FinalNorm, "toy.last");
    table.add(Part::Head, "predict");
    for layer in 0..spec.num_layers() {
        for (part, module) in [
            (Part::Norm1, "before"),
            (Part::Q, "query"),
            (Part::K, "key"),
            (Part::V, "value"),
            (Part::O, "out"),
            (Part::Norm2, "between"),
            (Part::Gate, "gate"),
            (Part::Up, "up"),
            (Part::Down, "down"),
        ] {
            table.add_to(layer, part, &format!("toy.blocks.{layer}.{module}"));
        }
    }
    table.finish()
}
