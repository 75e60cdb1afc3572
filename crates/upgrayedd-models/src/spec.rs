//! A transformer as data: what a family reads from config.json and the forward pass follows.

use upgrayedd_nn::ops::Activation;

use crate::units::UnitMap;
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
    /// RMSNorm that multiplies by 1 + weight.
    RmsAroundOne,
}

/// What of queries and keys has a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Each head's, with weights that all heads share.
    Heads,
    /// All heads' together: what a head is does not depend on that head alone.
    All,
}

/// Where a token's row in the table of learned positions lies, counted from the first that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// As far from the start as the token.
    FromStart,
    /// As far as there are other tokens than this one before it; this one itself has the row before the first
    /// (RoBERTa's padding).
    WithoutToken(u32),
    /// As far as there is no padding before it, by the mask; padding has the row before the first.
    Unmasked,
}

/// What of a sequence a classifier looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Its first token.
    First,
    /// The mean over all that is not padding.
    Mean,
}

/// A rotation by position (Su et al. 2021).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base that frequencies are powers of, before they are scaled.
    pub base: f64,
    /// One for every two of a head's first columns; the others are not rotated.
    pub inv_freq: Vec<f32>,
    /// Multiplies what is rotated.
    pub scale: f32,
    /// For sequences longer than so many positions: other frequencies.
    pub long: Option<(usize, Vec<f32>)>,
}

/// What may differ between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Keys less than this far from a query are seen; all if absent.
    pub window: Option<usize>,
    /// Which of the model's rotations turns queries and keys; none if positions enter otherwise.
    pub rope: Option<usize>,
    /// Where the norms stand around attention and MLP.
    pub block: Block,
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
    /// Several labels per sequence, each there or not.
    MultiLabel {
        /// Number of labels.
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

    /// How many outputs a sequence has, where it is sequences that have labels.
    pub fn outputs(self) -> Option<usize> {
        match self {
            Self::Classifier { labels } | Self::MultiLabel { labels } => Some(labels),
            Self::CausalLm | Self::MaskedLm | Self::Encoder => None,
        }
    }

    /// The name in JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "causal-lm",
            Self::MaskedLm => "masked-lm",
            Self::Classifier { labels: 1 } => "regression",
            Self::Classifier { .. } => "classifier",
            Self::MultiLabel { .. } => "multi-label",
            Self::Encoder => "encoder",
        }
    }
}

/// The unpruned shape of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Tokens.
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Layer by layer.
    pub layers: Vec<LayerSpec>,
    /// Rotations by position.
    pub ropes: Vec<Rope>,
    /// Columns per head.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// Where tokens stand in the table of learned positions, if there is one.
    pub positions: Positions,
    /// The row of that table that the first token has.
    pub first_position: usize,
    /// Whether something is added to attention scores by distance, from a table that all layers share.
    pub score_bias: bool,
    /// Whether what a tokenizer puts before a text stands at the start of every window of a stream.
    pub begins_windows: bool,
    /// Multiplies token embeddings.
    pub embedding_scale: Option<f32>,
    /// Multiplies attention scores, where that is not `1/√head_dim`.
    pub score_scale: Option<f32>,
    /// Attention scores s become `cap · tanh(s / cap)`.
    pub score_cap: Option<f32>,
    /// The same of logits.
    pub logit_cap: Option<f32>,
    /// Rows of the token-type table; 0 without one.
    pub type_vocab_size: usize,
    /// Kind of norm.
    pub norm: Norm,
    /// Whether a LayerNorm has a bias.
    pub norm_bias: bool,
    /// Added to the variance.
    pub norm_eps: f32,
    /// What of queries and keys has an RMSNorm.
    pub qk_norm: QkNorm,
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
    /// Whether the MLP reads what attention reads, and not what comes of it.
    pub parallel: bool,
    /// Whether attention looks back only.
    pub causal: bool,
    /// Whether the output projection is the embedding.
    pub tied_head: bool,
    /// Whether the layer before the output projection has a bias.
    pub transform_bias: bool,
    /// Whether the output projection has a bias, where the objective has one.
    pub head_bias: bool,
    /// The non-linearity of the layer before the output projection.
    pub head_activation: Activation,
    /// What a classifier looks at.
    pub pooling: Pooling,
    /// The non-linearity of a classifier's layer over that.
    pub pooler_activation: Activation,
    /// What the model learns.
    pub objective: Objective,
}

