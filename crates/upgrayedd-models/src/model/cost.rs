//! What a model costs: parameters, bytes, multiply-accumulates, KV cache. Counted from the weights that are
//! there.

use serde::{Deserialize, Serialize};

use super::state::Model;
use crate::spec::Objective;
use crate::units::{Site, UnitMap};
use crate::weights::{Kind, Part, Weight};

/// Size and arithmetic of a model with the units it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Elements of all weights.
    pub parameters: usize,
    /// Bytes of all weights in the types that they have in files.
    pub bytes: usize,
    /// Multiply-accumulates per token in matrix products, at `context` visible keys or as many as a layer's
    /// window shows.
    pub macs_per_token: u64,
    /// Visible keys assumed for attention, at most.
    pub context: usize,
    /// Bytes of keys and values per token in the type of most weights; 0 for models that do not generate.
    pub kv_cache_bytes_per_token: usize,
}

impl Model {
    /// Counts for a token that sees `context` keys, or as many as its layers' windows let it.
    pub fn cost(&self, context: usize) -> Cost {
        self.cost_with(&self.units, context)
    }

    /// What the model would cost with just these units.
    pub fn cost_with(&self, units: &UnitMap, context: usize) -> Cost {
        let size = |weight: &Weight| weight.shape(units).iter().product::<usize>();
        let parameters = self.table().iter().map(size).sum();
        let bytes =
            self.table().iter().zip(self.dtypes()).map(|(weight, dtype)| size(weight) * dtype.size()).sum();
        let multiplies = |weight: &&Weight| {
            weight.role.kind == Kind::Weight && weight.role.part.is_matrix() && self.is_used(weight)
        };
        let matrices: usize = self.table().iter().filter(multiplies).map(size).sum();
        // A tied head multiplies by the embedding, which is not a matrix product on its own.
        let has_vocabulary = matches!(self.spec.objective, Objective::CausalLm | Objective::MaskedLm);
        let tied = if self.find(None, Part::Head, Kind::Weight).is_none() && has_vocabulary {
            self.spec.vocab_size * self.spec.hidden_size
        } else {
            0
        };
        let width = self.spec.head_dim;
        let attention = self.spec.layers.iter().zip(units.layers()).map(|(spec, layer)| {
            let visible = spec.window.map_or(context, |window| window.min(context));
            (2 * layer.count(Site::Head) * width).saturating_mul(visible)
        });
        let attention = attention.fold(0, usize::saturating_add);
        let kv_heads: usize = units.layers().iter().map(|layer| layer.count(Site::KvGroup)).sum();
        let generates = self.spec.objective == Objective::CausalLm;
        Cost {
            parameters,
            bytes,
            macs_per_token: (matrices + tied).saturating_add(attention) as u64,
            context,
            kv_cache_bytes_per_token: if generates { 2 * kv_heads * width * self.dtype().size() } else { 0 },
        }
    }
}
