//! Attention by blocks of queries, forward and backward. Scores live for one block of one head at a time.

use rayon::prelude::*;

use super::math::{self, simd};
use super::matmul::{Threads, View, matmul, transpose};
use crate::kernels::{AttentionGrads, AttentionInputs, AttentionOutput, AttentionShape, EntropyProbe, Sink};
use crate::profile::Tasks;
use crate::{Tensor, pool};

/// Queries per block: scores of a block stay in the second-level cache.
const BLOCK: usize = 64;

/// One head of one sequence, with where its rows and columns lie.
struct HeadView<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    gate: f32,
    mask: Option<&'a [u8]>,
    /// What is added by distance.
    bias: Option<Vec<f32>>,
}

fn head_view<'a>(inputs: &AttentionInputs<'a>, s: &'a AttentionShape, b: usize, h: usize) -> HeadView<'a> {
    let AttentionInputs { q, k, v, gates, bias } = *inputs;
    let (d, g, heads) = (s.head_dim, s.kv_of[h], s.heads());
    let kv_at = b * s.keys * s.kv_heads * d + g * d;
    let gate = gates.map_or(1.0, |gates| gates.data()[if gates.len() == heads { h } else { b * heads + h }]);
    HeadView {
        q: View::rows(&q.data()[b * s.queries * heads * d + h * d..], heads * d),
        k: View::rows(&k.data()[kv_at..], s.kv_heads * d),
        v: View::rows(&v.data()[kv_at..], s.kv_heads * d),
        gate,
        mask: s.key_mask.as_deref().map(|m| &m[b * s.keys..(b + 1) * s.keys]),
        bias: bias
            .map(|bias| bias.data().iter().skip(s.bias_columns[h]).step_by(bias.cols()).copied().collect()),
    }
}

impl HeadView<'_> {
    /// Adds what a query's scores from `first_key` on get by distance.
    #[inline(always)]
    fn add_bias(&self, row: &mut [f32], s: &AttentionShape, query: usize, first_key: usize) {
        if let Some(bias) = &self.bias {
            let bias = &bias[s.first_distance(query) + first_key..];
            row.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
        }
    }
}

/// The queries of one block and the keys any of them may see.
struct Block {
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
}

fn blocks(s: &AttentionShape) -> impl Iterator<Item = Block> + '_ {
    (0..s.queries).step_by(BLOCK).map(|start| {
        let end = (start + BLOCK).min(s.queries);
        Block { queries: start..end, keys: s.visible(start).start..s.visible(end - 1).end }
    })
}

