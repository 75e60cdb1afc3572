//! What pruning would cost, before a run is started.

use serde::Serialize;

use super::select::Amount;
use super::state::Pipeline;
use crate::event::Observer;
use crate::price::Currency;
use crate::units::Site;
use crate::{Model, Result, budget, surgery};

/// What pruning a share of the budget's currency (units, parameters, …) would cost before learning.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// Share that is gone.
    pub ratio: f64,
    /// Query heads left.
    pub active: usize,
    /// Channels left.
    pub channels: usize,
    /// Parameters left.
    pub parameters: usize,
    /// Held-out loss, after refit if the run refits.
    pub loss: f64,
}

/// Ratios that a forecast goes through.
const FORECAST: [f64; 5] = [0.1, 0.2, 0.3, 0.4, 0.5];

impl Pipeline {
    /// What each of several ratios would cost before learning, one built on the other and each scored anew;
    /// the model stays as it is. Units are chosen as in a run; the refit reads the sequences to score on
    /// alone, where a run may read more. Ratios that the units which may go do not reach are left out.
    /// Returns the held-out loss now as well.
    ///
    /// # Errors
    /// Returns [`crate::Error::NotFinite`] if a loss or a score is not finite, [`crate::Error::Data`] if the
    /// data has nothing to predict, [`crate::Error::Interrupted`] if the observer or whoever started the work
    /// stops it, [`crate::Error::DoesNotFit`] if the strategy's scores are not those of the model's heads,
    /// what the strategy returns, and what [`UnitMap::remove`](crate::units::UnitMap::remove) returns for the
    /// heads that it names.
    pub fn forecast(&mut self, observer: &mut dyn Observer) -> Result<(f64, Vec<Forecast>)> {
        let parent = self.learner.model.clone();
        let result = self.forecast_from(&parent, observer);
        self.learner.model = parent;
        result
    }

    fn forecast_from(&mut self, parent: &Model, observer: &mut dyn Observer) -> Result<(f64, Vec<Forecast>)> {
        let before = self.measure("baseline", observer)?.loss;
        let (most, currency) = (self.plan.prunable(&self.learner.model), self.plan.config.prune.budget);
        let whole = self.plan.prices(parent)?.total(parent.units());
        let mut rows = Vec::new();
        for ratio in FORECAST {
            let goal = whole * (1.0 - ratio);
            let there = |model: &Model, site: Site| model.units().count(site.counted());
            let wanted = |site: Site| budget::portion(ratio, there(parent, site));
            if currency == Currency::Units && most.iter().any(|(site, most)| wanted(*site) > *most) {
                break;
            }
            let scores = self.score(1)?;
            let amount = if currency == Currency::Units {
                let gone = |site| there(parent, site) - there(&self.learner.model, site);
                let left = |site: &Site| (*site, wanted(*site).saturating_sub(gone(*site)));
                Amount::Units(most.keys().map(left).collect())
            } else {
                Amount::Left(goal)
            };
            let selection = self.choose(&scores, amount)?;
            surgery::remove(&mut self.learner.model, None, &selection, 0, None)?;
            let left = self.plan.prices(&self.learner.model)?.total(self.learner.model.units());
            if currency != Currency::Units && left > goal * (1.0 + 1e-9) {
                // There are not units enough to go.
                break;
            }
            self.refit(parent, 0)?;
            let loss = self.measure(&format!("{:.0} % pruned", 100.0 * ratio), observer)?.loss;
            let (active, channels) =
                (there(&self.learner.model, Site::Head), there(&self.learner.model, Site::Channel));
            let parameters = self.learner.model.num_parameters();
            rows.push(Forecast { ratio, active, channels, parameters, loss });
        }
        Ok((before, rows))
    }
}
