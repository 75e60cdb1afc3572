//! Weight times activation over a head's slice of the output projection (Sun et al. 2024).

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::Result;
use crate::units::Scores;
use crate::weights::Writer;

pub(super) static SCORE: Score = Score {
    name: "wanda",
    summary: "mean of |weight| · root mean square of its input, over the head's output projection (Sun et al. 2024)",
    shown_negated: false,
    needs: Needs::Norms,
    compute,
};

fn compute(context: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let d = context.model.spec().head_dim;
    let layer = |(layer, norms): (usize, &Vec<f64>)| {
        let weight = context.model.writer_weight(layer, Writer::Attention).to_host();
        let mut columns = vec![0.0; weight.cols()];
        for row in weight.data().chunks_exact(weight.cols().max(1)) {
            columns.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(w.abs()));
        }
        let head = |(columns, norms): (&[f64], &[f64])| {
            let sum: f64 = columns.iter().zip(norms).map(|(w, x)| w * x).sum();
            sum / (d * weight.rows()) as f64
        };
        columns.chunks_exact(d).zip(norms.chunks_exact(d)).map(head).collect()
    };
    Ok(Scores::of_heads(statistics.norms.iter().enumerate().map(layer)))
}