fn rows_from(view: View<'_>, row: usize) -> View<'_> {
    View { data: &view.data[row * view.rs..], ..view }
}

/// Keys or values of one head as columns `(d, keys)`, once for all blocks.
fn columns(view: View<'_>, s: &AttentionShape) -> Vec<f32> {
    let mut columns = pool::take(s.head_dim * s.keys);
    transpose(view, s.keys, s.head_dim, &mut columns);
    columns
}

/// `scale ·` rows of a block times the visible of these columns, rows `keys.len()` apart.
fn times_columns(
    rows: View<'_>,
    columns: &[f32],
    s: &AttentionShape,
    block: &Block,
    scale: f32,
    out: &mut [f32],
) {
    let (m, n) = (block.queries.len(), block.keys.len());
    let columns = View::rows(&columns[block.keys.start..], s.keys);
    matmul(
        (m, n, s.head_dim),
        scale,
        rows_from(rows, block.queries.start),
        columns,
        false,
        out,
        n,
        Threads::One,
    );
}

/// A row's visible part, relative to the block's first key.
fn visible_in(s: &AttentionShape, block: &Block, query: usize) -> std::ops::Range<usize> {
    let visible = s.visible(query);
    visible.start - block.keys.start..visible.end - block.keys.start
}

/// Sets masked keys to −∞ and returns how many keys of the row remain.
#[inline(always)]
fn apply_mask(row: &mut [f32], first_key: usize, mask: Option<&[u8]>) -> usize {
    let Some(mask) = mask else { return row.len() };
    let mut seen = 0;
    for (value, &keep) in row.iter_mut().zip(&mask[first_key..]) {
        if keep == 0 {
            *value = f32::NEG_INFINITY;
        } else {
            seen += 1;
        }
    }
    seen
}

/// What became of a row of scores.
#[derive(Clone, Copy, Default)]
struct Softmax {
    /// Of the scores.
    log_sum_exp: f32,
    /// Makes the row's exponentials probabilities.
    factor: f32,
    /// Normalised, on request.
    entropy: f32,
}

/// Softmax of one row in place, up to the factor that the result needs: few values are left to multiply after
/// the product with V.
#[inline(always)]
fn softmax_row(row: &mut [f32], seen: usize, entropy: bool) -> Softmax {
    if seen == 0 {
        row.fill(0.0);
        return Softmax { log_sum_exp: f32::NEG_INFINITY, ..Softmax::default() };
    }
    let max = math::max(row);
    let (sum, weighted) =
        if entropy { math::exponentials::<true>(row, max) } else { math::exponentials::<false>(row, max) };
    let (factor, log_sum) = (1.0 / sum, sum.ln());
    let entropy = if seen > 1 { (log_sum - weighted * factor) / (seen as f32).ln() } else { 0.0 };
    Softmax { log_sum_exp: max + log_sum, factor, entropy }
}

/// `(rows, heads · d)` from head-major `(batch, heads, rows per sequence, d)`.
fn interleave(head_major: &[f32], batch: usize, heads: usize, rows: usize, d: usize, out: Sink<'_>) {
    let accumulate = out.accumulate;
    let width = heads * d;
    if width == 0 || rows == 0 {
        return;
    }
    debug_assert_eq!(head_major.len(), batch * heads * rows * d);
    out.tensor.data_mut()[..batch * rows * width].par_chunks_mut(width * 16).enumerate().for_each_task(
        |(task, out)| {
            for (i, row) in out.chunks_exact_mut(width).enumerate() {
                let (b, t) = ((task * 16 + i) / rows, (task * 16 + i) % rows);
                for (h, out) in row.chunks_exact_mut(d).enumerate() {
                    let at = ((b * heads + h) * rows + t) * d;
                    let values = &head_major[at..at + d];
                    if accumulate {
                        super::linear::add_into(out, values);
                    } else {
                        out.copy_from_slice(values);
                    }
                }
            }
        },
    );
}

pub(super) fn forward(inputs: &AttentionInputs<'_>, s: &AttentionShape, entropy: bool) -> AttentionOutput {
    let (heads, d, rows) = (s.heads(), s.head_dim, s.queries);
    let mut context = pool::take(s.batch * heads * rows * d);
    let mut lse = Tensor::scratch(&[s.batch, heads, rows]);
    let stats: Vec<(f64, u64)> =
        context.par_chunks_mut(rows * d).zip(lse.data_mut().par_chunks_mut(rows)).enumerate().map_tasks(
            |(task, (context, lse))| {
                let head = head_view(inputs, s, task / heads, task % heads);
                forward_head(&head, s, entropy, context, lse)
            },
        );
    let mut out = Tensor::scratch(&[s.batch * rows, heads * d]);
    interleave(&context, s.batch, heads, rows, d, Sink { tensor: &mut out, accumulate: false });
    pool::give_back(context);
    let probe = entropy.then(|| {
        let mut probe = EntropyProbe { sums: vec![0.0; heads], queries: 0 };
        for (task, (sum, count)) in stats.iter().enumerate() {
            probe.sums[task % heads] += sum;
            // Every head sees the same mask, so one head's count serves all.
            probe.queries += if task % heads == 0 { *count } else { 0 };
        }
        probe
    });
    AttentionOutput { out, left: vec![lse], entropy: probe }
}

fn forward_head(
    head: &HeadView<'_>,
    s: &AttentionShape,
    entropy: bool,
    context: &mut [f32],
    lse: &mut [f32],
) -> (f64, u64) {
    let d = s.head_dim;
    let (mut entropy_sum, mut counted) = (0.0, 0);
    let keys = columns(head.k, s);
    for block in blocks(s) {
        let n = block.keys.len();
        let mut scores = pool::take(block.queries.len() * n);
        times_columns(head.q, &keys, s, &block, s.scale, &mut scores);
        let mut factors = [0.0f32; BLOCK];
        for ((query, row), factor) in block.queries.clone().zip(scores.chunks_exact_mut(n)).zip(&mut factors)
        {
            let visible = visible_in(s, &block, query);
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            let first_key = block.keys.start + visible.start;
            let row = &mut row[visible];
            let (softmax, seen) = simd(
                #[inline(always)]
                || {
                    if let Some(cap) = s.soft_cap {
                        row.iter_mut().for_each(|score| *score = cap * math::tanh(*score / cap));
                    }
                    head.add_bias(row, s, query, first_key);
                    let seen = apply_mask(row, first_key, head.mask);
                    (softmax_row(row, seen, entropy), seen)
                },
            );
            (lse[query], *factor) = (softmax.log_sum_exp, softmax.factor);
            let padding = head.mask.is_some_and(|m| m[query + s.keys - s.queries] == 0);
            if entropy && seen > 1 && !padding {
                entropy_sum += f64::from(softmax.entropy);
                counted += 1;
            }
        }
        let v = rows_from(head.v, block.keys.start);
        let out = &mut context[block.queries.start * d..block.queries.end * d];
        matmul(
            (block.queries.len(), d, n),
            head.gate,
            View::rows(&scores, n),
            v,
            false,
            out,
            d,
            Threads::One,
        );
        simd(
            #[inline(always)]
            || {
                for (row, factor) in out.chunks_exact_mut(d).zip(factors) {
                    row.iter_mut().for_each(|v| *v *= factor);
                }
            },
        );
        pool::give_back(scores);
    }
    pool::give_back(keys);
    (entropy_sum, counted)
}

/// What the backward pass reads.
pub(super) struct Backward<'a> {
    pub(super) dout: &'a Tensor,
    pub(super) inputs: &'a AttentionInputs<'a>,
    pub(super) lse: &'a Tensor,
    pub(super) shape: &'a AttentionShape,
}

