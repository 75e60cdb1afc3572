//! What the loss rises by when a unit goes and the rest is refitted: optimal brain surgeon (Hassibi & Stork
//! 1993) on the writers, with Kronecker factors for the curvature (Martens & Grosse 2015; for
//! pruning: van der Ouderaa et al. 2024).
//!
//! With G = Σ x xᵀ over positions (x: what the projection W reads) and B = Σ g gᵀ (g: the loss's gradient in
//! what it writes), a change of W costs ½ tr(B ΔW G ΔWᵀ) / N² nats per position. Removing unit h and changing
//! the others' weights in the best way costs ½ tr(Pₕₕ Kₕₕ⁻¹) / N² with K = G⁻¹ and P = Wᵀ B W. Units leave
//! one after the other, the cheapest first, each seeing what the ones before have changed: of two units that
//! can stand in for each other one is cheap, and then the other is not.
//!
//! The two factors take x and g for independent, which is far from true of an MLP's hidden layer: what a channel
//! costs is thus measured at its gate (½ T F, see `fisher`), and the factors say what share of it the others
//! cannot take over. Where heads compete with channels, their costs are those measured at their gates, too: by the
//! factors alone they are 2 to 8 times too cheap, and with the share that others take over far more of them went than
//! was good (docs/lab-notebook.md). Where a norm follows a writer, least squares in front of it says little about what
//! comes out behind it, and channels count as their gates say, too: a channel with a huge and nearly constant output looks
//! replaceable, and is not.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{DenseSolveCore, Solve};
use faer::{Accum, Mat, MatMut, Par, Side};
use rayon::prelude::*;
use upgrayedd_nn::{Tensor, interrupt};

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::linalg::multiply;
use crate::spec::Block;
use crate::units::{Scores, Site, Sites};
use crate::weights::Writer;
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "surgeon",
    summary: "estimated rise of the loss, in nats per position (of channels, per target), if the unit goes after all of its layer with lower scores and the rest is \
              refitted: optimal brain surgeon with Kronecker-factored curvature (van der Ouderaa et al. 2024)",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Curvature,
    compute,
};

/// Added to G's diagonal, as a share of its mean.
const RIDGE: f64 = 1e-3;

fn compute(context: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let model = context.model;
    let scale = 0.5 / (statistics.positions.max(1) as f64).powi(2);
    let mut scores = Scores::zeros(model.units(), context.units);
    for (&place, (gram, outputs)) in &statistics.curvature {
        let Some(writer) = Writer::of(place.site) else { continue };
        let beside_channels = place.site == Site::Head && context.units.contains(Site::Channel);
        let norm_follows = model.spec().layers[place.layer].block == Block::PostNorm
            || !model.adds_plainly(place.layer, writer);
        let before_a_norm = place.site == Site::Channel && norm_follows;
        if beside_channels || before_a_norm {
            let nats = statistics.nats_per_square();
            *scores.at_mut(place) = statistics.squared.at(place).iter().map(|square| nats * square).collect();
            continue;
        }
        let (gram, outputs) = (&gram.in_memory(), &outputs.in_memory());
        // P = Wᵀ B W, in the engine's precision.
        let by_feature = model.writer_weight(place.layer, writer).to_host().transposed();
        let product = multiply(model.device(), &by_feature, outputs)?;
        let p = multiply(model.device(), &product, &by_feature)?;
        let units = model.units().layers()[place.layer].count(place.site);
        let width = by_feature.rows() / units.max(1);
        let factors = match place.site {
            Site::Channel => at_gates(statistics.squared.at(place), gram, &p)
                .into_iter()
                .map(|factor| factor * statistics.nats_per_square() / scale)
                .collect(),
            _ => vec![1.0; units],
        };
        let found = leave_one_by_one(gram, &p, width, factors)?.ok_or_else(|| {
            let name = model.layer_name(place.layer);
            Error::NotFinite(format!(
                "{name}: what the {} write on the calibration data has no finite covariance",
                place.site.name()
            ))
        })?;
        *scores.at_mut(place) = found.into_iter().map(|s| s * scale).collect();
        model.let_go(place.layer);
    }
    Ok(scores)
}

/// The squares measured at the gates of single features, as multiples of what the factors make of these.
fn at_gates(squares: &[f64], gram: &Tensor, p: &Tensor) -> Vec<f64> {
    let own = |t: &Tensor, i: usize| f64::from(t.data()[i * (t.cols() + 1)]);
    let factor = |(i, square): (usize, &f64)| match own(gram, i) * own(p, i) {
        cost if cost > 0.0 => square / cost,
        // It writes nothing, or nothing that matters.
        _ => 0.0,
    };
    squares.iter().enumerate().map(factor).collect()
}

