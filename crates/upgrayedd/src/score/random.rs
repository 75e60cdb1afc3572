//! Uniform random scores: the baseline that any other score must beat.

use rand::RngExt;

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::units::{Scores, Sites};
use crate::{Result, rng};

pub(super) static SCORE: Score = Score {
    name: "random",
    summary: "uniform in [0, 1): a baseline",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Nothing,
    compute,
};

fn compute(context: &ScoreContext<'_>, _: &Statistics) -> Result<Scores> {
    let mut random = rng::stream(context.seed, "random score");
    Ok(Scores::of_places(context.model.units(), context.units, |place, known| {
        (0..known.count(place.site)).map(|_| random.random::<f64>()).collect()
    }))
}