impl Default for ModelSpec {
    /// A causal model without layers, and without what only some families have.
    fn default() -> Self {
        Self {
            vocab_size: 0,
            hidden_size: 0,
            layers: Vec::new(),
            ropes: Vec::new(),
            head_dim: 0,
            max_positions: 0,
            positions: Positions::FromStart,
            first_position: 0,
            begins_windows: false,
            embedding_scale: None,
            score_scale: None,
            score_cap: None,
            logit_cap: None,
            score_bias: false,
            type_vocab_size: 0,
            norm: Norm::Rms,
            norm_bias: true,
            norm_eps: 1e-6,
            qk_norm: QkNorm::None,
            activation: Activation::Silu,
            gated_mlp: false,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            parallel: false,
            causal: true,
            tied_head: false,
            transform_bias: true,
            head_bias: true,
            head_activation: Activation::Gelu,
            pooling: Pooling::First,
            pooler_activation: Activation::Tanh,
            objective: Objective::CausalLm,
        }
    }
}

impl ModelSpec {
    /// Layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Checks that heads and rotations go together.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] for a combination that no model has.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::malformed(format!("config.json: {message}")));
        for layer in &self.layers {
            let LayerSpec { num_heads, num_kv_heads, rope, .. } = *layer;
            if num_heads > 4096 {
                return refuse(format!("{num_heads} attention heads: at most 4096 are supported"));
            }
            if !num_heads.is_multiple_of(num_kv_heads) {
                return refuse(format!(
                    "{num_heads} attention heads are not a multiple of {num_kv_heads} key/value heads"
                ));
            }
            let Some(rope) = rope else { continue };
            if self.ropes.get(rope).is_none_or(|rope| rope.inv_freq.len() * 2 > self.head_dim) {
                return refuse(format!(
                    "rotation {rope} has more frequencies than pairs of {} columns",
                    self.head_dim
                ));
            }
        }
        Ok(())
    }

    /// Multiplies attention scores: `1/√head_dim` in most models.
    pub fn attention_scale(&self) -> f32 {
        self.score_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
    }

    /// Why no head can be removed, if none can.
    pub fn why_heads_stay(&self) -> Option<&'static str> {
        (self.qk_norm == QkNorm::All).then_some(
            "a norm goes over the queries and keys of all heads together, so that without one head the others would not be what they were",
        )
    }

    /// All heads present.
    pub fn full_units(&self) -> UnitMap {
        UnitMap::new(
            self.layers.iter().map(|layer| (layer.num_heads, layer.num_kv_heads, layer.intermediate_size)),
        )
    }
}

/// Rows of the table of what is added to attention scores by distance.
pub(crate) const DISTANCE_BUCKETS: usize = 32;

/// The row for a distance from query to key: half of the rows for either direction, in each one for every
/// distance below 8 and then two for every doubling, the last for all from 91 on (Raffel et al. 2020).
pub(crate) fn distance_bucket(distance: i64) -> u32 {
    const DIRECTION: u32 = DISTANCE_BUCKETS as u32 / 2;
    const EXACT: u64 = DIRECTION as u64 / 2;
    let far = distance.unsigned_abs();
    let bucket = match far.checked_pow(2) {
        _ if far < EXACT => far as u32,
        // Half a doubling of the distance is one of its square.
        Some(square) => (EXACT as u32 + (square / EXACT.pow(2)).ilog2()).min(DIRECTION - 1),
        None => DIRECTION - 1,
    };
    bucket + if distance > 0 { DIRECTION } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::distance_bucket;

    #[test]
    fn distances_change_their_bucket_where_they_do_in_transformers() {
        // Of transformers 5.23, MPNetEncoder.relative_position_bucket.
        let first = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        for distance in 0..300i64 {
            let bucket = first.iter().filter(|first| **first <= distance).count() as u32 - 1;
            assert_eq!(distance_bucket(-distance), bucket, "{distance} back");
            assert_eq!(
                distance_bucket(distance),
                bucket + if distance > 0 { 16 } else { 0 },
                "{distance} ahead"
            );
        }
    }
}
