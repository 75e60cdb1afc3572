//! Losses fused with the output projection, in chunks: logits of all tokens never exist at once.

use std::ops::Range;

use crate::kernels::{IGNORE, Number};
use crate::{Device, Result, Tape, Tensor, Var};

/// An output projection: `logits = x wᵀ + bias`, which may be capped.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `(V, D)`.
    pub weight: &'a Var,
    /// `(V)`.
    pub bias: Option<&'a Var>,
    /// Logits l become `cap · tanh(l / cap)`.
    pub soft_cap: Option<f32>,
}

/// A loss over the rows of an activation, with the gradient that its backward pass starts from.
#[derive(Debug)]
pub struct Loss {
    /// Sum over counted rows, in nats (unweighted).
    pub sum: Number,
    /// Rows counted.
    pub count: u64,
    /// What [`Tape::backward`] takes.
    pub seeds: Vec<(Var, Tensor)>,
}

/// Cross-entropy of `softmax(x wᵀ + b)` with `targets`, one per row of `x (N, D)`; [`IGNORE`] rows do not
/// count.
///
/// Every counted row's gradient is multiplied by `weight` (one over the tokens of a whole step, say). When
/// the tape records, the head's own gradients are added here, during the forward pass, so that logits are
/// computed once.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If there is not one target a row, or a target is no row of the head's weight.
pub fn cross_entropy(
    tape: &mut Tape<'_>,
    x: &Var,
    head: Head<'_>,
    targets: &[i64],
    weight: f32,
) -> Result<Loss> {
    assert_eq!(x.tensor().rows(), targets.len(), "cross entropy: one target a row");
    let vocab = head.weight.tensor().rows() as i64;
    assert!(
        targets.iter().all(|&t| t == IGNORE || (0..vocab).contains(&t)),
        "cross entropy: a target is not below {vocab}"
    );
    let count = targets.iter().filter(|&&t| t != IGNORE).count() as u64;
    if !tape.is_recording() && head.soft_cap.is_none() {
        return Ok(Loss {
            sum: likelihood_alone(tape, x.tensor(), head, targets)?,
            count,
            seeds: Vec::new(),
        });
    }
    let sum = in_chunks(tape, x, head, |tape, rows, logits| {
        tape.kernels().cross_entropy(logits, &targets[rows], weight, tape.is_recording())
    })?;
    Ok(Loss { sum: sum.0, count, seeds: sum.1.map(|dx| (x.clone(), dx)).into_iter().collect() })
}

/// Rows whose loss without gradients is computed at once.
const ROWS: usize = 2048;

fn likelihood_alone(tape: &Tape<'_>, x: &Tensor, head: Head<'_>, targets: &[i64]) -> Result<Number> {
    let kernels = tape.kernels();
    let mut sum = Number::default();
    for (part, targets) in targets.chunks(ROWS).enumerate() {
        tape.check()?;
        let rows = kernels.rows(x, part * ROWS..part * ROWS + targets.len());
        let likelihood =
            kernels.negative_log_likelihood(&rows, head.weight.tensor(), head.bias.map(Var::tensor), targets);
        sum = kernels.combine(&[(1.0, &sum), (1.0, &likelihood)]);
    }
    Ok(sum)
}

/// What a student learns from beside its targets.
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// What its output projection reads, row by row `(N, D')`.
    pub x: &'a Tensor,
    /// Its output projection `(V, D')`.
    pub weight: &'a Tensor,
    /// `(V)`.
    pub bias: Option<&'a Tensor>,
    /// As the head's.
    pub soft_cap: Option<f32>,
    /// Divides both sides' logits.
    pub temperature: f32,
    /// Share of the loss, 0 to 1; the targets have the rest.
    pub share: f32,
}

/// `(1 − share) · cross-entropy + share · T² KL(teacher ‖ student)` (Hinton et al. 2015), a target and a row
/// of logits each.
///
/// The teacher's logits are computed chunk by chunk as well. Every row counts: leave out those that do not.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If there is not one target and one row of the teacher's a row, the vocabularies differ, or a target is not
/// in them.
pub fn distillation(
    tape: &mut Tape<'_>,
    x: &Var,
    head: Head<'_>,
    targets: &[i64],
    teacher: &Teacher<'_>,
    weight: f32,
) -> Result<Loss> {
    let rows = x.tensor().rows();
    assert!(rows == targets.len() && rows == teacher.x.rows(), "distillation: rows differ");
    assert_eq!(head.weight.tensor().rows(), teacher.weight.rows(), "distillation: vocabularies differ");
    let vocab = head.weight.tensor().rows() as i64;
    assert!(targets.iter().all(|t| (0..vocab).contains(t)), "distillation: a target is not below {vocab}");
    let recording = tape.is_recording();
    let Teacher { temperature, share, .. } = *teacher;
    let teacher_weight = tape.kernels().for_products(teacher.weight);
    let sum = in_chunks(tape, x, head, |tape, rows, logits| {
        let kernels = tape.kernels();
        let mut teacher_logits =
            kernels.logits(&kernels.rows(teacher.x, rows.clone()), &teacher_weight, teacher.bias);
        if let Some(cap) = teacher.soft_cap {
            kernels.soft_cap(&mut teacher_logits, cap);
        }
        let mut ours = logits.clone();
        let divergence =
            kernels.kl_divergence(&mut ours, &teacher_logits, temperature, weight * share, recording);
        let entropy = kernels.cross_entropy(logits, &targets[rows], weight * (1.0 - share), recording);
        if recording {
            kernels.add_assign(logits, &ours);
        }
        kernels.combine(&[(f64::from(1.0 - share), &entropy), (f64::from(share), &divergence)])
    })?;
    Ok(Loss { sum: sum.0, count: rows as u64, seeds: sum.1.map(|dx| (x.clone(), dx)).into_iter().collect() })
}

