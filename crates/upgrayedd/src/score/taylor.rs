//! First-order Taylor term of removing a head, made comparable between layers (Molchanov et al. 2017).

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::Result;
use crate::units::Scores;

pub(super) static SCORE: Score = Score {
    name: "taylor",
    summary: "mean over sequences of |gate · ∂loss/∂gate|, divided by its L2 norm over the layer (Molchanov et al. 2017)",
    shown_negated: false,
    needs: Needs::Gates,
    compute,
};

fn compute(_: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let layer = |scores: &[f64]| {
        let norm = scores.iter().map(|s| s * s).sum::<f64>().sqrt();
        // A layer without any gradient stays at zero: all its heads are equally useless.
        scores.iter().map(|s| if norm > 0.0 { s / norm } else { *s }).collect()
    };
    Ok(Scores::of_heads(statistics.absolute.heads().map(layer)))
}
