//! Weight times activation over a unit's columns of its writer (Sun et al. 2024).

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::Result;
use crate::units::{Scores, Sites};
use crate::weights::Writer;

pub(super) static SCORE: Score = Score {
    name: "wanda",
    summary: "mean of |weight| · root mean square of its input, over the unit's columns of its writer (Sun et al. 2024)",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Norms,
    compute,
};

fn compute(context: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let model = context.model;
    Ok(Scores::of_places(model.units(), context.units, |place, known| {
        let (Some(writer), Some(norms)) = (Writer::of(place.site), statistics.norms.get(&place)) else {
            return Vec::new();
        };
        let weight = model.writer_weight(place.layer, writer).to_host();
        model.let_go(place.layer);
        let width = (weight.cols() / known.count(place.site).max(1)).max(1);
        let mut columns = vec![0.0; weight.cols()];
        for row in weight.data().chunks_exact(weight.cols().max(1)) {
            columns.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(w.abs()));
        }
        let unit = |(columns, norms): (&[f64], &[f64])| {
            let sum: f64 = columns.iter().zip(norms).map(|(w, x)| w * x).sum();
            sum / (width * weight.rows()) as f64
        };
        columns.chunks_exact(width).zip(norms.chunks_exact(width)).map(unit).collect()
    }))
}
