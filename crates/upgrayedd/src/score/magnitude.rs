//! Weight magnitude: L2 norm over a head's Q, K, V and O weights.

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::units::Scores;
use crate::weights::{Kind, Part};
use crate::{Model, Result};

pub(super) static SCORE: Score = Score {
    name: "magnitude",
    summary: "L2 norm over the head's Q, K, V and O weights (shared K and V count for each reader)",
    shown_negated: false,
    needs: Needs::Nothing,
    compute,
};

fn compute(context: &ScoreContext<'_>, _: &Statistics) -> Result<Scores> {
    let model = context.model;
    let layers = (0..model.spec.num_layers()).map(|layer| squared_norms(model, layer).into_iter().map(f64::sqrt).collect());
    Ok(Scores { layers: layers.collect() })
}

/// Number of weights that a head's norm sums over.
pub(crate) fn weights_per_head(model: &Model) -> usize {
    4 * model.spec.head_dim * model.spec.hidden_size
}

fn squared_norms(model: &Model, layer: usize) -> Vec<f64> {
    let d = model.spec.head_dim;
    let weight = |part| model.find(Some(layer), part, Kind::Weight).map(|id| model.params.get(id));
    let by_rows = |part| -> Vec<f64> {
        weight(part)
            .map_or_else(Vec::new, |w| w.data().chunks_exact(d * w.cols()).map(|head| sum_of_squares(head.iter())).collect())
    };
    let (q, k, v) = (by_rows(Part::Q), by_rows(Part::K), by_rows(Part::V));
    let mut o = vec![0.0; q.len()];
    if let Some(w) = weight(Part::O) {
        for row in w.data().chunks_exact(w.cols().max(1)) {
            o.iter_mut().zip(row.chunks_exact(d)).for_each(|(sum, head)| *sum += sum_of_squares(head.iter()));
        }
    }
    let groups = model.units.layers()[layer].kv_positions();
    groups.iter().enumerate().map(|(h, &g)| q[h] + k[g] + v[g] + o[h]).collect()
}

fn sum_of_squares<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|v| f64::from(*v) * f64::from(*v)).sum()
}
