//! Elementwise kernels: sums, activations, rotations, row gathers and the AdamW update.

use std::ops::Range;

use rayon::prelude::*;

use super::math::{self, CHUNK, simd};
use crate::Tensor;
use crate::kernels::{Activation, AdamWStep, Lanes, Sink};
use crate::profile::Tasks;

pub(super) fn add_assign(a: &mut Tensor, b: &Tensor) {
    a.data_mut().par_chunks_mut(CHUNK).zip(b.data().par_chunks(CHUNK)).for_each_task(|(a, b)| {
        simd(
            #[inline(always)]
            || a.iter_mut().zip(b).for_each(|(a, b)| *a += b),
        );
    });
}

pub(super) fn add(a: &Tensor, b: &Tensor) -> Tensor {
    let mut out = Tensor::scratch(a.shape());
    let inputs = a.data().par_chunks(CHUNK).zip(b.data().par_chunks(CHUNK));
    out.data_mut().par_chunks_mut(CHUNK).zip(inputs).for_each_task(|(out, (a, b))| {
        simd(
            #[inline(always)]
            || out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = a + b),
        );
    });
    out
}

/// √(2/π) and the cubic coefficient of the tanh form.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;
const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;

/// A non-linearity and its derivative, as one monomorphic loop body each.
trait Curve {
    fn value(x: f32) -> f32;
    /// `(f(x), f′(x))`.
    fn slope(x: f32) -> (f32, f32);
}

struct Gelu;
struct GeluTanh;
struct Silu;
struct Relu;
struct Tanh;

impl Curve for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }
    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let cdf = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        (x * cdf, (x * FRAC_1_SQRT_2PI).mul_add(math::exp(-0.5 * x * x), cdf))
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + math::tanh(TANH_SCALE * (TANH_CUBIC * x * x).mul_add(x, x)))
    }
    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let t = math::tanh(TANH_SCALE * (TANH_CUBIC * x * x).mul_add(x, x));
        let inner = TANH_SCALE * (3.0 * TANH_CUBIC * x).mul_add(x, 1.0);
        (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * math::sigmoid(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let s = math::sigmoid(x);
        (x * s, s * (x * (1.0 - s) + 1.0))
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.max(0.0)
    }
    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
    }
}

impl Curve for Tanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        math::tanh(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> (f32, f32) {
        let t = math::tanh(x);
        (t, 1.0 - t * t)
    }
}

pub(super) fn activation(kind: Activation, x: &Tensor, up: Option<&Tensor>) -> Tensor {
    match kind {
        Activation::Gelu => forward::<Gelu>(x, up),
        Activation::GeluTanh => forward::<GeluTanh>(x, up),
        Activation::Silu => forward::<Silu>(x, up),
        Activation::Relu => forward::<Relu>(x, up),
        Activation::Tanh => forward::<Tanh>(x, up),
    }
}

