//! GPT-2: learned positions, LayerNorm before each half-block, transposed and fused projections (Radford et al. 2019).

use super::{Config, Family, HfTensor, Layout, Task, plain};
use crate::model::{Block, ModelSpec, Norm, Positions};
use crate::{Error, Result};

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    architectures: &[("GPT2LMHeadModel", Task::CausalLm)],
    base_prefix: "transformer.",
    marker: "h.0.attn.c_attn.weight",
    task_markers: &[],
    parse,
    tensors,
    module: |layer| format!("transformer.h.{layer}.attn"),
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("n_embd", None)?;
    let num_heads = config.size("n_head", None)?;
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if config.flag(key, false)? {
            return Err(Error::invalid(format!("config.json: {key} = true is not supported")));
        }
    }
    if !config.flag("scale_attn_weights", true)? {
        return Err(Error::invalid("config.json: scale_attn_weights = false is not supported"));
    }
    Ok(ModelSpec {
        family: &FAMILY,
        vocab_size: config.size("vocab_size", None)?,
        hidden_size,
        intermediate_size: config.size("n_inner", Some(4 * hidden_size))?,
        num_layers: config.size("n_layer", None)?,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: (hidden_size / num_heads).max(1),
        max_positions: config.size("n_positions", Some(1024))?,
        type_vocab_size: 0,
        block: Block::PreNorm,
        norm: Norm::Layer,
        norm_eps: config.number("layer_norm_epsilon", 1e-5)? as f32,
        positions: Positions::Learned,
        activation: config.activation("activation_function", "gelu_new")?,
        gated_mlp: false,
        qkv_bias: true,
        out_bias: true,
        mlp_bias: true,
        causal: true,
        tied_head: config.flag("tie_word_embeddings", true)?,
        objective: config.objective(task)?,
    })
}

fn tensors(spec: &ModelSpec) -> Vec<HfTensor> {
    let mut all = vec![
        plain("embed.tokens", "transformer.wte.weight"),
        plain("embed.positions", "transformer.wpe.weight"),
        plain("final_norm.weight", "transformer.ln_f.weight"),
        plain("final_norm.bias", "transformer.ln_f.bias"),
    ];
    if !spec.tied_head {
        all.push(plain("head.weight", "lm_head.weight"));
    }
    for i in 0..spec.num_layers {
        let (ours, theirs) = (format!("layers.{i}"), format!("transformer.h.{i}"));
        let mut add = |ours_part: &str, their_part: &str, weight: Layout, bias: Layout| {
            for (kind, layout) in [("weight", weight), ("bias", bias)] {
                let tensor = plain(format!("{ours}.{ours_part}.{kind}"), format!("{theirs}.{their_part}.{kind}"));
                all.push(HfTensor { layout, ..tensor });
            }
        };
        add("norm1", "ln_1", Layout::Plain, Layout::Plain);
        for (third, name) in ["attn.q", "attn.k", "attn.v"].into_iter().enumerate() {
            add(name, "attn.c_attn", Layout::FusedThird(third), Layout::FusedThird(third));
        }
        add("attn.o", "attn.c_proj", Layout::Transposed, Layout::Plain);
        add("norm2", "ln_2", Layout::Plain, Layout::Plain);
        add("mlp.up", "mlp.c_fc", Layout::Transposed, Layout::Plain);
        add("mlp.down", "mlp.c_proj", Layout::Transposed, Layout::Plain);
    }
    all
}
