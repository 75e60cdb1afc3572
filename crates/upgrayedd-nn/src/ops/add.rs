//! Elementwise sum: residual connections.

use crate::{Result, Tape, Var};

/// `a + b`; equal shapes.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the shapes differ.
pub fn add(tape: &mut Tape<'_>, a: &Var, b: &Var) -> Result<Var> {
    assert_eq!(a.tensor().shape(), b.tensor().shape(), "add: shapes differ");
    let out = tape.kernels().add(a.tensor(), b.tensor());
    let (da, db) = (a.source(), b.source());
    tape.record(out, &[a, b], move |dy, grads| {
        grads.add_to(da, dy);
        grads.add_to(db, dy);
        Ok(())
    })
}
