//! Fisher information under the user's task.

use upgrayedd_nn::ops::IGNORE;

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::data::Pass;
use crate::spec::Objective;
use crate::units::{Scores, Sites};
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "task",
    summary: "mean over labelled examples of (∂ task loss/∂gate)²: fisher, refused where the data has no labels of a task",
    shown_negated: false,
    units: Sites::FINEST,
    needs: Needs::Gates,
    compute,
};

fn compute(context: &ScoreContext<'_>, statistics: &Statistics) -> Result<Scores> {
    if !has_task(context)? {
        return Err(Error::does_not_fit(
            "score task needs labels: a classifier with labelled data, or sequences whose prompts are masked with -100; for plain text use fisher",
        ));
    }
    Ok(statistics.squared.clone())
}

/// Whether the data is a task's: labels, or sequences that say which of their tokens are the answer.
pub(super) fn has_task(context: &ScoreContext<'_>) -> Result<bool> {
    match context.model.spec().objective {
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => return Ok(true),
        Objective::CausalLm => {}
        _ => return Ok(false),
    }
    let (data, range) = context.calibration()?;
    let batch = data.batch(&range.clone().take(context.samples).collect::<Vec<_>>(), Pass::Fixed);
    let real = |i: usize| batch.mask.as_ref().is_none_or(|m| m[i] != 0);
    // The last position of a sequence predicts nothing in any case.
    let asks =
        |(i, &target): (usize, &i64)| target == IGNORE && (i + 1) % batch.len != 0 && real(i) && real(i + 1);
    Ok(batch.targets.iter().enumerate().any(asks))
}