fn square(t: &Tensor) -> Mat<f64> {
    Mat::from_fn(t.rows(), t.cols(), |r, c| f64::from(t.data()[r * t.cols() + c]))
}

/// tr(Pₕₕ Kₕₕ⁻¹) of each unit of `d` features when it leaves, times its factor, never less than that of a unit
/// before it. `None` if G has no inverse.
fn leave_one_by_one(gram: &Tensor, p: &Tensor, d: usize, factors: Vec<f64>) -> Result<Option<Vec<f64>>> {
    let mut gram = square(gram);
    let units = gram.nrows() / d;
    let mean = gram.diagonal().column_vector().sum() / gram.nrows().max(1) as f64;
    if mean <= 0.0 {
        // The layer reads nothing but zeros: nothing is lost with any unit.
        return Ok(Some(vec![0.0; units]));
    }
    (0..gram.nrows()).for_each(|i| gram[(i, i)] += RIDGE * mean);
    let Ok(factor) = gram.llt(Side::Lower) else { return Ok(None) };
    let mut remaining = Remaining::new(factor.inverse(), square(p), d, factors);
    let (mut scores, mut highest) = (vec![0.0; units], 0.0f64);
    for _ in 0..units {
        interrupt::check()?;
        let Some((cost, place)) = remaining.cheapest() else { return Ok(None) };
        highest = highest.max(cost);
        let Some(unit) = remaining.leave(place) else { return Ok(None) };
        scores[unit] = highest;
    }
    Ok(Some(scores))
}

/// Features by which the changes of a matrix are taken together.
const TOGETHER: usize = 32;

/// K and P of the units that are there. When a unit leaves, the others take over what they can: with
/// Z = K:ₕ Kₕₕ⁻¹ and Q = P:ₕ − ½ Z Pₕₕ, K' = K − K:ₕ Zᵀ and P' = P − Q Zᵀ − Z Qᵀ. Both are changed some units at a
/// time; what has not been taken off yet is kept aside.
struct Remaining {
    d: usize,
    k: Mat<f64>,
    p: Mat<f64>,
    /// Whose features these are.
    units: Vec<usize>,
    gone: Vec<bool>,
    /// What each unit's cost is multiplied with, by unit.
    factors: Vec<f64>,
    /// The `d × d` blocks on the diagonals of K and P, up to date.
    blocks: Vec<(Mat<f64>, Mat<f64>)>,
    /// K:ₕ, Z and Q of the units that have left since, side by side.
    aside: [Mat<f64>; 3],
    count: usize,
}

impl Remaining {
    fn new(k: Mat<f64>, p: Mat<f64>, d: usize, factors: Vec<f64>) -> Self {
        let units = k.nrows() / d;
        let block = |m: &Mat<f64>, unit: usize| m.submatrix(unit * d, unit * d, d, d).to_owned();
        let blocks = (0..units).map(|unit| (block(&k, unit), block(&p, unit))).collect();
        let aside = std::array::from_fn(|_| Mat::zeros(k.nrows(), TOGETHER.max(d).div_ceil(d) * d));
        Self {
            d,
            k,
            p,
            units: (0..units).collect(),
            gone: vec![false; units],
            factors,
            blocks,
            aside,
            count: 0,
        }
    }

