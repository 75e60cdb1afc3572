//! A transformer as data: what a family reads from config.json and the forward pass follows.

use upgrayedd_nn::ops::Activation;

use crate::heads::HeadMap;
use crate::{Error, Result};

/// Where the norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Before attention and MLP, and once at the end.
    PreNorm,
    /// After each residual sum, and after the embeddings.
    PostNorm,
}

/// Kind of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// LayerNorm, with bias.
    Layer,
    /// RMSNorm, without.
    Rms,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A learned table added to the embeddings.
    Learned,
    /// Rotation of queries and keys.
    Rope {
        /// `head_dim / 2` inverse frequencies.
        inv_freq: Vec<f32>,
    },
}

/// What the model learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// The next token.
    CausalLm,
    /// Masked tokens.
    MaskedLm,
    /// A label per sequence, or a number.
    Classifier {
        /// Number of classes; 1 is regression, by squared error.
        labels: usize,
    },
    /// Nothing by itself: a plain encoder.
    Encoder,
}

impl Objective {
    /// Whether it is a number per sequence.
    pub fn is_regression(self) -> bool {
        self == Self::Classifier { labels: 1 }
    }

    /// The name in JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal-lm",
            Self::MaskedLm => "masked-lm",
            Self::Classifier { labels: 1 } => "regression",
            Self::Classifier { .. } => "classifier",
            Self::Encoder => "encoder",
        }
    }
}

/// The unpruned shape of a model.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads per layer.
    pub num_heads: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Columns per head.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Rows of the token-type table; 0 without one.
    pub type_vocab_size: usize,
    /// Where norms stand.
    pub block: Block,
    /// Kind of norm.
    pub norm: Norm,
    /// Added to the variance.
    pub norm_eps: f32,
    /// How positions enter.
    pub positions: Positions,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Whether the MLP is gated (SwiGLU).
    pub gated_mlp: bool,
    /// Biases on Q, K, V.
    pub qkv_bias: bool,
    /// Bias on the attention output.
    pub out_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// Whether attention looks back only.
    pub causal: bool,
    /// Whether the output projection is the embedding.
    pub tied_head: bool,
    /// What the model learns.
    pub objective: Objective,
}

impl ModelSpec {
    /// Refuses combinations that no model has.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::invalid(format!("config.json: {message}")));
        if self.num_heads > 4096 || self.num_layers > 4096 {
            return refuse(format!("{} layers of {} heads: at most 4096 each are supported", self.num_layers, self.num_heads));
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return refuse(format!(
                "{} attention heads are not a multiple of {} key/value heads",
                self.num_heads, self.num_kv_heads
            ));
        }
        let derived = matches!(self.positions, Positions::Learned);
        if derived && self.num_heads * self.head_dim != self.hidden_size {
            return refuse(format!("hidden size {} is not a multiple of {} heads", self.hidden_size, self.num_heads));
        }
        if !derived && !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head_dim is {}: rotary positions need an even number", self.head_dim));
        }
        Ok(())
    }

    /// Multiplies attention scores: `1/√head_dim`.
    pub fn attention_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// All heads present.
    pub fn full_heads(&self) -> HeadMap {
        HeadMap::full(self.num_layers, self.num_heads, self.num_kv_heads)
    }
}
