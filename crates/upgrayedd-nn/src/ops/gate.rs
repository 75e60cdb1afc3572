//! A factor for each feature, sequence by sequence.

use crate::kernels::Sink;
use crate::{Result, Tape, Var};

/// `x (N, C)` times `gates`: `(C)`, or `(S, C)` for the rows of as many sequences of equal length.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If x has not as many columns as the gates, or its rows are not a multiple of theirs.
pub fn gate(tape: &mut Tape<'_>, x: &Var, gates: &Var) -> Result<Var> {
    let (rows, sequences) = (x.tensor().rows(), gates.tensor().rows());
    assert_eq!(x.tensor().cols(), gates.tensor().cols(), "gate: features differ");
    assert!(sequences > 0 && rows.is_multiple_of(sequences), "gate: {rows} rows of {sequences} sequences");
    let mut out = tape.kernels().empty(x.tensor().shape());
    tape.kernels().gate(x.tensor(), gates.tensor(), Sink { tensor: &mut out, accumulate: false });
    let (dx, dgates) = (x.source(), gates.source());
    let factors = gates.tensor().clone();
    // The gates' own gradient asks for x, and whoever computes the product again.
    let saved = dgates.map(|_| x.saved());
    let (again, same_factors) = (x.saved(), factors.clone());
    let out = tape.record(out, &[x, gates], move |dy, grads| {
        if let (Some(mut taken), Some(x)) = (grads.take(dgates, factors.shape()), &saved) {
            grads.kernels.gate_grad(dy, &x(grads.kernels), taken.sink());
            grads.put(Some(taken));
        }
        drop(saved);
        if let Some(mut taken) = grads.take(dx, dy.shape()) {
            grads.kernels.gate(dy, &factors, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })?;
    Ok(out.made_by(move |kernels| {
        let x = again(kernels);
        let mut out = kernels.empty(x.shape());
        kernels.gate(&x, &same_factors, Sink { tensor: &mut out, accumulate: false });
        out
    }))
}