    /// The unit whose leaving costs least, by its place, and what that costs. `None` where a number is not finite.
    fn cheapest(&self) -> Option<(f64, usize)> {
        let mut best: Option<(f64, usize)> = None;
        for (at, (k, p)) in self.blocks.iter().enumerate().filter(|(at, _)| !self.gone[*at]) {
            let cost = match self.d {
                1 if k[(0, 0)] > 0.0 => p[(0, 0)] / k[(0, 0)],
                1 => return None,
                _ => {
                    let solved = k.llt(Side::Lower).ok()?.solve(p);
                    solved.diagonal().column_vector().sum()
                }
            };
            let cost = cost * self.factors[self.units[at]];
            if !cost.is_finite() {
                return None;
            }
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, at));
            }
        }
        best
    }

    /// Takes the unit at this place away; returns which it is.
    fn leave(&mut self, at: usize) -> Option<usize> {
        let (d, n, used) = (self.d, self.k.nrows(), self.count * self.d);
        // Its columns as they are now.
        let mut k = self.k.submatrix(0, at * d, n, d).to_owned();
        let mut p = self.p.submatrix(0, at * d, n, d).to_owned();
        let kept = |which: usize| self.aside[which].submatrix(0, 0, n, used);
        let own = |which: usize| self.aside[which].submatrix(at * d, 0, d, used).transpose();
        matmul(k.as_mut(), Accum::Add, kept(0), own(1), -1.0, Par::Seq);
        matmul(p.as_mut(), Accum::Add, kept(2), own(1), -1.0, Par::Seq);
        matmul(p.as_mut(), Accum::Add, kept(1), own(2), -1.0, Par::Seq);
        let (k_own, p_own) = &self.blocks[at];
        let z = k_own.llt(Side::Lower).ok()?.solve(k.transpose()).transpose().to_owned();
        let mut q = p;
        matmul(q.as_mut(), Accum::Add, &z, p_own, -0.5, Par::Seq);
        self.gone[at] = true;
        for (place, (k_block, p_block)) in self.blocks.iter_mut().enumerate() {
            if self.gone[place] {
                continue;
            }
            let rows = |m: &'_ Mat<f64>| m.submatrix(place * d, 0, d, d).to_owned();
            let (k, z, q) = (rows(&k), rows(&z), rows(&q));
            if d == 1 {
                k_block[(0, 0)] -= k[(0, 0)] * z[(0, 0)];
                p_block[(0, 0)] -= 2.0 * q[(0, 0)] * z[(0, 0)];
                continue;
            }
            matmul(k_block.as_mut(), Accum::Add, &k, z.transpose(), -1.0, Par::Seq);
            matmul(p_block.as_mut(), Accum::Add, &q, z.transpose(), -1.0, Par::Seq);
            matmul(p_block.as_mut(), Accum::Add, &z, q.transpose(), -1.0, Par::Seq);
        }
        for (aside, new) in self.aside.iter_mut().zip([k, z, q]) {
            aside.submatrix_mut(0, used, n, d).copy_from(&new);
        }
        self.count += 1;
        let unit = self.units[at];
        if used + d == self.aside[0].ncols() {
            self.settle();
        }
        Some(unit)
    }

    /// Takes off what has been kept aside, and leaves out the features of units that have gone once they are a
    /// quarter.
    fn settle(&mut self) {
        let [columns, z, q] = &self.aside;
        take_off(&mut self.k, columns, z);
        take_off(&mut self.p, q, z);
        take_off(&mut self.p, z, q);
        self.count = 0;
        let left: Vec<usize> = (0..self.units.len()).filter(|at| !self.gone[*at]).collect();
        if 4 * left.len() > 3 * self.units.len() {
            return;
        }
        let d = self.d;
        let from = |i: usize| left[i / d] * d + i % d;
        let size = left.len() * d;
        let smaller = |m: &Mat<f64>| Mat::from_fn(size, size, |r, c| m[(from(r), from(c))]);
        (self.k, self.p) = (smaller(&self.k), smaller(&self.p));
        self.units = left.iter().map(|at| self.units[*at]).collect();
        self.blocks = left.iter().map(|at| self.blocks[*at].clone()).collect();
        self.gone = vec![false; left.len()];
        let width = self.aside[0].ncols();
        self.aside = std::array::from_fn(|_| Mat::zeros(size, width));
    }
}

