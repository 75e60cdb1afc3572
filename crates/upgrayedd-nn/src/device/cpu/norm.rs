//! Layer norm and RMS norm, forward and backward.

use rayon::prelude::*;

use super::linear::{add_into, write};
use super::math::{CHUNK, dot, simd, sum};
use crate::Tensor;
use crate::kernels::Sink;
use crate::profile::Tasks;

/// Rows handled by one task: fixed by the shape, so that sums over rows do not depend on the threads.
fn rows_per_task(cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(1)
}

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> (Tensor, Tensor) {
    let cols = x.cols();
    let rows = rows_per_task(cols);
    let (mut out, mut stats) = (Tensor::scratch(x.shape()), Tensor::scratch(&[x.rows(), 2]));
    let (w, b) = (weight.data(), bias.map(Tensor::data));
    out.data_mut()
        .par_chunks_mut(rows * cols)
        .zip(stats.data_mut().par_chunks_mut(rows * 2))
        .zip(x.data().par_chunks(rows * cols))
        .for_each_task(|((out, stats), x)| {
            simd(
                #[inline(always)]
                || {
                    let rows =
                        out.chunks_exact_mut(cols).zip(stats.chunks_exact_mut(2)).zip(x.chunks_exact(cols));
                    for ((out, stats), x) in rows {
                        let mean = sum(x) / cols as f32;
                        for (o, &v) in out.iter_mut().zip(x) {
                            *o = v - mean;
                        }
                        let rstd = 1.0 / (dot(out, out) / cols as f32 + eps).sqrt();
                        match b {
                            Some(b) => {
                                for ((o, &w), &b) in out.iter_mut().zip(w).zip(b) {
                                    *o = (*o * rstd).mul_add(w, b);
                                }
                            }
                            None => out.iter_mut().zip(w).for_each(|(o, &w)| *o = *o * rstd * w),
                        }
                        stats.copy_from_slice(&[mean, rstd]);
                    }
                },
            );
        });
    (out, stats)
}

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, offset: f32, eps: f32) -> (Tensor, Tensor) {
    let cols = weight.len();
    let rows = rows_per_task(cols);
    let (mut out, mut stats) = (Tensor::scratch(x.shape()), Tensor::scratch(&[x.len() / cols.max(1), 1]));
    let w = weight.data();
    out.data_mut()
        .par_chunks_mut(rows * cols)
        .zip(stats.data_mut().par_chunks_mut(rows))
        .zip(x.data().par_chunks(rows * cols))
        .for_each_task(|((out, stats), x)| {
            simd(
                #[inline(always)]
                || {
                    for ((out, stat), x) in out.chunks_exact_mut(cols).zip(stats).zip(x.chunks_exact(cols)) {
                        let rstd = 1.0 / (dot(x, x) / cols as f32 + eps).sqrt();
                        for ((o, &v), &w) in out.iter_mut().zip(x).zip(w) {
                            *o = v * rstd * (offset + w);
                        }
                        *stat = rstd;
                    }
                },
            );
        });
    (out, stats)
}

/// Both backward passes: with x̂ the normalised row and g = dy · w, dx = rstd · (g − x̂ mean(g x̂) −
/// mean(g)), the last for layer norm only.
struct Backward<'a> {
    x: &'a Tensor,
    dy: &'a Tensor,
    weight: &'a Tensor,
    /// Added to the weight.
    offset: f32,
    stats: &'a Tensor,
    centred: bool,
}

impl Backward<'_> {
    fn rows(&self) -> usize {
        self.x.len() / self.weight.len().max(1)
    }

    fn row_stats(&self, row: usize) -> (f32, f32) {
        let stats = self.stats.data();
        if self.centred { (stats[row * 2], stats[row * 2 + 1]) } else { (0.0, stats[row]) }
    }

    fn input(&self, dx: Sink<'_>) {
        let cols = self.weight.len();
        let rows = rows_per_task(cols);
        let accumulate = dx.accumulate;
        dx.tensor.data_mut().par_chunks_mut(rows * cols).enumerate().for_each_task(|(task, dx)| {
            simd(
                #[inline(always)]
                || {
                    for (i, dx) in dx.chunks_exact_mut(cols).enumerate() {
                        let row = task * rows + i;
                        let range = row * cols..(row + 1) * cols;
                        self.input_row(
                            row,
                            &self.x.data()[range.clone()],
                            &self.dy.data()[range],
                            accumulate,
                            dx,
                        );
                    }
                },
            );
        });
    }

    #[inline(always)]
    fn input_row(&self, row: usize, x: &[f32], dy: &[f32], accumulate: bool, dx: &mut [f32]) {
        let (mean, rstd) = self.row_stats(row);
        let (w, n) = (self.weight.data(), x.len() as f32);
        let mut g_sum = [0.0f32; 16];
        let mut gx_sum = [0.0f32; 16];
        for (j, ((&x, &dy), &w)) in x.iter().zip(dy).zip(w).enumerate() {
            let g = dy * (self.offset + w);
            g_sum[j % 16] += g;
            gx_sum[j % 16] = (g * rstd).mul_add(x - mean, gx_sum[j % 16]);
        }
        let g_mean = if self.centred { g_sum.iter().sum::<f32>() / n } else { 0.0 };
        let gx_mean = gx_sum.iter().sum::<f32>() / n;
        for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
            let value = rstd * (dy * (self.offset + w) - g_mean - (x - mean) * rstd * gx_mean);
            *dx = if accumulate { *dx + value } else { value };
        }
    }

    fn weight(&self, dw: Sink<'_>) {
        let cols = self.weight.len();
        let rows = rows_per_task(cols);
        let partial: Vec<Vec<f32>> = (0..self.rows().div_ceil(rows)).into_par_iter().map_tasks(|task| {
            let mut sum = vec![0.0; cols];
            simd(
                #[inline(always)]
                || {
                    for row in task * rows..((task + 1) * rows).min(self.rows()) {
                        let (mean, rstd) = self.row_stats(row);
                        let range = row * cols..(row + 1) * cols;
                        let (x, dy) = (&self.x.data()[range.clone()], &self.dy.data()[range]);
                        for ((s, &x), &dy) in sum.iter_mut().zip(x).zip(dy) {
                            *s = (dy * rstd).mul_add(x - mean, *s);
                        }
                    }
                },
            );
            sum
        });
        let mut total = vec![0.0; cols];
        partial.iter().for_each(|sum| add_into(&mut total, sum));
        write(dw, &total);
    }
}

pub(super) fn layer_norm_grad(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    stats: &Tensor,
    grads: [Option<Sink<'_>>; 3],
) {
    let backward = Backward { x, dy, weight, offset: 0.0, stats, centred: true };
    let [dx, dw, db] = grads;
    dx.into_iter().for_each(|dx| backward.input(dx));
    dw.into_iter().for_each(|dw| backward.weight(dw));
    db.into_iter().for_each(|db| super::linear::sum_rows(dy, db));
}

pub(super) fn rms_norm_grad(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    offset: f32,
    stats: &Tensor,
    grads: [Option<Sink<'_>>; 2],
) {
    let backward = Backward { x, dy, weight, offset, stats, centred: false };
    let [dx, dw] = grads;
    dx.into_iter().for_each(|dx| backward.input(dx));
    dw.into_iter().for_each(|dw| backward.weight(dw));
}
