//! Matrix products on the `gemm` crate. Only the partition of the output depends on the threads, so the bits
//! do not.

#![allow(unsafe_code, reason = "gemm takes raw pointers; every view is checked against its slice first")]

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::math::simd;
use crate::profile::Tasks;
use crate::stored::Elements;
use crate::{pool, profile};

/// A strided matrix over a slice: element `(r, c)` lies at `r · rs + c · cs`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rs: usize,
    pub(super) cs: usize,
}

impl<'a> View<'a> {
    /// Row-major with rows `stride` apart.
    pub(super) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, rs: stride, cs: 1 }
    }

    pub(super) fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }
}

/// Whether a product uses the whole rayon pool or runs inside one of its tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    All,
    One,
}

fn last_index(rows: usize, cols: usize, rs: usize, cs: usize) -> usize {
    (rows.max(1) - 1) * rs + (cols.max(1) - 1) * cs
}

/// `dst (m × n, rows dst_stride apart) = [dst +] alpha · lhs (m × k) · rhs (k × n)`.
#[expect(clippy::too_many_arguments, reason = "BLAS's own signature")]
pub(super) fn matmul(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    lhs: View<'_>,
    rhs: View<'_>,
    accumulate: bool,
    dst: &mut [f32],
    dst_stride: usize,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(last_index(m, n, dst_stride, 1) < dst.len(), "matmul: destination too short");
    if k == 0 {
        if !accumulate {
            dst.chunks_mut(dst_stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    assert!(last_index(m, k, lhs.rs, lhs.cs) < lhs.data.len(), "matmul: left operand too short");
    assert!(last_index(k, n, rhs.rs, rhs.cs) < rhs.data.len(), "matmul: right operand too short");
    let dst = Target { first: dst.as_mut_ptr(), stride: dst_stride };
    if threads == Threads::All && rhs.rs == 1 && m >= 8 && (n >= 256 || m <= SMALL) {
        let panel = |column: usize, width: usize, panel: &mut [f32]| {
            transpose(View::rows(&rhs.data[column * rhs.cs..], rhs.cs), width, k, panel);
        };
        return by_panels((m, n, k), alpha, lhs, panel, accumulate, dst);
    }
    if threads == Threads::All && lhs.rs == 1 && m >= 768 {
        // Gradients of weights: `gemm` would keep a packed copy of all of `lhs`. It packs `rhs` for each step, hence long ones.
        let threads = profile::threads();
        let rows = Steps::of(m, if n > SMALL { fine_enough(m, 384, 96, threads) } else { 128 });
        let columns = Steps::of(n, fine_enough(n, n, 96, threads.div_ceil(rows.count)));
        return by_parts(k, alpha, lhs, rhs, accumulate, dst, (rows, columns));
    }
    if threads == Threads::All && lhs.cs == 1 && rhs.cs == 1 && m > SMALL && n > SMALL {
        // Gradients of inputs: on more threads, `gemm` would pack `rhs` in each of them.
        let threads = profile::threads();
        let columns = Steps::of(n, fine_enough(n, 192, 48, threads.div_ceil(m.div_ceil(ROWS))));
        let rows = Steps::of(m, fine_enough(m, ROWS, ROWS / 2, threads.div_ceil(columns.count)));
        return by_parts(k, alpha, lhs, rhs, accumulate, dst, (rows, columns));
    }
    // SAFETY: the asserts above keep every element inside its slice; `dst` is borrowed mutably and so
    // overlaps neither operand.
    unsafe { multiply((m, n, k), alpha, lhs, rhs, accumulate, dst, threads) }
}

/// `dst (m × n) = [dst +] lhs (m × k) · wᵀ` for weights `w (n × k)`, which are widened panel by panel: the
/// bits are those of the same numbers in `f32`.
pub(super) fn matmul_weights(
    (m, n, k): (usize, usize, usize),
    lhs: View<'_>,
    w: Elements<'_>,
    accumulate: bool,
    dst: &mut [f32],
) {
    if let Elements::F32(w) = w {
        return matmul((m, n, k), 1.0, lhs, View::rows(w, k).t(), accumulate, dst, n, Threads::All);
    }
    if !(m >= 8 && k > 0 && (n >= 256 || m <= SMALL)) {
        let mut wide = pool::take(w.len());
        w.widen_all(&mut wide);
        matmul((m, n, k), 1.0, lhs, View::rows(&wide, k).t(), accumulate, dst, n, Threads::All);
        return pool::give_back(wide);
    }
    assert!(m * n <= dst.len() && n * k <= w.len(), "matmul: weights or destination too short");
    assert!(last_index(m, k, lhs.rs, lhs.cs) < lhs.data.len(), "matmul: left operand too short");
    let panel = |column: usize, width: usize, panel: &mut [f32]| {
        let mut rows = pool::take(width * k);
        simd(
            #[inline(always)]
            || w.slice(column * k..(column + width) * k).widen(&mut rows),
        );
        transpose(View::rows(&rows, k), width, k, panel);
        pool::give_back(rows);
    };
    by_panels((m, n, k), 1.0, lhs, panel, accumulate, Target { first: dst.as_mut_ptr(), stride: n });
}

/// A product of which each task has some rows and columns to itself.
#[track_caller]
fn by_parts(
    k: usize,
    alpha: f32,
    lhs: View<'_>,
    rhs: View<'_>,
    accumulate: bool,
    dst: Target,
    (rows, columns): (Steps, Steps),
) {
    (0..rows.count * columns.count).into_par_iter().for_each_task(|task| {
        let (rows, columns) = (rows.get(task / columns.count), columns.get(task % columns.count));
        let lhs = View { data: &lhs.data[rows.start * lhs.rs..], ..lhs };
        let rhs = View { data: &rhs.data[columns.start * rhs.cs..], ..rhs };
        let dst = dst.part(rows.start, columns.start);
        // SAFETY: as in `matmul`, for these rows and columns; no other task writes to them.
        unsafe { multiply((rows.len(), columns.len(), k), alpha, lhs, rhs, accumulate, dst, Threads::One) }
    });
}

/// Rows or columns cut into steps of nearly the same length. There is never a short one at the end: a single row or column would
/// be another kind of product, with other bits.
#[derive(Clone, Copy)]
struct Steps {
    whole: usize,
    count: usize,
    /// Long steps start at whole sixteens, as the kernel's tiles do, and may therefore be that much longer.
    unit: usize,
}

impl Steps {
    fn of(whole: usize, longest: usize) -> Self {
        Self { whole, count: whole.div_ceil(longest), unit: if longest > SMALL { TILE } else { 1 } }
    }

    fn get(&self, index: usize) -> Range<usize> {
        self.start(index)..self.start(index + 1)
    }

    fn start(&self, index: usize) -> usize {
        let start = index * self.whole / self.count;
        if index == self.count { start } else { start / self.unit * self.unit }
    }
}

/// Rows that one panel of columns serves: what it costs to make is little beside the product.
const ROWS: usize = 512;

/// Steps of `coarse` or less, such that `whole` has one for each of the threads, if steps of `fine` are enough for that. Bits do
/// not depend on it as long as the other side is longer than `SMALL` or the step never is.
fn fine_enough(whole: usize, coarse: usize, fine: usize, threads: usize) -> usize {
    let mut step = coarse;
    while step >= 2 * fine && whole.div_ceil(step) < threads {
        step /= 2;
    }
    step
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Target {
    first: *mut f32,
    stride: usize,
}

// SAFETY: tasks write to rows or columns of their own.
unsafe impl Sync for Target {}

/// `gemm` cuts long sums in another way where neither side of the output is longer. How many columns there
/// are must not matter to one of them (a dormant head changes no bit), so panels of so few rows are all as
/// narrow.
const SMALL: usize = 64;

/// A product with `rhs` stored column by column, as weights are. `gemm` would gather it element by element,
/// over and over; panels of it that are transposed first take a quarter of the time. Sums are cut in the same way
/// in narrower panels, of which there are more where there are more threads.
///
/// `fill` makes the panel of some columns: where the first is, and how many.
fn by_panels(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    lhs: View<'_>,
    fill: impl Fn(usize, usize, &mut [f32]) + Sync,
    accumulate: bool,
    dst: Target,
) {
    let rows = Steps::of(m, ROWS);
    let coarse = if n < 768 || m <= SMALL { 64 } else { 128 };
    let columns = Steps::of(n, fine_enough(n, coarse, 32, profile::threads().div_ceil(rows.count)));
    (0..rows.count * columns.count).into_par_iter().for_each_task(|task| {
        let (rows, columns) = (rows.get(task / columns.count), columns.get(task % columns.count));
        let mut panel = pool::take(k * columns.len());
        fill(columns.start, columns.len(), &mut panel);
        let lhs = View { data: &lhs.data[rows.start * lhs.rs..], ..lhs };
        let rhs = View::rows(&panel, columns.len());
        let dst = dst.part(rows.start, columns.start);
        // SAFETY: as in `matmul`, for these rows and columns; no other task writes to them.
        unsafe { multiply((rows.len(), columns.len(), k), alpha, lhs, rhs, accumulate, dst, Threads::One) }
        pool::give_back(panel);
    });
}

impl Target {
    fn part(&self, row: usize, column: usize) -> Self {
        Self { first: self.first.wrapping_add(row * self.stride + column), stride: self.stride }
    }
}

/// `to (cols × rows) = fromᵀ` for `from (rows × cols)`, whose rows are contiguous.
pub(super) fn transpose(from: View<'_>, rows: usize, cols: usize, to: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for r in (0..rows).step_by(TILE) {
                for c in (0..cols).step_by(TILE) {
                    if r + TILE <= rows && c + TILE <= cols {
                        transpose_tile(&from.data[r * from.rs + c..], from.rs, &mut to[c * rows + r..], rows);
                        continue;
                    }
                    for i in r..rows.min(r + TILE) {
                        for j in c..cols.min(c + TILE) {
                            to[j * rows + i] = from.data[i * from.rs + j];
                        }
                    }
                }
            }
        },
    );
}

const TILE: usize = 16;

/// A whole tile by way of registers: copies of a fixed length.
#[inline(always)]
fn transpose_tile(from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    let mut tile = [[0.0f32; TILE]; TILE];
    for (i, row) in tile.iter_mut().enumerate() {
        row.copy_from_slice(&from[i * from_stride..][..TILE]);
    }
    for j in 0..TILE {
        let column: [f32; TILE] = std::array::from_fn(|i| tile[i][j]);
        to[j * to_stride..][..TILE].copy_from_slice(&column);
    }
}

/// # Safety
///
/// Every element that the shapes and strides reach lies in its slice, `dst` can be written and overlaps
/// neither operand.
unsafe fn multiply(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    lhs: View<'_>,
    rhs: View<'_>,
    accumulate: bool,
    dst: Target,
    threads: Threads,
) {
    let (parallelism, count) = match threads {
        Threads::All => (Parallelism::Rayon(0), rayon::current_num_threads()),
        Threads::One => (Parallelism::None, 1),
    };
    let product = || unsafe {
        // SAFETY: the caller's.
        gemm::gemm(
            m,
            n,
            k,
            dst.first,
            1,
            dst.stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.cs as isize,
            lhs.rs as isize,
            rhs.data.as_ptr(),
            rhs.cs as isize,
            rhs.rs as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    };
    match threads {
        // `gemm` gives each thread an equal part of the output, in steps of its kernel.
        Threads::All => {
            let tiles = m.div_ceil(TILE) * n.div_ceil(4 * TILE);
            profile::cut_elsewhere(tiles, || profile::product((m, n, k), count, product));
        }
        Threads::One => profile::product((m, n, k), count, product),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_all_there_is() {
        for whole in 1..300 {
            for longest in [32, 48, 64, 128] {
                let steps = Steps::of(whole, longest);
                let all: Vec<usize> = (0..steps.count).flat_map(|i| steps.get(i)).collect();
                assert!(all == Vec::from_iter(0..whole), "{whole} by {longest}");
                let lengths = || (0..steps.count).map(|i| steps.get(i).len());
                assert!(lengths().min() >= Some(whole.min(16)), "{whole} by {longest}");
                assert!(
                    lengths().max() <= Some(if longest > SMALL { longest + 15 } else { longest }),
                    "{whole} by {longest}"
                );
            }
        }
    }

    /// Dormant heads and channels are columns that are computed or not.
    #[test]
    fn columns_do_not_depend_on_their_number() {
        const MOST: usize = 1000;
        let numbers = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7919 + seed) % 1013) as f32 / 1013.0 - 0.5).collect()
        };
        for (m, k) in [(8, 1100), (64, 600), (65, 40), (513, 520), (800, 70)] {
            let (lhs, w, x) = (numbers(m * k, 1), numbers(MOST * k, 2), numbers(k * MOST, 3));
            let rows = View::rows(&lhs, k);
            // Outputs of weights, gradients of inputs, gradients of weights.
            let lhs_columns = View { data: &lhs, rs: 1, cs: m };
            let kinds = [
                (rows, View::rows(&w, k).t()),
                (rows, View::rows(&x, MOST)),
                (lhs_columns, View::rows(&x, MOST)),
            ];
            for (kind, (lhs, rhs)) in kinds.into_iter().enumerate() {
                let product = |n: usize| {
                    let mut out = vec![0.0; m * n];
                    matmul((m, n, k), 1.0, lhs, rhs, false, &mut out, n, Threads::All);
                    out
                };
                let all = product(MOST);
                for n in [257, 385, 577, 769, 801] {
                    let same = product(n).chunks(n).zip(all.chunks(MOST)).all(|(row, all)| *row == all[..n]);
                    assert!(same, "kind {kind}: {m} × {n} × {k}");
                }
            }
        }
    }
}
