//! Uniform random scores: the baseline that any other score must beat.

use rand::RngExt;

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::units::Scores;
use crate::{Result, rng};

pub(super) static SCORE: Score = Score {
    name: "random",
    summary: "uniform in [0, 1): a baseline",
    shown_negated: false,
    needs: Needs::Nothing,
    compute,
};

fn compute(context: &ScoreContext<'_>, _: &Statistics) -> Result<Scores> {
    let mut random = rng::stream(context.seed, "random score");
    let layer = |l: &crate::units::LayerUnits| l.active().iter().map(|_| random.random::<f64>()).collect();
    Ok(Scores::of_heads(context.model.units().layers().iter().map(layer)))
}