pub(super) fn activation_grad(
    kind: Activation,
    dy: &Tensor,
    x: &Tensor,
    up: Option<&Tensor>,
    grads: [Option<Sink<'_>>; 2],
) {
    match kind {
        Activation::Gelu => backward::<Gelu>(dy, x, up, grads),
        Activation::GeluTanh => backward::<GeluTanh>(dy, x, up, grads),
        Activation::Silu => backward::<Silu>(dy, x, up, grads),
        Activation::Relu => backward::<Relu>(dy, x, up, grads),
        Activation::Tanh => backward::<Tanh>(dy, x, up, grads),
    }
}

fn forward<C: Curve>(x: &Tensor, up: Option<&Tensor>) -> Tensor {
    let mut out = Tensor::scratch(x.shape());
    out.data_mut().par_chunks_mut(CHUNK).enumerate().for_each_task(|(i, out)| {
        let range = i * CHUNK..i * CHUNK + out.len();
        let x = &x.data()[range.clone()];
        match up {
            None => simd(
                #[inline(always)]
                || out.iter_mut().zip(x).for_each(|(o, &x)| *o = C::value(x)),
            ),
            Some(up) => {
                let up = &up.data()[range];
                simd(
                    #[inline(always)]
                    || out.iter_mut().zip(x.iter().zip(up)).for_each(|(o, (&x, &u))| *o = C::value(x) * u),
                );
            }
        }
    });
    out
}

fn backward<C: Curve>(dy: &Tensor, x: &Tensor, up: Option<&Tensor>, [dx, dup]: [Option<Sink<'_>>; 2]) {
    if let Some(dx) = dx {
        each(dx, |range, out, accumulate| {
            let (x, dy) = (&x.data()[range.clone()], &dy.data()[range.clone()]);
            match up {
                None => simd(
                    #[inline(always)]
                    || {
                        for ((o, &x), &dy) in out.iter_mut().zip(x).zip(dy) {
                            let value = dy * C::slope(x).1;
                            *o = if accumulate { *o + value } else { value };
                        }
                    },
                ),
                Some(up) => simd(
                    #[inline(always)]
                    || {
                        for (((o, &x), &dy), &u) in out.iter_mut().zip(x).zip(dy).zip(&up.data()[range]) {
                            let value = dy * u * C::slope(x).1;
                            *o = if accumulate { *o + value } else { value };
                        }
                    },
                ),
            }
        });
    }
    if let Some(dup) = dup {
        each(dup, |range, out, accumulate| {
            let (x, dy) = (&x.data()[range.clone()], &dy.data()[range]);
            simd(
                #[inline(always)]
                || {
                    for ((o, &x), &dy) in out.iter_mut().zip(x).zip(dy) {
                        let value = dy * C::value(x);
                        *o = if accumulate { *o + value } else { value };
                    }
                },
            );
        });
    }
}

fn each(sink: Sink<'_>, f: impl Fn(std::ops::Range<usize>, &mut [f32], bool) + Sync) {
    let accumulate = sink.accumulate;
    sink.tensor.data_mut().par_chunks_mut(CHUNK).enumerate().for_each_task(|(i, out)| {
        f(i * CHUNK..i * CHUNK + out.len(), out, accumulate);
    });
}

pub(super) fn rope(x: &Tensor, table: &Tensor, head: usize, positions: &[u32], sign: f32, out: Sink<'_>) {
    let (cols, rotated) = (x.cols(), table.cols());
    let (half, accumulate) = (rotated / 2, out.accumulate);
    let rows = (CHUNK / cols.max(1)).max(1);
    out.tensor.data_mut().par_chunks_mut(rows * cols).enumerate().for_each_task(|(task, out)| {
        simd(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                    let row = task * rows + i;
                    let at = positions[row] as usize * rotated;
                    let (cos, sin) = table.data()[at..at + rotated].split_at(half);
                    let x = &x.data()[row * cols..(row + 1) * cols];
                    for (out, x) in out.chunks_exact_mut(head).zip(x.chunks_exact(head)) {
                        let ((x, still), (out, out_still)) = (x.split_at(rotated), out.split_at_mut(rotated));
                        for (out, x) in out_still.iter_mut().zip(still) {
                            *out = if accumulate { *out + x } else { *x };
                        }
                        let ((a, b), (out_a, out_b)) = (x.split_at(half), out.split_at_mut(half));
                        for j in 0..half {
                            let s = sign * sin[j];
                            let (ra, rb) = (a[j] * cos[j] - b[j] * s, b[j] * cos[j] + a[j] * s);
                            out_a[j] = if accumulate { out_a[j] + ra } else { ra };
                            out_b[j] = if accumulate { out_b[j] + rb } else { rb };
                        }
                    }
                }
            },
        );
    });
}

pub(super) fn rows(x: &Tensor, rows: Range<usize>) -> Tensor {
    let cols = x.cols();
    let mut out = Tensor::scratch(&[rows.len(), cols]);
    out.data_mut().copy_from_slice(&x.data()[rows.start * cols..rows.end * cols]);
    out
}

pub(super) fn columns(x: &Tensor, columns: &[Range<usize>]) -> Tensor {
    let width = columns.iter().map(Range::len).sum();
    let mut out = Tensor::scratch(&[x.rows(), width]);
    for (r, out) in out.data_mut().chunks_exact_mut(width).enumerate() {
        let (row, mut at) = (r * x.cols(), 0);
        for range in columns {
            x.elements().slice(row + range.start..row + range.end).widen(&mut out[at..at + range.len()]);
            at += range.len();
        }
    }
    out
}

