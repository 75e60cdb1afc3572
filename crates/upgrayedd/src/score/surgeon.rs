//! What the loss rises by when a head goes and the rest is refitted: optimal brain surgeon (Hassibi & Stork
//! 1993) on the output projection, with Kronecker factors for the curvature (Martens & Grosse 2015; for
//! pruning: van der Ouderaa et al. 2024).
//!
//! With G = Σ x xᵀ over positions (x: what the projection W reads) and B = Σ g gᵀ (g: the loss's gradient in
//! what it writes), a change of W costs ½ tr(B ΔW G ΔWᵀ) / N² nats per position. Removing head h and changing
//! the others' weights in the best way costs ½ tr(Pₕₕ Kₕₕ⁻¹) / N² with K = G⁻¹ and P = Wᵀ B W. Heads leave
//! one after the other, the cheapest first, each seeing what the ones before have changed: of two heads that
//! can stand in for each other one is cheap, and then the other is not.

use nalgebra::{Cholesky, DMatrix, Dyn};
use rayon::prelude::*;
use upgrayedd_nn::Tensor;

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::linalg::multiply;
use crate::units::Scores;
use crate::weights::Writer;
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "surgeon",
    summary: "estimated rise of the loss, in nats per position, if the head goes after all with lower scores and the rest is \
              refitted: optimal brain surgeon with Kronecker-factored curvature (van der Ouderaa et al. 2024)",
    shown_negated: false,
    needs: Needs::Curvature,
    compute,
};

/// Added to G's diagonal, as a share of its mean.
const RIDGE: f64 = 1e-3;

fn compute(context: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let model = context.model;
    let d = model.spec().head_dim;
    let scale = 0.5 / (statistics.positions.max(1) as f64).powi(2);
    let mut scores = Vec::with_capacity(statistics.curvature.len());
    // As many layers at a time as there are threads: the products between them are where a Ctrl-C is heard.
    for layers in statistics.curvature.chunks(rayon::current_num_threads()) {
        let first = scores.len();
        // P = Wᵀ B W, in the engine's precision and on all its threads.
        let weighted = |(i, (inputs, outputs)): (usize, &'_ (Tensor, Tensor))| {
            let by_feature = model.writer_weight(first + i, Writer::Attention).to_host().transposed();
            let weighted = multiply(model.device(), &by_feature, outputs)?;
            Ok((inputs.clone(), multiply(model.device(), &weighted, &by_feature)?))
        };
        let layers: Vec<(Tensor, Tensor)> = layers.iter().enumerate().map(weighted).collect::<Result<_>>()?;
        scores.extend(layers.par_iter().map(|(g, p)| leave_one_by_one(g, p, d)).collect::<Vec<_>>());
    }
    let mut layers = Vec::with_capacity(scores.len());
    for (layer, scores) in scores.into_iter().enumerate() {
        let scores = scores.ok_or_else(|| {
            let name = model.layer_name(layer);
            Error::NotFinite(format!(
                "{name}: what its output projection reads on the calibration data has no finite covariance"
            ))
        })?;
        layers.push(scores.into_iter().map(|s| s * scale).collect());
    }
    Ok(Scores::of_heads(layers))
}

fn square(t: &Tensor) -> DMatrix<f64> {
    DMatrix::from_fn(t.rows(), t.cols(), |r, c| f64::from(t.data()[r * t.cols() + c]))
}

/// tr(Pₕₕ Kₕₕ⁻¹) of each head when it leaves, never less than that of a head before it. `None` if G has no
/// inverse.
fn leave_one_by_one(gram: &Tensor, p: &Tensor, d: usize) -> Option<Vec<f64>> {
    let (mut gram, mut p) = (square(gram), square(p));
    let heads = gram.nrows() / d;
    let mean = gram.diagonal().mean();
    if mean <= 0.0 {
        // The layer reads nothing but zeros: nothing is lost with any head.
        return Some(vec![0.0; heads]);
    }
    (0..gram.nrows()).for_each(|i| gram[(i, i)] += RIDGE * mean);
    let mut k = inverse(gram, d)?;
    // K and P have the rows and columns of the heads that are left, in this order.
    let mut remaining: Vec<usize> = (0..heads).collect();
    let (mut scores, mut highest) = (vec![0.0; heads], 0.0f64);
    while !remaining.is_empty() {
        let mut best: Option<(f64, usize, Cholesky<f64, Dyn>)> = None;
        for at in 0..remaining.len() {
            let factor = k.view((at * d, at * d), (d, d)).into_owned().cholesky()?;
            let cost = factor.solve(&p.view((at * d, at * d), (d, d))).trace();
            if !cost.is_finite() {
                return None;
            }
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, at, factor));
            }
        }
        let (cost, at, factor) = best?;
        highest = highest.max(cost);
        scores[remaining.remove(at)] = highest;
        // The others take over what they can: W' = W − Wₕ Z with Z = Kₕₕ⁻¹ Kₕ:, P' = P − Pₕᵀ Z − Zᵀ (Pₕ − Pₕₕ
        // Z).
        let own = p.view((at * d, at * d), (d, d)).into_owned();
        let k_columns = k.columns(at * d, d).remove_rows(at * d, d);
        let p_columns = p.columns(at * d, d).remove_rows(at * d, d);
        k = k.remove_rows(at * d, d).remove_columns(at * d, d);
        p = p.remove_rows(at * d, d).remove_columns(at * d, d);
        let z = factor.solve(&k_columns.transpose());
        k.gemm(-1.0, &k_columns, &z, 1.0);
        p.gemm(-1.0, &p_columns, &z, 1.0);
        p.gemm_tr(-1.0, &z, &(p_columns.transpose() - own * &z), 1.0);
    }
    Some(scores)
}

