//! Rotary position embedding (Su et al. 2021), in the half-split layout of transformers.

use std::sync::{Arc, PoisonError, RwLock};

use crate::{Device, Result, Tape, Tensor, Var};

/// Cosines and sines for the positions that have come up so far: a model's limit may be millions.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inv_freq: Arc<[f32]>,
    /// Multiplies both.
    scale: f32,
    positions: usize,
    /// By device `(positions, rotated columns)`: the first half of a row is cos, the second sin, of `position ·
    /// inv_freq[i]`.
    known: Arc<RwLock<Vec<(Device, Tensor)>>>,
}

impl RopeTable {
    /// A table for at most `positions` positions and the inverse frequencies of one head, one for every two of
    /// its first columns; cosines and sines are multiplied by `scale`.
    pub fn new(positions: usize, inv_freq: &[f32], scale: f32) -> Self {
        Self { inv_freq: inv_freq.into(), scale, positions, known: Arc::default() }
    }

    /// Columns of a head that are rotated.
    pub fn rotated(&self) -> usize {
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
        let mut table = Vec::with_capacity(rows * self.rotated());
        for position in 0..rows {
            let angles = self.inv_freq.iter().map(|f| position as f32 * f);
            table.extend(angles.clone().map(|angle| angle.cos() * self.scale));
            table.extend(angles.map(|angle| angle.sin() * self.scale));
        }
        let table = device.upload(Tensor::from_vec(&[rows, self.rotated()], table));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(of, _)| *of != device);
        known.push((device, table.clone()));
        table
    }
}

/// Rotates the first columns of every head of `x (N, heads · head_dim)` by the angle of its row's position; the
/// others stay as they are.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn rope(
    tape: &mut Tape<'_>,
    x: &Var,
    table: &RopeTable,
    head_dim: usize,
    positions: &Arc<Vec<u32>>,
) -> Result<Var> {
    let table = table.rows(tape.device(), positions.iter().max().map_or(0, |p| *p as usize + 1));
    let mut out = tape.kernels().empty(x.tensor().shape());
    let sink = crate::kernels::Sink { tensor: &mut out, accumulate: false };
    tape.kernels().rope(x.tensor(), &table, head_dim, positions, 1.0, sink);
    let dx = x.source();
    let positions = Arc::clone(positions);
    tape.record(out, &[x], move |dy, grads| {
        if let Some(mut taken) = grads.take(dx, dy.shape()) {
            grads.kernels.rope(dy, &table, head_dim, &positions, -1.0, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}
