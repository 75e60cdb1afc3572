//! First-order Taylor term of removing a head, made comparable between layers (Molchanov et al. 2017).

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::Result;
use crate::units::{Scores, Sites};

pub(super) static SCORE: Score = Score {
    name: "taylor",
    summary: "mean over sequences of |gate · ∂loss/∂gate|, divided by its L2 norm over the layer (Molchanov et al. 2017)",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Gates,
    compute,
};

fn compute(_: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    let mut scores = statistics.absolute.clone();
    for scores in scores.lists_mut() {
        let norm = scores.iter().map(|s| s * s).sum::<f64>().sqrt();
        // A layer without any gradient stays at zero: all its units are equally useless.
        scores.iter_mut().filter(|_| norm > 0.0).for_each(|s| *s /= norm);
    }
    Ok(scores)
}
