//! Attention probabilities as plain tensors, for strategies that look at patterns rather than at sums.

use std::sync::Arc;

use upgrayedd_nn::ops::{self, AttentionInputs, AttentionShape};
use upgrayedd_nn::{Result, Tape, Tensor};

use super::batch::{Batch, Hooks};
use super::state::Model;

impl Model {
    /// Who attends to whom: per layer `(batch, active heads, queries, keys)`, rows summing to one over the
    /// visible keys.
    ///
    /// Memory is the product of these, for every layer: meant for a few short batches.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length.
    pub fn attention_maps(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let mut maps = Vec::with_capacity(self.spec.num_layers());
        let mut tape = Tape::inference(self.device, &self.params);
        self.hidden(&mut tape, batch, &mut Hooks { maps: Some(&mut maps), ..Hooks::default() })?;
        Ok(maps)
    }

    /// The probabilities of one layer, from the op that all passes use: attention to values that say which
    /// key they are, as many keys at a time as a head has columns.
    pub(super) fn attention_map(
        &self,
        tape: &mut Tape<'_>,
        inputs: AttentionInputs<'_>,
        shape: &Arc<AttentionShape>,
    ) -> Result<Tensor> {
        let (heads, width, keys, kv_heads) = (shape.heads(), shape.head_dim, shape.keys, shape.kv_heads);
        let mut map = Tensor::zeros(&[shape.batch, heads, shape.queries, keys]);
        for first in (0..keys).step_by(width) {
            let named = width.min(keys - first);
            let mut values = Tensor::zeros(inputs.k.tensor().shape());
            for values in values.data_mut().chunks_mut(keys * kv_heads * width).take(shape.batch) {
                for (i, row) in values.chunks_mut(kv_heads * width).skip(first).take(named).enumerate() {
                    row.chunks_mut(width).for_each(|head| head[i] = 1.0);
                }
            }
            let values = tape.constant(values);
            let out = ops::attention(tape, AttentionInputs { v: &values, gates: None, ..inputs }, shape)?;
            let out = out.tensor().to_host();
            tape.device().settle()?;
            let rows = out.data().chunks_exact(heads * width).enumerate();
            for (row, probabilities) in rows {
                let (sequence, query) = (row / shape.queries, row % shape.queries);
                for (head, probabilities) in probabilities.chunks_exact(width).enumerate() {
                    let at = ((sequence * heads + head) * shape.queries + query) * keys + first;
                    map.data_mut()[at..at + named].copy_from_slice(&probabilities[..named]);
                }
            }
        }
        Ok(map)
    }
}
