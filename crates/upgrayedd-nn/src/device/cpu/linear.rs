//! Affine map and its gradients.

use rayon::prelude::*;

use super::math::{self, CHUNK};
use super::matmul::{Threads, View, matmul, matmul_weights};
use crate::kernels::Sink;
use crate::profile::Tasks;
use crate::stored::Elements;
use crate::{Tensor, pool};

pub(super) fn forward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let mut y = Tensor::scratch(&[x.rows(), w.rows()]);
    forward_into(x, w.elements(), bias.map(Tensor::data), y.data_mut());
    y
}

/// `y (N, O) = x wᵀ + bias` for `x (N, I)`; O follows from the length of `w (O, I)`.
pub(super) fn forward_into(x: &Tensor, w: Elements<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    let (n, i) = (x.rows(), x.cols());
    let o = w.len() / i.max(1);
    if n < 8 {
        return few_rows(x, w, bias, y);
    }
    if let Some(bias) = bias {
        y.chunks_exact_mut(o.max(1)).for_each(|row| row.copy_from_slice(bias));
    }
    matmul_weights((n, o, i), View::rows(x.data(), i), w, bias.is_some(), y);
}

/// A few rows at a time are bound by memory: decoding reads the weights once, split over all threads.
fn few_rows(x: &Tensor, w: Elements<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
    let (n, o) = (x.rows(), y.len() / x.rows().max(1));
    if n <= 1 {
        return by_output(x, w, bias, y);
    }
    let mut transposed = pool::take(n * o);
    by_output(x, w, bias, &mut transposed);
    for (r, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        y.iter_mut().zip(transposed.iter().skip(r).step_by(n)).for_each(|(y, t)| *y = *t);
    }
    pool::give_back(transposed);
}

/// `out (O, N) = w xᵀ + bias`.
fn by_output(x: &Tensor, w: Elements<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    const ROWS: usize = 64;
    let (n, width) = (x.rows(), x.cols());
    out.par_chunks_mut(ROWS * n.max(1)).enumerate().for_each_task(|(block, out)| {
        let mut wide = if matches!(w, Elements::F32(_)) { Vec::new() } else { pool::take(width) };
        math::simd(
            #[inline(always)]
            || {
                for (j, out) in out.chunks_exact_mut(n).enumerate() {
                    let row = block * ROWS + j;
                    let weights = w.slice(row * width..(row + 1) * width);
                    let weights = match weights {
                        Elements::F32(weights) => weights,
                        Elements::Bytes(..) => {
                            weights.widen(&mut wide);
                            &wide[..]
                        }
                    };
                    let bias = bias.map_or(0.0, |b| b[row]);
                    for (out, x) in out.iter_mut().zip(x.data().chunks_exact(width)) {
                        *out = math::dot(x, weights) + bias;
                    }
                }
            },
        );
        pool::give_back(wide);
    });
}

pub(super) fn grad_input(dy: &Tensor, w: &Tensor, dx: Sink<'_>) {
    let (n, o, i) = (dy.rows(), w.rows(), w.cols());
    let w = w.to_host();
    let (lhs, rhs) = (View::rows(dy.data(), o), View::rows(w.data(), i));
    matmul((n, i, o), 1.0, lhs, rhs, dx.accumulate, dx.tensor.data_mut(), i, Threads::All);
}

pub(super) fn grad_input_rows(dy: &Tensor, w: &Tensor, dx: &mut Tensor, first: usize) {
    let (n, o, i) = (dy.rows(), w.rows(), w.cols());
    let w = w.to_host();
    let (lhs, rhs) = (View::rows(dy.data(), o), View::rows(w.data(), i));
    let rows = &mut dx.data_mut()[first * i..(first + n) * i];
    matmul((n, i, o), 1.0, lhs, rhs, false, rows, i, Threads::All);
}

pub(super) fn grad_weight(dy: &Tensor, x: &Tensor, dw: Sink<'_>) {
    let (n, o, i) = (dy.rows(), dy.cols(), x.cols());
    let (lhs, rhs) = (View::rows(dy.data(), o).t(), View::rows(x.data(), i));
    matmul((o, i, n), 1.0, lhs, rhs, dw.accumulate, dw.tensor.data_mut(), i, Threads::All);
}

/// Rows of the lower half some at a time, each as far as its block on the diagonal goes; the upper half is
/// their mirror image.
pub(super) fn gram(x: &Tensor) -> Tensor {
    const STEP: usize = 128;
    let (n, i) = (x.rows(), x.cols());
    let mut out = Tensor::scratch(&[i, i]);
    let all = View::rows(x.data(), i);
    // The longest first: what is left at the end is short.
    out.data_mut().par_chunks_mut(STEP * i.max(1)).enumerate().rev().for_each_task(|(panel, rows)| {
        let start = panel * STEP;
        let height = rows.len() / i;
        let lhs = View { data: &x.data()[start..], ..all }.t();
        matmul((height, start + height, n), 1.0, lhs, all, false, rows, i, Threads::One);
    });
    let data = out.data_mut();
    for row in 1..i {
        for column in 0..row {
            data[column * i + row] = data[row * i + column];
        }
    }
    out
}

/// Column sums; partial sums over fixed blocks of rows keep the bits independent of the threads.
pub(super) fn sum_rows(dy: &Tensor, db: Sink<'_>) {
    let cols = dy.cols();
    let block = (CHUNK / cols.max(1)).max(1) * cols.max(1);
    let partial: Vec<Vec<f32>> = dy.data().par_chunks(block).map_tasks(|rows| {
        let mut sum = vec![0.0; cols];
        math::simd(
            #[inline(always)]
            || rows.chunks_exact(cols).for_each(|row| add_into(&mut sum, row)),
        );
        sum
    });
    let out = db.tensor.data_mut();
    if !db.accumulate {
        out.fill(0.0);
    }
    partial.iter().for_each(|sum| add_into(out, sum));
}

#[inline(always)]
/// Writes `values` through the sink.
pub(super) fn write(sink: Sink<'_>, values: &[f32]) {
    let out = sink.tensor.data_mut();
    if sink.accumulate {
        add_into(out, values);
    } else {
        out.copy_from_slice(values);
    }
}

pub(super) fn add_into(sum: &mut [f32], row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
}
