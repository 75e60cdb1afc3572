//! Rotary position embedding (Su et al. 2021), in the half-split layout of transformers.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{Result, Tape, Tensor, Var};

/// Cosines and sines for the positions that have come up so far: a model's limit may be millions.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inv_freq: Arc<[f32]>,
    positions: usize,
    /// `(positions, head_dim)`: the first half of a row is cos, the second sin, of `position · inv_freq[i]`.
    known: Arc<RwLock<Tensor>>,
}

impl RopeTable {
    /// A table for at most `positions` positions and the inverse frequencies of one head (`head_dim / 2` of them).
    pub fn new(positions: usize, inv_freq: &[f32]) -> Self {
        let known = Arc::new(RwLock::new(Tensor::zeros(&[0, inv_freq.len() * 2])));
        Self { inv_freq: inv_freq.into(), positions, known }
    }

    /// Columns per head.
    pub fn head_dim(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// How many positions the table can cover.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The table, with `count` rows at least.
    fn rows(&self, count: usize) -> Tensor {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.rows() >= count {
            return known;
        }
        let rows = count.next_power_of_two().clamp(count, self.positions.max(count));
        let mut table = Vec::with_capacity(rows * self.head_dim());
        for position in 0..rows {
            let angles = self.inv_freq.iter().map(|f| position as f32 * f);
            table.extend(angles.clone().map(f32::cos));
            table.extend(angles.map(f32::sin));
        }
        let table = Tensor::from_vec(&[rows, self.head_dim()], table);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = table.clone();
        table
    }
}

/// Rotates every head of `x (N, heads · head_dim)` by the angle of its row's position.
pub fn rope(tape: &mut Tape<'_>, x: &Var, table: &RopeTable, positions: &Arc<Vec<u32>>) -> Result<Var> {
    let table = table.rows(positions.iter().max().map_or(0, |p| *p as usize + 1));
    let mut out = Tensor::scratch(x.tensor().shape());
    let sink = crate::kernels::Sink { tensor: &mut out, accumulate: false };
    tape.kernels().rope(x.tensor(), &table, positions, 1.0, sink);
    let dx = x.source();
    let positions = Arc::clone(positions);
    tape.record(out, &[x], move |dy, grads| {
        if let Some(mut taken) = grads.take(dx, dy.shape()) {
            grads.kernels.rope(dy, &table, &positions, -1.0, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}
