//! Affine map, the op in which nearly all time goes.

use std::ops::Range;

use crate::{Device, Result, Tape, Tensor, Var};

/// `x wᵀ + bias` with `x (N, I)`, `w (O, I)`, `bias (O)`; gives `(N, O)`.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If `x` and `w` differ in columns.
pub fn linear(tape: &mut Tape<'_>, x: &Var, w: &Var, bias: Option<&Var>) -> Result<Var> {
    linear_over(tape, x, w, bias, None)
}

/// [`linear`] where `x` is zero but in the columns `features` (in order): the others have no part in the
/// sums, not even in how they are rounded. Gradients reach all columns.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If `x` and `w` differ in columns.
pub fn linear_over(
    tape: &mut Tape<'_>,
    x: &Var,
    w: &Var,
    bias: Option<&Var>,
    features: Option<&[Range<usize>]>,
) -> Result<Var> {
    assert_eq!(x.tensor().cols(), w.tensor().cols(), "linear: input features differ");
    let bias_tensor = bias.map(Var::tensor);
    let out = match features {
        None => tape.kernels().linear(x.tensor(), w.tensor(), bias_tensor),
        Some(features) => {
            // A column of zeros stands for no column at all.
            let zeros = 0..1;
            let features = if features.is_empty() { std::slice::from_ref(&zeros) } else { features };
            let kernels = tape.kernels();
            kernels.linear(
                &kernels.columns(x.tensor(), features),
                &kernels.columns(w.tensor(), features),
                bias_tensor,
            )
        }
    };
    let (dx, dw, db) = (x.source(), w.source(), bias.and_then(Var::source));
    // What no gradient needs is not kept alive.
    let saved_x = dw.map(|_| x.saved());
    let saved_w = w.tensor().clone();
    let x_shape = x.tensor().shape().to_vec();
    let mut inputs = vec![x, w];
    inputs.extend(bias);
    tape.record(out, &inputs, move |dy, grads| {
        let kernels = grads.kernels;
        if let (Some(mut taken), Some(x)) = (grads.take(dw, saved_w.shape()), &saved_x) {
            kernels.linear_grad_weight(dy, &x(kernels), taken.sink());
            grads.put(Some(taken));
        }
        if let Some(mut taken) = grads.take(db, &[saved_w.rows()]) {
            kernels.sum_rows(dy, taken.sink());
            grads.put(Some(taken));
        }
        drop(saved_x);
        if let Some(mut taken) = grads.take(dx, &x_shape) {
            kernels.linear_grad_input(dy, &saved_w, taken.sink());
            grads.put(Some(taken));
        }
        Ok(())
    })
}

/// `a bᵀ (N, O)` of `a (N, I)` and `b (O, I)`, in single precision whatever that of the device is. Not recorded:
/// there is no gradient.
///
/// # Panics
/// If they differ in columns.
pub fn multiply(device: Device, a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.cols(), b.cols(), "multiply: columns differ");
    device.kernels().multiply(a, b)
}

/// `xᵀ x (I, I)` of `x (N, I)`, symmetric to the bit. Not recorded: there is no gradient.
pub fn gram(device: Device, x: &Tensor) -> Tensor {
    device.kernels().gram(x)
}
