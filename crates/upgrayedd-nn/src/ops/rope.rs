//! Rotary position embedding (Su et al. 2021), in the half-split layout of transformers.

use std::sync::Arc;

use crate::{Tape, Tensor, Var};

/// Cosines and sines for every position a model can see.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `(positions, head_dim)`: the first half of a row is cos, the second sin, of `position · inv_freq[i]`.
    table: Tensor,
}

impl RopeTable {
    /// A table for `positions` positions and the inverse frequencies of one head (`head_dim / 2` of them).
    pub fn new(positions: usize, inv_freq: &[f32]) -> Self {
        let mut table = Vec::with_capacity(positions * inv_freq.len() * 2);
        for position in 0..positions {
            let angles = inv_freq.iter().map(|f| position as f32 * f);
            table.extend(angles.clone().map(f32::cos));
            table.extend(angles.map(f32::sin));
        }
        Self { table: Tensor::from_vec(&[positions, inv_freq.len() * 2], table) }
    }

    /// Columns per head.
    pub fn head_dim(&self) -> usize {
        self.table.cols()
    }

    /// How many positions the table covers.
    pub fn positions(&self) -> usize {
        self.table.rows()
    }
}

/// Rotates every head of `x (N, heads · head_dim)` by the angle of its row's position.
pub fn rope(tape: &mut Tape<'_>, x: &Var, table: &RopeTable, positions: &Arc<Vec<u32>>) -> Var {
    let mut out = Tensor::scratch(x.tensor().shape());
    let sink = crate::device::Sink { tensor: &mut out, accumulate: false };
    tape.kernels().rope(x.tensor(), &table.table, positions, 1.0, sink);
    let dx = x.source();
    let (table, positions) = (table.table.clone(), Arc::clone(positions));
    tape.record(out, &[x], move |dy, grads| {
        if let Some(mut taken) = grads.take(dx, dy.shape()) {
            grads.kernels.rope(dy, &table, &positions, -1.0, taken.sink());
            grads.put(Some(taken));
        }
    })
}
