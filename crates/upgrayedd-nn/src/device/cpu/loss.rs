//! Softmax losses over rows of logits, leaving gradients in place of the logits.

use rayon::prelude::*;

use super::linear;
use super::math::{self, simd};
use crate::kernels::IGNORE;
use crate::profile::Tasks;
use crate::{Tensor, pool};

/// Replaces `row` by exp(row − max) and returns `(max, Σ exp)`.
#[inline(always)]
fn exponentiate(row: &mut [f32]) -> (f32, f32) {
    let max = math::max(row);
    for value in row.iter_mut() {
        *value = math::exp(*value - max);
    }
    (max, math::sum(row))
}

/// Entries of the vocabulary whose logits exist at once: however many rows there are, so that the bits do not
/// depend on them.
const VOCAB_BLOCK: usize = 2048;

/// What is known of a row after some blocks.
#[derive(Clone)]
struct Running {
    max: f32,
    /// Σ exp(logit − max).
    sum: f64,
    at_target: f32,
}

pub(super) fn negative_log_likelihood(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, targets: &[i64]) -> f64 {
    let (rows, width, vocab) = (x.rows(), x.cols(), w.rows());
    let mut running = vec![Running { max: f32::NEG_INFINITY, sum: 0.0, at_target: 0.0 }; rows];
    let mut logits = pool::take(rows * VOCAB_BLOCK.min(vocab));
    for first in (0..vocab).step_by(VOCAB_BLOCK) {
        let last = (first + VOCAB_BLOCK).min(vocab);
        let logits = &mut logits[..rows * (last - first)];
        linear::forward_into(
            x,
            w.elements().slice(first * width..last * width),
            bias.map(|b| &b.data()[first..last]),
            logits,
        );
        logits.par_chunks_mut(last - first).zip(&mut running).zip(targets).for_each_task(
            |((row, running), &target)| {
                if target == IGNORE {
                    return;
                }
                if let Some(logit) = usize::try_from(target).ok().and_then(|t| row.get(t.checked_sub(first)?))
                {
                    running.at_target = *logit;
                }
                let (max, sum) = simd(
                    #[inline(always)]
                    || exponentiate(row),
                );
                let larger = running.max.max(max);
                let grown = |sum: f64, max: f32| sum * f64::from(max - larger).exp();
                running.sum = grown(running.sum, running.max) + grown(f64::from(sum), max);
                running.max = larger;
            },
        );
    }
    pool::give_back(logits);
    let counted = running.iter().zip(targets).filter(|(_, t)| **t != IGNORE);
    counted.map(|(r, _)| f64::from(r.max) + r.sum.ln() - f64::from(r.at_target)).sum()
}

pub(super) fn cross_entropy(logits: &mut Tensor, targets: &[i64], weight: f32, with_grad: bool) -> f64 {
    let cols = logits.cols();
    let losses: Vec<f64> = logits.data_mut().par_chunks_mut(cols).zip(targets).map_tasks(|(row, &target)| {
        if target == IGNORE {
            row.fill(0.0);
            return 0.0;
        }
        let target = target as usize;
        let at_target = row[target];
        simd(
            #[inline(always)]
            || {
                let (max, sum) = exponentiate(row);
                if with_grad {
                    let scale = weight / sum;
                    row.iter_mut().for_each(|v| *v *= scale);
                    row[target] -= weight;
                }
                f64::from(max) + f64::from(sum).ln() - f64::from(at_target)
            },
        )
    });
    losses.iter().sum()
}

pub(super) fn kl_divergence(
    student: &mut Tensor,
    teacher: &Tensor,
    temperature: f32,
    weight: f32,
    with_grad: bool,
) -> f64 {
    let cols = student.cols();
    let losses: Vec<f64> =
        student.data_mut().par_chunks_mut(cols).zip(teacher.data().par_chunks(cols)).map_tasks(|(s, t)| {
            let mut p = t.to_vec();
            simd(
                #[inline(always)]
                || {
                    let inv = 1.0 / temperature;
                    p.iter_mut().zip(s.iter_mut()).for_each(|(p, s)| {
                        *p *= inv;
                        *s *= inv;
                    });
                    let q_scores = s.to_vec();
                    let p_scores = p.clone();
                    let (p_max, p_sum) = exponentiate(&mut p);
                    let (q_max, q_sum) = exponentiate(s);
                    let shift =
                        f64::from(q_max) + f64::from(q_sum).ln() - f64::from(p_max) - f64::from(p_sum).ln();
                    let cross: f64 = p
                        .iter()
                        .zip(p_scores.iter().zip(&q_scores))
                        .map(|(&p, (&a, &b))| f64::from(p) * f64::from(a - b))
                        .sum();
                    if with_grad {
                        let (a, b) = (weight * temperature / q_sum, weight * temperature / p_sum);
                        s.iter_mut().zip(&p).for_each(|(s, &p)| *s = *s * a - p * b);
                    }
                    (cross / f64::from(p_sum) + shift) * f64::from(temperature * temperature)
                },
            )
        });
    losses.iter().sum()
}

pub(super) fn squared_error(x: &mut Tensor, reference: &Tensor, weight: f32) -> f64 {
    let pairs = x.data_mut().iter_mut().zip(reference.data());
    pairs
        .map(|(x, r)| {
            let difference = *x - r;
            *x = 2.0 * weight * difference;
            f64::from(difference) * f64::from(difference)
        })
        .sum()
}

pub(super) fn binary_cross_entropy(x: &mut Tensor, reference: &Tensor, weight: f32) -> f64 {
    let labels = x.cols().max(1) as f32;
    let pairs = x.data_mut().iter_mut().zip(reference.data());
    let sum: f64 = pairs
        .map(|(x, &y)| {
            let logit = *x;
            // Of the smaller side, which cannot overflow.
            let small = (-logit.abs()).exp();
            let probability = if logit >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
            *x = weight * (probability - y) / labels;
            f64::from(logit.max(0.0) - logit * y) + f64::from(small).ln_1p()
        })
        .sum();
    sum / f64::from(labels)
}

pub(super) fn relative_distance(x: &mut Tensor, reference: &Tensor, weight: f32) -> f64 {
    let cols = x.cols();
    let distances: Vec<f64> =
        x.data_mut().par_chunks_mut(cols).zip(reference.data().par_chunks(cols)).map_tasks(|(x, r)| {
            let length: f64 = r.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            let inverse = if length > 0.0 { 1.0 / length } else { 0.0 };
            let scale = 2.0 * weight * inverse as f32;
            let mut distance = 0.0;
            for (x, r) in x.iter_mut().zip(r) {
                let difference = *x - r;
                distance += f64::from(difference) * f64::from(difference);
                *x = scale * difference;
            }
            distance * inverse
        });
    distances.iter().sum()
}
