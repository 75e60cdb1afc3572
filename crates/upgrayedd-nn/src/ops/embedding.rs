//! Table lookup by index, and picking rows of an activation.

use std::sync::Arc;

use crate::{Device, Result, Tape, Tensor, Var};

/// Rows `ids` of `table (V, D)`; gives `(ids, D)`.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If an id is not below `V`: callers check what comes from users.
pub fn embedding(tape: &mut Tape<'_>, table: &Var, ids: &Arc<Vec<u32>>) -> Result<Var> {
    let rows = table.tensor().rows();
    assert!(ids.iter().all(|&id| (id as usize) < rows), "embedding: an id is not below {rows}");
    let out = tape.kernels().gather(table.tensor(), ids);
    let dtable = table.source();
    let (shape, ids) = (table.tensor().shape().to_vec(), Arc::clone(ids));
    tape.record(out, &[table], move |dy, grads| {
        if let Some(mut taken) = grads.take(dtable, &shape) {
            grads.kernels.scatter_add(dy, &ids, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}

/// The given rows of `x (N, D)`: the positions that have a label, say.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If there is no such row.
pub fn select_rows(tape: &mut Tape<'_>, x: &Var, rows: &Arc<Vec<u32>>) -> Result<Var> {
    embedding(tape, x, rows)
}

/// Means over every `count` consecutive rows of `x (N, D)`, of those that `mask` (0 or 1 per row) counts; gives
/// `(N / count, D)`.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If there are not whole groups of rows, or the mask has another length.
pub fn mean_rows(tape: &mut Tape<'_>, x: &Var, count: usize, mask: Option<&[u8]>) -> Result<Var> {
    let rows = x.tensor().rows();
    assert!(count > 0 && rows.is_multiple_of(count), "mean_rows: {rows} rows in groups of {count}");
    assert!(mask.is_none_or(|mask| mask.len() == rows), "mean_rows: a mask of another length");
    let out = tape.kernels().mean_rows(x.tensor(), count, mask);
    let dx = x.source();
    let (shape, mask) = (x.tensor().shape().to_vec(), mask.map(<[u8]>::to_vec));
    tape.record(out, &[x], move |dy, grads| {
        if let Some(mut taken) = grads.take(dx, &shape) {
            grads.kernels.mean_rows_grad(dy, count, mask.as_deref(), taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}

/// Puts `from (n, D)` in the place of the rows of `to (N, D)` from `first` on. Not recorded: there is no
/// gradient.
pub fn write_rows(device: Device, to: &mut Tensor, first: usize, from: &Tensor) {
    device.kernels().write_rows(to, first, from);
}