pub(super) fn scale(x: &Tensor, factor: f32, out: Sink<'_>) {
    let accumulate = out.accumulate;
    let pairs = out.tensor.data_mut().par_chunks_mut(CHUNK).zip(x.data().par_chunks(CHUNK));
    pairs.for_each_task(|(out, x)| {
        for (out, x) in out.iter_mut().zip(x) {
            *out = if accumulate { factor.mul_add(*x, *out) } else { factor * x };
        }
    });
}

pub(super) fn soft_cap(x: &mut Tensor, cap: f32) {
    x.data_mut().par_chunks_mut(CHUNK).for_each_task(|x| {
        simd(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x = cap * math::tanh(*x / cap)),
        );
    });
}

pub(super) fn soft_cap_grad(dy: &mut Tensor, capped: &Tensor, cap: f32) {
    let pairs = dy.data_mut().par_chunks_mut(CHUNK).zip(capped.data().par_chunks(CHUNK));
    pairs.for_each_task(|(dy, capped)| {
        for (dy, y) in dy.iter_mut().zip(capped) {
            *dy *= 1.0 - (y / cap) * (y / cap);
        }
    });
}

/// What each of `count` consecutive rows counts for in their mean.
fn shares(mask: Option<&[u8]>, first: usize, count: usize) -> impl Iterator<Item = f32> {
    let counts = move |i: usize| mask.is_none_or(|mask| mask[first + i] != 0);
    let share = 1.0 / (0..count).filter(|i| counts(*i)).count().max(1) as f32;
    (0..count).map(move |i| if counts(i) { share } else { 0.0 })
}

pub(super) fn gate(x: &Tensor, gates: &Tensor, out: Sink<'_>) {
    let (cols, length, accumulate) = (x.cols().max(1), x.rows() / gates.rows().max(1), out.accumulate);
    let rows = out.tensor.data_mut().par_chunks_mut(cols).zip(x.data().par_chunks(cols)).enumerate();
    rows.with_min_len(8).for_each_task(|(row, (out, x))| {
        let gates = &gates.data()[row / length * cols..][..cols];
        simd(
            #[inline(always)]
            || {
                for (o, (x, gate)) in out.iter_mut().zip(x.iter().zip(gates)) {
                    *o = if accumulate { *o + x * gate } else { x * gate };
                }
            },
        );
    });
}

/// Columns whose sums are made by one task.
const GATES: usize = 256;

pub(super) fn gate_grad(dy: &Tensor, x: &Tensor, dgates: Sink<'_>) {
    let (cols, accumulate) = (x.cols().max(1), dgates.accumulate);
    let length = x.rows() / dgates.tensor.rows().max(1);
    for (sequence, gates) in dgates.tensor.data_mut().chunks_exact_mut(cols).enumerate() {
        gates.par_chunks_mut(GATES).enumerate().for_each_task(|(i, gates)| {
            let mut sums = [0.0f32; GATES];
            for row in sequence * length..(sequence + 1) * length {
                let at = row * cols + i * GATES;
                let (x, dy) = (&x.data()[at..at + gates.len()], &dy.data()[at..at + gates.len()]);
                simd(
                    #[inline(always)]
                    || {
                        sums.iter_mut()
                            .zip(x.iter().zip(dy))
                            .for_each(|(sum, (x, dy))| *sum = x.mul_add(*dy, *sum))
                    },
                );
            }
            let old = |gate: &f32| if accumulate { *gate } else { 0.0 };
            gates.iter_mut().zip(sums).for_each(|(gate, sum)| *gate = old(gate) + sum);
        });
    }
}

pub(super) fn mean_rows(x: &Tensor, count: usize, mask: Option<&[u8]>) -> Tensor {
    let cols = x.cols();
    let mut out = Tensor::zeros(&[x.rows() / count.max(1), cols]);
    let groups = x.data().chunks_exact((count * cols).max(1));
    for ((group, out), x) in out.data_mut().chunks_exact_mut(cols.max(1)).enumerate().zip(groups) {
        for (share, row) in shares(mask, group * count, count).zip(x.chunks_exact(cols)) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o = share.mul_add(*v, *o));
        }
    }
    out
}

