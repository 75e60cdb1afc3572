//! What a score is, and computing several at once.

use super::context::ScoreContext;
use super::statistics::{self, Needs, Statistics};
use crate::units::{Scores, Site, Sites};
use crate::{Error, Result};

/// An importance score.
///
/// ```
/// use upgrayedd::builtin;
/// use upgrayedd::data::{DataOptions, Dataset};
/// use upgrayedd::score::{self, ScoreContext};
///
/// let model = builtin::model()?;
/// let options = DataOptions { sequence_length: 64, ..DataOptions::default() };
/// let data = Dataset::from_documents(builtin::stories(1, 20), &model, &model.tokenizer()?, &options)?;
/// let scores = score::named("fisher")?.compute(&ScoreContext::new(&model, &data, &(0..8)))?;
/// // A number for each head, higher = keep.
/// assert_eq!(scores.heads().map(<[f64]>::len).collect::<Vec<_>>(), [8; 4]);
/// # Ok::<(), upgrayedd::Error>(())
/// ```
#[derive(Debug)]
pub struct Score {
    /// The name on the command line.
    pub name: &'static str,
    /// What the number is, with its source.
    pub summary: &'static str,
    /// Whether users see the number with the other sign: an entropy is one, though heads with little of it
    /// are kept.
    pub shown_negated: bool,
    /// The kinds of units that it is defined for.
    pub units: Sites,
    pub(super) needs: Needs,
    pub(super) compute: fn(&ScoreContext<'_>, &Statistics) -> Result<Scores>,
}

impl Score {
    /// Whether calibration data is read.
    pub fn needs_data(&self) -> bool {
        self.needs != Needs::Nothing
    }

    /// Whether covariances are gathered, which take memory by the square of what a writer reads.
    pub fn needs_curvature(&self) -> bool {
        self.needs == Needs::Curvature
    }

    /// The score of every active unit of the context's kinds: the higher, the rather it is kept.
    ///
    /// # Errors
    /// Returns what [`compute_all`] returns.
    pub fn compute(&self, context: &ScoreContext<'_>) -> Result<Scores> {
        let mut scores = compute_all(&[self], context)?;
        Ok(scores.swap_remove(0))
    }

    /// What the score itself says numbers of, for units of these kinds: blocks that it does not measure get the
    /// sums of their units'.
    pub(crate) fn own_units(&self, units: Sites) -> Sites {
        let of =
            |site: Site| if self.units.contains(site) { Sites::of(site) } else { Sites::of(site).leaves() };
        units.iter().map(of).reduce(Sites::or).unwrap_or_default()
    }

    /// Refuses kinds of units that the score is not defined for.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] that names them.
    pub fn check_units(&self, units: Sites) -> Result<()> {
        match self.own_units(units).iter().find(|site| !self.units.contains(*site)) {
            Some(site) => Err(Error::does_not_fit(format!(
                "score {} is defined for {}, not for {}",
                self.name,
                self.units,
                site.name()
            ))),
            None => Ok(()),
        }
    }

    /// The numbers as users see them.
    pub fn shown(&self, scores: &Scores) -> Scores {
        if self.shown_negated { scores.map(|score| -score) } else { scores.clone() }
    }
}

/// Several scores from one pass over the calibration data (`loss_impact` makes passes of its own).
///
/// # Errors
/// Returns [`crate::Error::DoesNotFit`] if a score needs data or labels and there are none, or is not defined
/// for the context's units,
/// [`crate::Error::Data`] if the data has no sequences or nothing to predict, [`crate::Error::NotFinite`] if
/// a score is not finite, [`crate::Error::Interrupted`] if the work is stopped, and what `context.reduce`
/// returns.
pub fn compute_all(scores: &[&Score], context: &ScoreContext<'_>) -> Result<Vec<Scores>> {
    scores.iter().try_for_each(|score| score.check_units(context.units))?;
    let needs: Vec<Needs> =
        scores.iter().map(|s| s.needs).filter(|n| !matches!(n, Needs::Nothing | Needs::Ablation)).collect();
    let statistics =
        if needs.is_empty() { Statistics::default() } else { statistics::gather(context, &needs)? };
    scores.iter().map(|score| from_statistics(score, context, &statistics)).collect()
}

/// What a score makes of what has been gathered, for all of the context's kinds.
pub(super) fn from_statistics(
    score: &Score,
    context: &ScoreContext<'_>,
    statistics: &Statistics,
) -> Result<Scores> {
    let own = ScoreContext { units: score.own_units(context.units), ..*context };
    // An entropy of many heads is no less than that of few.
    let scores = (score.compute)(&own, statistics)?;
    let scores = scores.with_blocks(context.model.units(), context.units, score.shown_negated);
    // Numbers of a device that has failed are none.
    context.model.device().settle()?;
    scores.check(context.model.units(), context.units)?;
    Ok(scores)
}