/// G⁻¹ by Gauss–Jordan, `d` rows at a time, so that nearly all of the work is matrix products. `None` unless
/// G is positive definite.
fn inverse(mut g: DMatrix<f64>, d: usize) -> Option<DMatrix<f64>> {
    for at in (0..g.nrows()).step_by(d) {
        let pivot = g.view((at, at), (d, d)).into_owned().cholesky()?.inverse();
        let rows = &pivot * g.rows(at, d);
        let mut columns = g.columns(at, d).into_owned();
        columns.rows_mut(at, d).fill(0.0);
        g.gemm(-1.0, &columns, &rows, 1.0);
        g.rows_mut(at, d).copy_from(&rows);
        columns = -columns * &pivot;
        columns.rows_mut(at, d).copy_from(&pivot);
        g.columns_mut(at, d).copy_from(&columns);
    }
    Some(g)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    fn random(seed: u64, rows: usize, cols: usize) -> DMatrix<f64> {
        let mut stream = rng::stream(seed, "surgeon test");
        let values = rng::normals(&mut stream, rows * cols, 1.0);
        DMatrix::from_fn(rows, cols, |r, c| f64::from(values[r * cols + c]))
    }

    fn tensor(m: &DMatrix<f64>) -> Tensor {
        let rows = (0..m.nrows()).flat_map(|r| (0..m.ncols()).map(move |c| (r, c)));
        Tensor::from_vec(&[m.nrows(), m.ncols()], rows.map(|i| m[i] as f32).collect())
    }

    /// The same by brute force: the weighted squared error that the best refit of the remaining inputs
    /// leaves.
    fn by_regression(x: &DMatrix<f64>, w: &DMatrix<f64>, b: &DMatrix<f64>, d: usize, gone: &[usize]) -> f64 {
        let n = x.ncols();
        let columns: Vec<usize> = (0..n).filter(|i| !gone.contains(&(i / d))).collect();
        let mut gram = x.transpose() * x;
        let ridge = RIDGE * gram.diagonal().mean();
        (0..n).for_each(|i| gram[(i, i)] += ridge);
        let (inner, cross) =
            (gram.select_columns(&columns).select_rows(&columns), gram.select_rows(&columns));
        let mut map = DMatrix::zeros(w.nrows(), n);
        if !columns.is_empty() {
            let solved = inner.cholesky().expect("positive").solve(&(cross * w.transpose())).transpose();
            columns.iter().enumerate().for_each(|(i, &c)| map.set_column(c, &solved.column(i)));
        }
        let change = w - map;
        (b * &change * gram * change.transpose()).trace()
    }

    #[test]
    fn costs_add_up_to_what_regression_leaves() {
        let (d, heads) = (3, 4);
        let x = random(1, 50, d * heads) * random(2, d * heads, d * heads);
        let w = random(3, 5, d * heads);
        let b = random(4, 20, 5);
        let b = b.transpose() * b;
        let scores = leave_one_by_one(&tensor(&(x.transpose() * &x)), &tensor(&(w.transpose() * &b * &w)), d)
            .expect("finite");
        let mut order: Vec<usize> = (0..heads).collect();
        order.sort_by(|&a, &c| scores[a].total_cmp(&scores[c]));
        // The first to leave is the cheapest of all, and its score is what refitting without it costs.
        let alone: Vec<f64> = (0..heads).map(|h| by_regression(&x, &w, &b, d, &[h])).collect();
        assert!(alone.iter().all(|&cost| alone[order[0]] <= cost * 1.001));
        assert!(
            (scores[order[0]] / alone[order[0]] - 1.0).abs() < 1e-3,
            "{} {}",
            scores[order[0]],
            alone[order[0]]
        );
        // The second's score comes on top.
        let two = by_regression(&x, &w, &b, d, &order[..2]);
        assert!(((scores[order[0]] + scores[order[1]]) / two - 1.0).abs() < 1e-3, "{two}");
    }

    #[test]
    fn an_inverse_undoes_its_matrix() {
        let x = random(7, 30, 12);
        let g = x.transpose() * &x;
        let product = inverse(g.clone(), 4).expect("positive definite") * g;
        assert!((product - DMatrix::identity(12, 12)).amax() < 1e-9);
        assert!(inverse(-DMatrix::<f64>::identity(6, 6), 3).is_none());
    }

    #[test]
    fn of_two_heads_that_say_the_same_one_is_nearly_free() {
        let d = 2;
        let one = random(5, 40, d);
        let other = random(6, 40, d);
        let x = DMatrix::from_fn(
            40,
            3 * d,
            |r, c| if c < 2 * d { one[(r, c % d)] } else { other[(r, c - 2 * d)] },
        );
        let scores = leave_one_by_one(&tensor(&(x.transpose() * &x)), &tensor(&DMatrix::identity(6, 6)), d)
            .expect("finite");
        let mut sorted = scores.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted[0] < 0.02 * sorted[1] && scores[2] > sorted[0], "{scores:?}");
    }
}