/// `m −= a bᵀ`, some columns at a time, whatever the number of threads.
fn take_off(m: &mut Mat<f64>, a: &Mat<f64>, b: &Mat<f64>) {
    const COLUMNS: usize = 64;
    let (mut pieces, mut rest): (Vec<MatMut<'_, f64>>, _) = (Vec::new(), m.as_mut());
    while rest.ncols() > COLUMNS {
        let (piece, more) = rest.split_at_col_mut(COLUMNS);
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces.into_par_iter().enumerate().for_each(|(i, piece)| {
        let rows = b.submatrix(i * COLUMNS, 0, piece.ncols(), b.ncols());
        matmul(piece, Accum::Add, a, rows.transpose(), -1.0, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn random(seed: u64, rows: usize, cols: usize) -> Mat<f64> {
        let mut stream = rng::stream(seed, "surgeon test");
        let values = rng::normals(&mut stream, rows * cols, 1.0);
        Mat::from_fn(rows, cols, |r, c| f64::from(values[r * cols + c]))
    }

    fn tensor(m: &Mat<f64>) -> Tensor {
        let rows = (0..m.nrows()).flat_map(|r| (0..m.ncols()).map(move |c| (r, c)));
        Tensor::from_vec(&[m.nrows(), m.ncols()], rows.map(|i| m[i] as f32).collect())
    }

    /// The same by brute force: the weighted squared error that the best refit of the remaining inputs
    /// leaves.
    fn by_regression(x: &Mat<f64>, w: &Mat<f64>, b: &Mat<f64>, d: usize, gone: &[usize]) -> f64 {
        let n = x.ncols();
        let columns: Vec<usize> = (0..n).filter(|i| !gone.contains(&(i / d))).collect();
        let mut gram = x.transpose() * x;
        let ridge = RIDGE * (0..n).map(|i| gram[(i, i)]).sum::<f64>() / n as f64;
        (0..n).for_each(|i| gram[(i, i)] += ridge);
        let inner = Mat::from_fn(columns.len(), columns.len(), |r, c| gram[(columns[r], columns[c])]);
        let cross = Mat::from_fn(columns.len(), n, |r, c| gram[(columns[r], c)]);
        let mut map = Mat::zeros(w.nrows(), n);
        if !columns.is_empty() {
            let solved = inner.llt(Side::Lower).expect("positive").solve(&cross * w.transpose());
            for (i, &c) in columns.iter().enumerate() {
                (0..w.nrows()).for_each(|r| map[(r, c)] = solved[(i, r)]);
            }
        }
        let change = w - map;
        let error = b * &change * gram * change.transpose();
        (0..error.nrows()).map(|i| error[(i, i)]).sum()
    }

    #[test]
    fn costs_add_up_to_what_regression_leaves() {
        // Heads of three features; and so many channels that their changes are settled and left out in between.
        for (d, units) in [(3, 4), (1, 90)] {
            let x = random(1, 200, d * units) * random(2, d * units, d * units);
            let w = random(3, 5, d * units);
            let b = random(4, 20, 5);
            let b = b.transpose() * &b;
            let (gram, p) = (x.transpose() * &x, w.transpose() * &b * &w);
            let scores = leave_one_by_one(&tensor(&gram), &tensor(&p), d, vec![1.0; units])
                .expect("not stopped")
                .expect("finite");
            let mut order: Vec<usize> = (0..units).collect();
            order.sort_by(|&a, &c| scores[a].total_cmp(&scores[c]));
            // The first to leave is the cheapest of all, and its score is what refitting without it costs.
            let alone: Vec<f64> = (0..units).map(|h| by_regression(&x, &w, &b, d, &[h])).collect();
            assert!(alone.iter().all(|&cost| alone[order[0]] <= cost * 1.001));
            assert!(
                (scores[order[0]] / alone[order[0]] - 1.0).abs() < 1e-2,
                "{} {}",
                scores[order[0]],
                alone[order[0]]
            );
            // The others' scores come on top, as long as each costs more than the one before.
            for count in [2, units / 2, units - 2] {
                let together = by_regression(&x, &w, &b, d, &order[..count]);
                let sum: f64 = order[..count].iter().map(|unit| scores[*unit]).sum();
                assert!(
                    sum / together > 0.98 && sum / together < if count == 2 { 1.02 } else { 1.3 },
                    "{count}: {sum} {together}"
                );
            }
        }
    }

    #[test]
    fn a_channel_costs_what_its_gate_says_where_none_stands_in_for_it() {
        // Inputs that have nothing to do with each other.
        let (gram, p) = (Mat::from_fn(3, 3, |r, c| f64::from(u8::from(r == c))), random(7, 3, 3));
        let p = &p * p.transpose();
        let squares = [0.5, 0.0, 2.0];
        let factors = at_gates(&squares, &tensor(&gram), &tensor(&p));
        let scores = leave_one_by_one(&tensor(&gram), &tensor(&p), 1, factors).expect("not stopped");
        for (score, square) in scores.expect("finite").iter().zip(squares) {
            assert!((score - square).abs() < 2.0 * RIDGE, "{score} {square}");
        }
    }

    #[test]
    fn of_two_heads_that_say_the_same_one_is_nearly_free() {
        let d = 2;
        let one = random(5, 40, d);
        let other = random(6, 40, d);
        let from = |r: usize, c: usize| if c < 2 * d { one[(r, c % d)] } else { other[(r, c - 2 * d)] };
        let x = Mat::from_fn(40, 3 * d, from);
        let scores =
            leave_one_by_one(&tensor(&(x.transpose() * &x)), &tensor(&Mat::identity(6, 6)), d, vec![1.0; 3])
                .expect("not stopped")
                .expect("finite");
        let mut sorted = scores.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted[0] < 0.02 * sorted[1] && scores[2] > sorted[0], "{scores:?}");
    }
}
