//! Llama: RMSNorm before each half-block, RoPE, SwiGLU, grouped-query attention (Touvron et al. 2023).

use serde_json::Value;

use super::{Config, Family, HfTensor, Task, plain};
use crate::model::{Block, ModelSpec, Norm, Positions};
use crate::{Error, Result};

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    architectures: &[("LlamaForCausalLM", Task::CausalLm)],
    base_prefix: "model.",
    marker: "layers.0.self_attn.q_proj.weight",
    task_markers: &[],
    parse,
    tensors,
    module: |layer| format!("model.layers.{layer}.self_attn"),
};

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let hidden_size = config.size("hidden_size", None)?;
    let num_heads = config.size("num_attention_heads", None)?;
    let head_dim = config.size("head_dim", Some((hidden_size / num_heads).max(1)))?;
    let attention_bias = config.flag("attention_bias", false)?;
    Ok(ModelSpec {
        family: &FAMILY,
        vocab_size: config.size("vocab_size", None)?,
        hidden_size,
        intermediate_size: config.size("intermediate_size", None)?,
        num_layers: config.size("num_hidden_layers", None)?,
        num_heads,
        num_kv_heads: config.size("num_key_value_heads", Some(num_heads))?,
        head_dim,
        max_positions: config.size("max_position_embeddings", Some(2048))?,
        type_vocab_size: 0,
        block: Block::PreNorm,
        norm: Norm::Rms,
        norm_eps: config.number("rms_norm_eps", 1e-6)? as f32,
        positions: Positions::Rope { inv_freq: inv_freq(config, head_dim)? },
        activation: config.activation("hidden_act", "silu")?,
        gated_mlp: true,
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        causal: true,
        tied_head: config.flag("tie_word_embeddings", false)?,
        objective: config.objective(task)?,
    })
}

/// Inverse frequencies with the scalings that need no knowledge of the sequence: none, linear, llama3.
fn inv_freq(config: &Config<'_>, head_dim: usize) -> Result<Vec<f32>> {
    // transformers 5 moved theta and scaling into rope_parameters.
    let parameters = [&config.0["rope_parameters"], &config.0["rope_scaling"]].into_iter().find(|v| v.is_object());
    let scaling = Config(parameters.unwrap_or(&Value::Null));
    let theta = scaling.number("rope_theta", config.number("rope_theta", 10_000.0)?)?;
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    let kind = scaling.0["rope_type"].as_str().or(scaling.0["type"].as_str()).unwrap_or("default");
    let factor = scaling.number("factor", 1.0)?;
    let scaled: Vec<f64> = match kind {
        "default" => plain.collect(),
        "linear" => plain.map(|f| f / factor).collect(),
        "llama3" => {
            let (low, high) = (scaling.number("low_freq_factor", 1.0)?, scaling.number("high_freq_factor", 4.0)?);
            let original = scaling.number("original_max_position_embeddings", 8192.0)?;
            plain
                .map(|f| {
                    let turns = original * f / (2.0 * std::f64::consts::PI);
                    let blend = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * (1.0 - blend) + f * blend
                })
                .collect()
        }
        other => {
            return Err(Error::invalid(format!(
                "config.json: rope type {other:?} is not supported: expected default, linear or llama3"
            )));
        }
    };
    Ok(scaled.into_iter().map(|f| f as f32).collect())
}

fn tensors(spec: &ModelSpec) -> Vec<HfTensor> {
    let mut all = vec![plain("embed.tokens", "model.embed_tokens.weight"), plain("final_norm.weight", "model.norm.weight")];
    if !spec.tied_head {
        all.push(plain("head.weight", "lm_head.weight"));
    }
    for i in 0..spec.num_layers {
        let (ours, theirs) = (format!("layers.{i}"), format!("model.layers.{i}"));
        let mut linear = |ours_part: &str, their_part: &str, bias: bool| {
            for kind in ["weight", "bias"].into_iter().take(1 + usize::from(bias)) {
                all.push(plain(format!("{ours}.{ours_part}.{kind}"), format!("{theirs}.{their_part}.{kind}")));
            }
        };
        linear("norm1", "input_layernorm", false);
        linear("attn.q", "self_attn.q_proj", spec.qkv_bias);
        linear("attn.k", "self_attn.k_proj", spec.qkv_bias);
        linear("attn.v", "self_attn.v_proj", spec.qkv_bias);
        linear("attn.o", "self_attn.o_proj", spec.out_bias);
        linear("norm2", "post_attention_layernorm", false);
        linear("mlp.gate", "mlp.gate_proj", spec.mlp_bias);
        linear("mlp.up", "mlp.up_proj", spec.mlp_bias);
        linear("mlp.down", "mlp.down_proj", spec.mlp_bias);
    }
    all
}
