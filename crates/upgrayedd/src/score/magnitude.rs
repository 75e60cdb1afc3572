//! Weight magnitude: L2 norm over a head's Q, K, V and O weights, or a channel's rows and columns.

use upgrayedd_nn::optim::Lanes;
use upgrayedd_nn::{ParamId, Tensor};

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::units::{LayerSite, Scores, Site, Sites};
use crate::weights::Kind;
use crate::{Model, Result};

pub(super) static SCORE: Score = Score {
    name: "magnitude",
    summary: "L2 norm over a head's Q, K, V and O weights (shared K and V count for each reader), or a channel's",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Nothing,
    compute,
};

fn compute(context: &ScoreContext<'_>, _: &Statistics) -> Result<Scores> {
    let model = context.model;
    Ok(Scores::of_places(model.units(), context.units, |place, _| {
        squared_norms(model, place).into_iter().map(f64::sqrt).collect()
    }))
}

/// The matrices of a layer whose rows or columns are those of units of a place (and of key/value heads, for
/// heads), with the site and the width of a unit.
fn matrices(model: &Model, place: LayerSite) -> impl Iterator<Item = (ParamId, Site, usize)> + '_ {
    model.params().ids().filter_map(move |id| {
        let weight = model.weight(id);
        let (site, width) = weight.owner()?;
        let counts = weight.layer == Some(place.layer) && weight.role.kind == Kind::Weight;
        (counts && site.counted() == place.site).then_some((id, site, width))
    })
}

/// Number of weights that a norm of this layer's heads sums over.
pub(crate) fn weights_per_head(model: &Model, layer: usize) -> usize {
    let of_one = |(id, _, width): (ParamId, Site, usize)| {
        let matrix = model.params().get(id);
        width * if model.weight(id).lanes() == Lanes::Rows { matrix.cols() } else { matrix.rows() }
    };
    matrices(model, LayerSite::heads(layer)).map(of_one).sum()
}

fn squared_norms(model: &Model, place: LayerSite) -> Vec<f64> {
    let known = &model.units().layers()[place.layer];
    let groups = known.kv_positions();
    let mut sums = vec![0.0; known.count(place.site)];
    for (id, site, width) in matrices(model, place) {
        let of_units = by_unit(&model.params().get(id).to_host(), model.weight(id).lanes(), width);
        for (unit, sum) in sums.iter_mut().enumerate() {
            *sum += of_units[if site == Site::KvGroup { groups[unit] } else { unit }];
        }
    }
    model.let_go(place.layer);
    sums
}

/// The sums of squares of a matrix's units, each so many rows or columns wide.
fn by_unit(matrix: &Tensor, lanes: Lanes, width: usize) -> Vec<f64> {
    if lanes == Lanes::Rows {
        return matrix
            .data()
            .chunks_exact(width * matrix.cols())
            .map(|unit| sum_of_squares(unit.iter()))
            .collect();
    }
    let mut sums = vec![0.0; matrix.cols() / width];
    for row in matrix.data().chunks_exact(matrix.cols().max(1)) {
        sums.iter_mut()
            .zip(row.chunks_exact(width))
            .for_each(|(sum, unit)| *sum += sum_of_squares(unit.iter()));
    }
    sums
}

fn sum_of_squares<'a>(values: impl Iterator<Item = &'a f32>) -> f64 {
    values.map(|v| f64::from(*v) * f64::from(*v)).sum()
}
