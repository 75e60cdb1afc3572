//! Elementwise non-linearities, plain and gated.

use crate::kernels::Activation;
use crate::tape::Taken;
use crate::{Result, Tape, Var};

/// `f(x)`.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn activation(tape: &mut Tape<'_>, kind: Activation, x: &Var) -> Result<Var> {
    run(tape, kind, x, None)
}

/// `f(gate) · up`, the gated form of SwiGLU and its kin (Shazeer 2020).
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the shapes differ.
pub fn gated_activation(tape: &mut Tape<'_>, kind: Activation, gate: &Var, up: &Var) -> Result<Var> {
    assert_eq!(gate.tensor().shape(), up.tensor().shape(), "gated activation: shapes differ");
    run(tape, kind, gate, Some(up))
}

fn run(tape: &mut Tape<'_>, kind: Activation, x: &Var, up: Option<&Var>) -> Result<Var> {
    let out = tape.kernels().activation(kind, x.tensor(), up.map(Var::tensor));
    let (dx, dup) = (x.source(), up.and_then(Var::source));
    let (x_saved, up_saved) = (x.tensor().clone(), up.map(|u| u.tensor().clone()));
    let operands = (x_saved.clone(), up_saved.clone());
    let mut inputs = vec![x];
    inputs.extend(up);
    let out = tape.record(out, &inputs, move |dy, grads| {
        let mut taken = [grads.take(dx, dy.shape()), grads.take(dup, dy.shape())];
        let sinks = taken.each_mut().map(|t| t.as_mut().map(Taken::sink));
        grads.kernels.activation_grad(kind, dy, &x_saved, up_saved.as_ref(), sinks);
        taken.into_iter().for_each(|t| grads.put(t));
        Ok(())
    })?;
    Ok(out.made_by(move |kernels| kernels.activation(kind, &operands.0, operands.1.as_ref())))
}
