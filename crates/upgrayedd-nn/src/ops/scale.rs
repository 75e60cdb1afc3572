//! Multiplying by a number, and keeping values within bounds.

use crate::kernels::Sink;
use crate::{Result, Tape, Var};

/// `factor · x`.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn scale(tape: &mut Tape<'_>, x: &Var, factor: f32) -> Result<Var> {
    let mut out = tape.kernels().empty(x.tensor().shape());
    tape.kernels().scale(x.tensor(), factor, Sink { tensor: &mut out, accumulate: false });
    let dx = x.source();
    tape.record(out, &[x], move |dy, grads| {
        if let Some(mut taken) = grads.take(dx, dy.shape()) {
            grads.kernels.scale(dy, factor, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}

/// `cap · tanh(x / cap)`: as good as x where that is small, and never beyond the cap (Bello et al. 2017).
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn soft_cap(tape: &mut Tape<'_>, x: &Var, cap: f32) -> Result<Var> {
    let mut out = x.tensor().clone();
    tape.kernels().soft_cap(&mut out, cap);
    let (dx, capped) = (x.source(), out.clone());
    tape.record(out, &[x], move |dy, grads| {
        if let Some(mut taken) = grads.take(dx, dy.shape()) {
            let mut gradient = dy.clone();
            grads.kernels.soft_cap_grad(&mut gradient, &capped, cap);
            grads.kernels.scale(&gradient, 1.0, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}
