//! Attention probabilities as plain tensors, for strategies that look at patterns rather than at sums.

use rayon::prelude::*;
use upgrayedd_nn::{Tape, Tensor};

use super::batch::{Batch, Hooks};
use super::state::Model;

impl Model {
    /// Who attends to whom: per layer `(batch, active heads, queries, keys)`, rows summing to one over the visible keys.
    ///
    /// Memory is the product of these, for every layer: meant for a few short batches.
    pub fn attention_maps(&self, batch: &Batch) -> Vec<Tensor> {
        let mut captured = Vec::with_capacity(self.spec.num_layers());
        let mut tape = Tape::inference(self.device, &self.params);
        self.hidden(&mut tape, batch, &mut Hooks { queries_keys: Some(&mut captured), ..Hooks::default() });
        captured.iter().enumerate().map(|(layer, (q, k))| self.attention_map(layer, q, k, batch)).collect()
    }

    fn attention_map(&self, layer: usize, q: &Tensor, k: &Tensor, batch: &Batch) -> Tensor {
        let groups = self.heads.layers()[layer].kv_positions();
        let (heads, len, dim) = (groups.len(), batch.len, self.spec.head_dim);
        let mut out = vec![0.0f32; batch.batch * heads * len * len];
        out.par_chunks_mut(len).enumerate().for_each(|(row, out)| {
            let (query, head, sequence) = (row % len, row / len % heads, row / len / heads);
            let at = |t: &Tensor, position: usize, head: usize| {
                let start = (sequence * len + position) * t.cols() + head * dim;
                start..start + dim
            };
            let q_row = &q.data()[at(q, query, head)];
            let visible = |key: usize| {
                let real = batch.mask.as_ref().is_none_or(|m| m[sequence * len + key] != 0);
                real && (key <= query || !self.spec.causal)
            };
            let scores: Vec<f32> = (0..len)
                .map(|key| {
                    if !visible(key) {
                        return f32::NEG_INFINITY;
                    }
                    let k_row = &k.data()[at(k, key, groups[head])];
                    q_row.iter().zip(k_row).map(|(a, b)| a * b).sum::<f32>() * self.spec.attention_scale()
                })
                .collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // A padded query may see nothing: its row stays zero.
            if max > f32::NEG_INFINITY {
                out.iter_mut().zip(&scores).for_each(|(o, s)| *o = (s - max).exp());
                let sum: f32 = out.iter().sum();
                out.iter_mut().for_each(|o| *o /= sum);
            }
        });
        Tensor::from_vec(&[batch.batch, heads, len, len], out)
    }
}
