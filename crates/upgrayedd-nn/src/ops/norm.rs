//! Normalisation over the last axis.

use crate::tape::Taken;
use crate::{Result, Tape, Var};

/// Layer norm (Ba et al. 2016): `(x − mean) / √(var + eps) · weight + bias`; `x (N, D)`, `weight (D)`, `bias
/// (D)`, which may be absent.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn layer_norm(tape: &mut Tape<'_>, x: &Var, weight: &Var, bias: Option<&Var>, eps: f32) -> Result<Var> {
    let (out, stats) = tape.kernels().layer_norm(x.tensor(), weight.tensor(), bias.map(Var::tensor), eps);
    let (dx, dw, db) = (x.source(), weight.source(), bias.and_then(Var::source));
    let (saved_x, saved_w) = (x.tensor().clone(), weight.tensor().clone());
    let inputs = (x.tensor().clone(), weight.tensor().clone(), bias.map(|b| b.tensor().clone()));
    let read: Vec<&Var> = [x, weight].into_iter().chain(bias).collect();
    let out = tape.record(out, &read, move |dy, grads| {
        let mut taken = [
            grads.take(dx, saved_x.shape()),
            grads.take(dw, saved_w.shape()),
            grads.take(db, saved_w.shape()),
        ];
        let sinks = taken.each_mut().map(|t| t.as_mut().map(Taken::sink));
        grads.kernels.layer_norm_grad(dy, &saved_x, &saved_w, &stats, sinks);
        taken.into_iter().for_each(|t| grads.put(t));
        Ok(())
    })?;
    Ok(out.made_by(move |kernels| kernels.layer_norm(&inputs.0, &inputs.1, inputs.2.as_ref(), eps).0))
}

/// RMS norm (Zhang & Sennrich 2019): `x / √(mean(x²) + eps) · (offset + weight)`; `x (N, k · D)`, `weight (D)`:
/// every D columns, a head's say, are normalised by themselves. `offset` is 0 in most models.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
pub fn rms_norm(tape: &mut Tape<'_>, x: &Var, weight: &Var, offset: f32, eps: f32) -> Result<Var> {
    let (out, stats) = tape.kernels().rms_norm(x.tensor(), weight.tensor(), offset, eps);
    let (dx, dw) = (x.source(), weight.source());
    let (saved_x, saved_w) = (x.tensor().clone(), weight.tensor().clone());
    let inputs = (x.tensor().clone(), weight.tensor().clone());
    let out = tape.record(out, &[x, weight], move |dy, grads| {
        let mut taken = [grads.take(dx, saved_x.shape()), grads.take(dw, saved_w.shape())];
        let sinks = taken.each_mut().map(|t| t.as_mut().map(Taken::sink));
        grads.kernels.rms_norm_grad(dy, &saved_x, &saved_w, offset, &stats, sinks);
        taken.into_iter().for_each(|t| grads.put(t));
        Ok(())
    })?;
    Ok(out.made_by(move |kernels| kernels.rms_norm(&inputs.0, &inputs.1, offset, eps).0))
}
