//! What comes back in a cycle.

use std::collections::BTreeMap;

use upgrayedd_nn::trim_buffers;

use super::state::{Pipeline, Run};
use crate::budget::{self, CycleCounts};
use crate::config::CostGoals;
use crate::event::{Event, named_units};
use crate::grow::{self, Gains};
use crate::learner::Learner;
use crate::record::Evaluation;
use crate::strategy::GrowView;
use crate::units::{LayerSite, Scores, Selection, Site};
use crate::{Model, Result, refit};

/// What a strategy is asked with, whatever the number of units.
struct Asked<'a> {
    gains: &'a Gains,
    restorable: &'a BTreeMap<Site, Vec<usize>>,
    importances: &'a Scores,
    cycle: usize,
    evaluation: &'a Evaluation,
}

impl Run<'_> {
    /// Brings units back, and repairs writers for those that `parent`, the model that the cycle started with,
    /// had; returns them, and those of them that are to be faded in.
    pub(super) fn grow(
        &mut self,
        cycle: usize,
        importances: &Scores,
        (counts, goals): (&BTreeMap<Site, CycleCounts>, Option<CostGoals>),
        evaluation: &Evaluation,
        parent: &Model,
    ) -> Result<(Selection, Selection)> {
        let Pipeline { learner: Learner { model, .. }, plan, record, .. } = &self.pipeline;
        let known = model.units();
        let restorable: BTreeMap<Site, Vec<usize>> =
            counts.keys().map(|site| (*site, model.archive().restorable(known, site.counted()))).collect();
        let can_return = |site: &Site| restorable[site].iter().sum::<usize>();
        let due = |(site, counts): (&Site, &CycleCounts)| {
            let gone = known.total_of(site.counted()) - known.count(site.counted());
            let count = match counts.goal {
                Some(goal) => gone.saturating_sub(goal).min(can_return(site)),
                None => budget::growth(plan.config.grow.growth_ratio, can_return(site), known, *site),
            };
            (*site, count)
        };
        let mut counts: BTreeMap<Site, usize> = counts.iter().map(due).collect();
        let has_room = match goals {
            None => counts.values().any(|count| *count > 0),
            Some(goals) => {
                plan.config.grow.growth_ratio > 0.0 && plan.prices(model)?.total(known) < goals.grown
            }
        };
        // A strategy of the caller's decides freely, so it may grow where the ratio comes to none.
        let some_left = counts.keys().any(|site| can_return(site) > 0);
        let wanted = some_left && (has_room || record.given.strategy);
        let gains = if wanted { self.pipeline.gains(cycle)? } else { Gains::new() };
        trim_buffers();
        let asked = Asked { gains: &gains, restorable: &restorable, importances, cycle, evaluation };
        if let Some(goals) = goals {
            counts = if wanted { self.within_cost(&asked, goals.grown)? } else { BTreeMap::new() };
        }
        let selection = self.ask(&asked, &counts)?;
        self.check_chosen(Some(&selection))?;
        let Pipeline { learner, plan, .. } = &mut self.pipeline;
        let rate = plan.config.grow.growth_lr_multiplier as f32;
        // A refit makes of the model what the parent was. Units that were gone by then would be cancelled:
        // they come after it.
        let has = |place: LayerSite, unit: usize| parent.units().layers()[place.layer].has(place.site, unit);
        let (first, later) = partition(&selection, has);
        learner.restore(&first, rate)?;
        let model = &learner.model;
        let units = named_units(model, &selection);
        let later_of = |site: Site| -> usize {
            later.iter().filter(|(place, _)| place.site == site).map(|(_, units)| units.len()).sum()
        };
        let active = model.units().num_active() + later_of(Site::Head);
        let channels = self.pipeline.channels().map(|there| there + later_of(Site::Channel));
        self.journal.emit(Event::Grown { cycle, units, active, channels })?;
        let refits = self.pipeline.plan.config.refit.refit && !first.is_empty();
        if refits {
            // What was repaired for units that are back would now be there twice.
            refit::undo(&mut self.pipeline.learner.model, parent);
        }
        let complete = self.pipeline.learner.model.units() == parent.units();
        let fitted = refits
            && (complete || self.refit(cycle, parent, self.pipeline.plan.config.refit.refit_samples)?);
        self.pipeline.learner.restore(&later, rate)?;
        // Units whose writers have been solved for belong to the whole at once: no fading in.
        let fading = if fitted { later } else { selection.clone() };
        Ok((selection, fading))
    }

    /// The units that the strategy brings back, so many of each kind.
    fn ask(&mut self, asked: &Asked<'_>, counts: &BTreeMap<Site, usize>) -> Result<Selection> {
        let seed = self.pipeline.plan.cycle_seed(asked.cycle);
        let Pipeline { learner, strategy, .. } = &mut self.pipeline;
        let mut selection = Selection::new();
        for (&units, &count) in counts {
            let view = GrowView {
                model: &learner.model,
                gains: asked.gains,
                restorable: &asked.restorable[&units],
                importances: asked.importances,
                count,
                units,
                seed,
                cycle: asked.cycle,
                evaluation: asked.evaluation,
                history: &self.journal.state.history,
            };
            let counts = strategy.select_units_to_grow(&view)?;
            for (place, units) in grow::choose(learner.model.units(), asked.gains, &counts, units)? {
                merge(selection.entry(place).or_default(), units);
            }
        }
        Ok(selection)
    }

    /// As many units of each kind as may come back until the model costs `goal`: those with the highest gains per
    /// price first.
    fn within_cost(&mut self, asked: &Asked<'_>, goal: f64) -> Result<BTreeMap<Site, usize>> {
        let model = self.pipeline.learner.model.clone();
        let (known, kinds) = (model.units(), self.pipeline.plan.config.prune.units);
        let plan = self.pipeline.plan.clone();
        let prices = plan.prices(&model)?;
        let of_units = prices.of_units(known, kinds.counted());
        // Where nothing is left, a unit costs what it did.
        let mut whole = known.clone();
        whole.insert(&model.archive().selection())?;
        let of_whole = prices.of_units(&whole, kinds.counted());
        let mut order: Vec<(f64, Site, usize)> = Vec::new();
        for site in kinds.iter() {
            order.extend(grow::candidates(known, asked.gains, site).into_iter().map(|candidate| {
                let place = LayerSite { layer: candidate.layer, site: site.counted() };
                let prices =
                    if known.layers()[place.layer].count(place.site) > 0 { &of_units } else { &of_whole };
                let price = prices.get(&place).copied().unwrap_or(0.0);
                let gain = candidate.gain * candidate.units.len() as f64 / candidate.count as f64;
                (if price > 0.0 { gain / price } else { gain }, site, candidate.count)
            }));
        }
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let counts = |first: usize| {
            let mut counts: BTreeMap<Site, usize> = kinds.iter().map(|site| (site, 0)).collect();
            for (_, site, size) in &order[..first] {
                *counts.entry(*site).or_insert(0) += size;
            }
            counts
        };
        let (mut fits, mut beyond) = (0, order.len() + 1);
        while beyond - fits > 1 {
            let middle = usize::midpoint(fits, beyond);
            let mut units = known.clone();
            units.insert(&self.ask(asked, &counts(middle))?)?;
            if prices.total(&units) <= goal * (1.0 + 1e-12) { fits = middle } else { beyond = middle }
        }
        Ok(counts(fits))
    }
}

/// Adds units, each once.
fn merge(all: &mut Vec<usize>, more: Vec<usize>) {
    all.extend(more);
    all.sort_unstable();
    all.dedup();
}

/// The units for which `first` holds, and the others.
fn partition(selection: &Selection, first: impl Fn(LayerSite, usize) -> bool) -> (Selection, Selection) {
    let some = |wanted: bool| {
        let place = |(&place, units): (&LayerSite, &Vec<usize>)| {
            (place, units.iter().copied().filter(|&unit| first(place, unit) == wanted).collect::<Vec<_>>())
        };
        selection.iter().map(place).filter(|(_, units)| !units.is_empty()).collect()
    };
    (some(true), some(false))
}