impl Backward<'_> {
    /// A task is one key/value head of one sequence with all query heads that read it, so that no two tasks
    /// add to the same place.
    pub(super) fn run(&self, grads: AttentionGrads<'_>) {
        let s = self.shape;
        let (heads, d) = (s.heads(), s.head_dim);
        let mut dq = pool::take(s.batch * heads * s.queries * d);
        let mut dk = pool::take(s.batch * s.kv_heads * s.keys * d);
        let mut dv = pool::take(s.batch * s.kv_heads * s.keys * d);
        let readers: Vec<Vec<usize>> =
            (0..s.kv_heads).map(|g| (0..heads).filter(|&h| s.kv_of[h] == g).collect()).collect();
        let mut dq_of: Vec<Option<&mut [f32]>> =
            dq.chunks_exact_mut((s.queries * d).max(1)).map(Some).collect();
        let mut tasks = Vec::with_capacity(s.batch * s.kv_heads);
        let kv = dk.chunks_exact_mut((s.keys * d).max(1)).zip(dv.chunks_exact_mut((s.keys * d).max(1)));
        for (index, (dk, dv)) in kv.enumerate() {
            let (b, g) = (index / s.kv_heads, index % s.kv_heads);
            let dq: Vec<_> =
                readers[g].iter().filter_map(|&h| Some((h, dq_of[b * heads + h].take()?))).collect();
            tasks.push((b, dq, dk, dv));
        }
        let parts: Vec<Vec<HeadGrads>> = tasks.into_par_iter().map_tasks(|(b, dq, dk, dv)| {
            dk.fill(0.0);
            dv.fill(0.0);
            let Some(&(first, _)) = dq.first() else { return Vec::new() };
            let shared = head_view(self.inputs, s, b, first);
            let (keys, values) = (columns(shared.k, s), columns(shared.v, s));
            let grads = dq.into_iter().map(|(h, dq)| self.head(b, h, (&keys, &values), dq, dk, dv)).collect();
            [keys, values].into_iter().for_each(pool::give_back);
            grads
        });
        let write = |values: &[f32], heads, rows, sink: Option<Sink<'_>>| {
            if let Some(sink) = sink {
                interleave(values, s.batch, heads, rows, d, sink);
            }
        };
        write(&dq, heads, s.queries, grads.q);
        write(&dk, s.kv_heads, s.keys, grads.k);
        write(&dv, s.kv_heads, s.keys, grads.v);
        [dq, dk, dv].into_iter().for_each(pool::give_back);
        if let Some(sink) = grads.gates {
            let mut total = vec![0.0; sink.tensor.len()];
            let shared = total.len() == heads;
            for part in parts.iter().flatten() {
                total[if shared { part.head } else { part.sequence * heads + part.head }] += part.gate as f32;
            }
            super::linear::write(sink, &total);
        }
        if let Some(sink) = grads.bias {
            let (mut total, columns) = (vec![0.0; sink.tensor.len()], sink.tensor.cols());
            for part in parts.iter().flatten() {
                let column = total.iter_mut().skip(s.bias_columns[part.head]).step_by(columns);
                column.zip(&part.bias).for_each(|(total, part)| *total += part / s.scale);
            }
            super::linear::write(sink, &total);
        }
    }

    /// Adds one query head's part.
    fn head(
        &self,
        b: usize,
        h: usize,
        (keys, values): (&[f32], &[f32]),
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) -> HeadGrads {
        let s = self.shape;
        let (heads, d) = (s.heads(), s.head_dim);
        let head = head_view(self.inputs, s, b, h);
        let dout = View::rows(&self.dout.data()[b * s.queries * heads * d + h * d..], heads * d);
        let lse = &self.lse.data()[(b * heads + h) * s.queries..(b * heads + h + 1) * s.queries];
        let mut gate_grad = 0.0;
        // Of the capped scores of a row.
        let mut slopes = vec![0.0; if s.soft_cap.is_some() { s.keys } else { 0 }];
        let mut bias = vec![0.0; head.bias.as_ref().map_or(0, Vec::len)];
        for block in blocks(s) {
            let (m, n) = (block.queries.len(), block.keys.len());
            let (mut p, mut dp) = (pool::take(m * n), pool::take(m * n));
            times_columns(head.q, keys, s, &block, s.scale, &mut p);
            times_columns(dout, values, s, &block, 1.0, &mut dp);
            let dout = rows_from(dout, block.queries.start);
            for ((query, p), dp) in
                block.queries.clone().zip(p.chunks_exact_mut(n)).zip(dp.chunks_exact_mut(n))
            {
                let visible = visible_in(s, &block, query);
                let first_key = block.keys.start + visible.start;
                for row in [&mut *p, &mut *dp] {
                    row[..visible.start].fill(0.0);
                    row[visible.end..].fill(0.0);
                }
                let (p, dp) = (&mut p[visible.clone()], &mut dp[visible]);
                gate_grad += f64::from(simd(
                    #[inline(always)]
                    || {
                        if let Some(cap) = s.soft_cap {
                            for (score, slope) in p.iter_mut().zip(&mut slopes) {
                                let share = math::tanh(*score / cap);
                                (*score, *slope) = (cap * share, 1.0 - share * share);
                            }
                        }
                        head.add_bias(p, s, query, first_key);
                        row_grad(p, dp, lse[query], first_key, &head, s.scale)
                    },
                ));
                if !bias.is_empty() {
                    super::linear::add_into(&mut bias[s.first_distance(query) + first_key..][..dp.len()], dp);
                }
                // The bias is added to what is capped.
                dp.iter_mut().zip(&slopes).for_each(|(dp, slope)| *dp *= slope);
            }
            let seen = block.keys.start * d..block.keys.end * d;
            let (q, k) = (rows_from(head.q, block.queries.start), rows_from(head.k, block.keys.start));
            matmul(
                (n, d, m),
                head.gate,
                View::rows(&p, n).t(),
                dout,
                true,
                &mut dv[seen.clone()],
                d,
                Threads::One,
            );
            matmul((n, d, m), 1.0, View::rows(&dp, n).t(), q, true, &mut dk[seen], d, Threads::One);
            let dq = &mut dq[block.queries.start * d..block.queries.end * d];
            matmul((m, d, n), 1.0, View::rows(&dp, n), k, false, dq, d, Threads::One);
            pool::give_back(p);
            pool::give_back(dp);
        }
        HeadGrads { sequence: b, head: h, gate: gate_grad, bias }
    }
}

/// What one query head of one sequence says of what heads share.
struct HeadGrads {
    sequence: usize,
    head: usize,
    /// ∂L/∂gate = Σ over queries and keys of P · dP (before the gate).
    gate: f64,
    /// By distance, times the scale; empty where nothing is added.
    bias: Vec<f32>,
}

/// Turns scores into probabilities and `dp` into score gradients, in place; returns Σ P · dP.
#[inline(always)]
fn row_grad(
    p: &mut [f32],
    dp: &mut [f32],
    lse: f32,
    first_key: usize,
    head: &HeadView<'_>,
    scale: f32,
) -> f32 {
    let seen = apply_mask(p, first_key, head.mask);
    if seen == 0 {
        p.fill(0.0);
        dp.fill(0.0);
        return 0.0;
    }
    for value in p.iter_mut() {
        *value = math::exp(*value - lse);
    }
    let dot = math::dot(p, dp);
    let factor = head.gate * scale;
    for (dp, &p) in dp.iter_mut().zip(p.iter()) {
        *dp = factor * p * (*dp - dot);
    }
    dot
}