pub(super) fn mean_rows_grad(dy: &Tensor, count: usize, mask: Option<&[u8]>, dx: Sink<'_>) {
    let cols = dy.cols();
    let accumulate = dx.accumulate;
    let groups = dx.tensor.data_mut().chunks_exact_mut((count * cols).max(1));
    for ((group, dy), dx) in dy.data().chunks_exact(cols.max(1)).enumerate().zip(groups) {
        for (share, row) in shares(mask, group * count, count).zip(dx.chunks_exact_mut(cols)) {
            for (dx, dy) in row.iter_mut().zip(dy) {
                *dx = if accumulate { share.mul_add(*dy, *dx) } else { share * dy };
            }
        }
    }
}

pub(super) fn gather(table: &Tensor, ids: &[u32]) -> Tensor {
    let cols = table.cols();
    let mut out = Tensor::scratch(&[ids.len(), cols]);
    for (out, &id) in out.data_mut().chunks_exact_mut(cols.max(1)).zip(ids) {
        table.elements().slice(id as usize * cols..(id as usize + 1) * cols).widen(out);
    }
    out
}

pub(super) fn scatter_add(dy: &Tensor, ids: &[u32], table: Sink<'_>) {
    let cols = dy.cols();
    let out = table.tensor.data_mut();
    if !table.accumulate {
        out.par_chunks_mut(CHUNK).for_each_task(|chunk| chunk.fill(0.0));
    }
    for (dy, &id) in dy.data().chunks_exact(cols.max(1)).zip(ids) {
        super::linear::add_into(&mut out[id as usize * cols..(id as usize + 1) * cols], dy);
    }
}

pub(super) fn adamw(w: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep<'_>) {
    let vectors = &step.vectors.data()[step.first..step.first + 3 * step.count];
    let (step_size, rest) = vectors.split_at(step.count);
    let (inv_bias2, keep) = rest.split_at(step.count);
    let AdamWStep { beta1, beta2, eps, grad_scale, .. } = *step;
    let rates = Rates { step_size, inv_bias2, keep, beta1, beta2, eps, grad_scale };
    let cols = w.cols().max(1);
    let rows = (CHUNK / cols).max(1);
    // Without lanes the tensor is one long row, cut where it pleases.
    let (chunk, lanes_per_chunk) = if step.lanes == Lanes::Whole { (CHUNK, 0) } else { (rows * cols, rows) };
    let state = m.data_mut().par_chunks_mut(chunk).zip(v.data_mut().par_chunks_mut(chunk));
    let values = w.data_mut().par_chunks_mut(chunk).zip(g.data().par_chunks(chunk));
    values.zip(state).enumerate().for_each_task(|(i, ((w, g), (m, v)))| {
        simd(
            #[inline(always)]
            || match step.lanes {
                Lanes::Whole => update(w, g, m, v, &rates, |_| 0),
                Lanes::Rows => {
                    let rows = w
                        .chunks_mut(cols)
                        .zip(g.chunks(cols))
                        .zip(m.chunks_mut(cols).zip(v.chunks_mut(cols)));
                    for (r, ((w, g), (m, v))) in rows.enumerate() {
                        update(w, g, m, v, &rates, |_| i * lanes_per_chunk + r);
                    }
                }
                Lanes::Cols => {
                    let rows = w
                        .chunks_mut(cols)
                        .zip(g.chunks(cols))
                        .zip(m.chunks_mut(cols).zip(v.chunks_mut(cols)));
                    for ((w, g), (m, v)) in rows {
                        update(w, g, m, v, &rates, |c| c);
                    }
                }
            },
        );
    });
}

/// The numbers of an update, those of lanes apart.
struct Rates<'a> {
    step_size: &'a [f32],
    inv_bias2: &'a [f32],
    keep: &'a [f32],
    beta1: f32,
    beta2: f32,
    eps: f32,
    grad_scale: f32,
}

#[inline(always)]
fn update(
    w: &mut [f32],
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    s: &Rates<'_>,
    lane: impl Fn(usize) -> usize,
) {
    let n = w.len();
    let (g, m, v) = (&g[..n], &mut m[..n], &mut v[..n]);
    for i in 0..n {
        let lane = lane(i);
        let grad = g[i] * s.grad_scale;
        m[i] = s.beta1.mul_add(m[i], (1.0 - s.beta1) * grad);
        v[i] = s.beta2.mul_add(v[i], (1.0 - s.beta2) * grad * grad);
        let denominator = v[i].sqrt().mul_add(s.inv_bias2[lane], s.eps);
        w[i] = w[i].mul_add(s.keep[lane], -s.step_size[lane] * m[i] / denominator);
    }
}
