//! Uniform random scores: the baseline that any other score must beat.

use rand::RngExt;

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::heads::HeadScores;
use crate::{Result, rng};

pub(super) static SCORE: Score =
    Score { name: "random", summary: "uniform in [0, 1): a baseline", shown_negated: false, needs: Needs::Nothing, compute };

fn compute(context: &ScoreContext<'_>, _: &Statistics) -> Result<HeadScores> {
    let mut random = rng::stream(context.seed, "random score");
    let layer = |l: &crate::heads::LayerHeads| l.active().iter().map(|_| random.random::<f64>()).collect();
    Ok(HeadScores { layers: context.model.heads.layers().iter().map(layer).collect() })
}