/// Squared distance of each row of `x (N, D)` from that of `reference (N, D)`, divided by the latter's
/// squared length.
///
/// The sum is a share, not nats. Every row counts, but for those whose reference is zero.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the shapes differ.
pub fn relative_distance(tape: &mut Tape<'_>, x: &Var, reference: &Tensor, weight: f32) -> Result<Loss> {
    assert_eq!(x.tensor().shape(), reference.shape(), "relative distance: shapes differ");
    let mut gradient = x.tensor().clone();
    let sum = tape.kernels().relative_distance(&mut gradient, reference, weight);
    of_every_row(tape, x, sum, gradient)
}

/// Squared difference of each number of `x (N, 1)` from that of `reference (N, 1)`; the sum is in squared
/// units of these.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the shapes differ.
pub fn squared_error(tape: &mut Tape<'_>, x: &Var, reference: &Tensor, weight: f32) -> Result<Loss> {
    assert_eq!(x.tensor().shape(), reference.shape(), "squared error: shapes differ");
    let mut gradient = x.tensor().clone();
    let sum = tape.kernels().squared_error(&mut gradient, reference, weight);
    of_every_row(tape, x, sum, gradient)
}

/// Mean binary cross-entropy of each row of logits `x (N, L)` with the probabilities `reference (N, L)`; the sum
/// is in nats.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the shapes differ.
pub fn binary_cross_entropy(tape: &mut Tape<'_>, x: &Var, reference: &Tensor, weight: f32) -> Result<Loss> {
    assert_eq!(x.tensor().shape(), reference.shape(), "binary cross-entropy: shapes differ");
    let mut gradient = x.tensor().clone();
    let sum = tape.kernels().binary_cross_entropy(&mut gradient, reference, weight);
    of_every_row(tape, x, sum, gradient)
}

/// A loss that every row of `x` counts in.
fn of_every_row(tape: &Tape<'_>, x: &Var, sum: Number, gradient: Tensor) -> Result<Loss> {
    tape.check()?;
    let seeds =
        if tape.is_recording() && x.requires_grad() { vec![(x.clone(), gradient)] } else { Vec::new() };
    Ok(Loss { sum, count: x.tensor().rows() as u64, seeds })
}

/// Computes logits chunk by chunk; `f` returns the chunk's loss and leaves its gradient in the logits.
fn in_chunks(
    tape: &mut Tape<'_>,
    x: &Var,
    head: Head<'_>,
    mut f: impl FnMut(&mut Tape<'_>, Range<usize>, &mut Tensor) -> Number,
) -> Result<(Number, Option<Tensor>)> {
    let (rows, width) = (x.tensor().rows(), x.tensor().cols());
    let chunk = tape.kernels().rows_of_logits(head.weight.tensor().rows()).clamp(1, rows.max(1));
    // Once and not for every chunk.
    let weight = tape.kernels().for_products(head.weight.tensor());
    let mut dx = (tape.is_recording() && x.requires_grad()).then(|| tape.kernels().empty(&[rows, width]));
    let mut sum = Number::default();
    for start in (0..rows).step_by(chunk) {
        tape.check()?;
        let range = start..(start + chunk).min(rows);
        let x_chunk = tape.kernels().rows(x.tensor(), range.clone());
        let mut logits = tape.kernels().logits(&x_chunk, &weight, head.bias.map(Var::tensor));
        let capped = head.soft_cap.map(|cap| {
            tape.kernels().soft_cap(&mut logits, cap);
            (logits.clone(), cap)
        });
        let part = f(tape, range, &mut logits);
        sum = tape.kernels().combine(&[(1.0, &sum), (1.0, &part)]);
        if !tape.is_recording() {
            continue;
        }
        if let Some((capped, cap)) = capped {
            tape.kernels().soft_cap_grad(&mut logits, &capped, cap);
        }
        tape.with_param_grad(head.weight, |k, dw| k.linear_grad_weight(&logits, &x_chunk, dw));
        if let Some(bias) = head.bias {
            tape.with_param_grad(bias, |k, db| k.sum_rows(&logits, db));
        }
        if let Some(dx) = &mut dx {
            tape.kernels().linear_grad_input_rows(&logits, &weight, dx, start);
        }
    }
    Ok((sum, dx))
}

/// Σ factor · number, in this order and where the numbers are.
pub fn combine(device: Device, parts: &[(f64, &Number)]) -> Number {
    device.kernels().combine(parts)
}
