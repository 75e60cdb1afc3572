//! Rotary position embedding (Su et al. 2021), in the half-split layout of transformers.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{Device, Result, Tape, Tensor, Var};

/// Cosines and sines for the positions that have come up so far: a model's limit may be millions.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inv_freq: Arc<[f32]>,
    positions: usize,
    /// By device `(positions, head_dim)`: the first half of a row is cos, the second sin, of `position ·
    /// inv_freq[i]`.
    known: Arc<RwLock<Vec<(Device, Tensor)>>>,
}

impl RopeTable {
    /// A table for at most `positions` positions and the inverse frequencies of one head (`head_dim / 2` of
    /// them).
    pub fn new(positions: usize, inv_freq: &[f32]) -> Self {
        Self { inv_freq: inv_freq.into(), positions, known: Arc::default() }
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
    fn rows(&self, device: Device, count: usize) -> Tensor {
        let is_enough = |(of, table): &&(Device, Tensor)| *of == device && table.rows() >= count;
        if let Some((_, table)) =
            self.known.read().unwrap_or_else(PoisonError::into_inner).iter().find(is_enough)
        {
            return table.clone();
        }
        let rows = count.next_power_of_two().clamp(count, self.positions.max(count));
        let mut table = Vec::with_capacity(rows * self.head_dim());
        for position in 0..rows {
            let angles = self.inv_freq.iter().map(|f| position as f32 * f);
            table.extend(angles.clone().map(f32::cos));
            table.extend(angles.map(f32::sin));
        }
        let table = device.upload(Tensor::from_vec(&[rows, self.head_dim()], table));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(of, _)| *of != device);
        known.push((device, table.clone()));
        table
    }
}

/// Rotates every head of `x (N, heads · head_dim)` by the angle of its row's position.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn rope(tape: &mut Tape<'_>, x: &Var, table: &RopeTable, positions: &Arc<Vec<u32>>) -> Result<Var> {
    let table = table.rows(tape.device(), positions.iter().max().map_or(0, |p| *p as usize + 1));
    let mut out = tape.kernels().empty(x.tensor().shape());
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
