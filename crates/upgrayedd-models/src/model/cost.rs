//! What a model costs: parameters, bytes, multiply-accumulates, KV cache. Counted from the weights that are there.

use serde::{Deserialize, Serialize};

use super::state::Model;
use crate::spec::Objective;
use crate::weights::{Kind, Part};

/// Size and arithmetic of a model with the heads it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Elements of all weights.
    pub parameters: usize,
    /// Bytes of all weights in the model's file type.
    pub bytes: usize,
    /// Multiply-accumulates per token in matrix products, at `context` visible keys.
    pub macs_per_token: u64,
    /// Visible keys assumed for attention.
    pub context: usize,
    /// Bytes of keys and values per token in the model's file type; 0 for models that do not generate.
    pub kv_cache_bytes_per_token: usize,
}

impl Model {
    /// Counts for a token that sees `context` keys.
    pub fn cost(&self, context: usize) -> Cost {
        let parameters = self.num_parameters();
        let matrices: usize = self
            .params
            .ids()
            .filter(|&id| {
                let weight = self.weight(id);
                weight.role.kind == Kind::Weight && weight.role.part.is_matrix() && self.is_used(weight)
            })
            .map(|id| self.params.get(id).len())
            .sum();
        // A tied head multiplies by the embedding, which is not a matrix product on its own.
        let has_vocabulary = matches!(self.spec.objective, Objective::CausalLm | Objective::MaskedLm);
        let tied = if self.find(None, Part::Head, Kind::Weight).is_none() && has_vocabulary {
            self.spec.vocab_size * self.spec.hidden_size
        } else {
            0
        };
        let layers = self.units.layers().iter();
        let attention: usize = layers
            .clone()
            .map(|l| (2 * l.active().len() * self.spec.head_dim).saturating_mul(context))
            .fold(0, usize::saturating_add);
        let kv_heads: usize = layers.map(|l| l.kv_active().len()).sum();
        let generates = self.spec.objective == Objective::CausalLm;
        Cost {
            parameters,
            bytes: parameters * self.dtype.size(),
            macs_per_token: (matrices + tied).saturating_add(attention) as u64,
            context,
            kv_cache_bytes_per_token: if generates { 2 * kv_heads * self.spec.head_dim * self.dtype.size() } else { 0 },
        }
    }
}
