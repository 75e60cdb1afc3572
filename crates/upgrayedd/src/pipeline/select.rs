//! Which units go: the strategy's choice for a number of units or a share of a cost, step by step.

use std::collections::BTreeMap;
use std::ops::Range;

use upgrayedd_nn::trim_buffers;

use super::state::Pipeline;
use crate::budget::{self, CycleCounts, Shape, check_kept};
use crate::config::CostGoals;
use crate::model::Model;
use crate::price::Currency;
use crate::strategy::PruneView;
use crate::units::{LayerSite, Scores, Selection, Site};
use crate::{Error, Result, surgery};

/// A step of a cycle that prunes in steps.
pub(super) struct PruneStep<'a> {
    pub(super) cycle: usize,
    /// From 1.
    pub(super) number: usize,
    pub(super) of: usize,
    /// Units of the whole cycle.
    pub(super) budget: &'a BTreeMap<Site, usize>,
    /// Or what it may cost afterwards.
    pub(super) goals: Option<CostGoals>,
    /// The model that the cycle started with.
    pub(super) parent: &'a Model,
}

/// How much goes.
pub(super) enum Amount {
    /// So many units of each kind.
    Units(BTreeMap<Site, usize>),
    /// As much as it takes for what is left to cost this at most.
    Left(f64),
}

/// What goes in a step.
pub(super) struct Chosen {
    pub(super) scores: Scores,
    /// How many units the budget asked for.
    pub(super) share: usize,
    pub(super) selection: Selection,
}

impl Pipeline {
    /// The units that the first cycle would prune, without changing anything.
    ///
    /// # Errors
    /// Returns [`crate::Error::NotFinite`] if a score is not finite, [`crate::Error::DoesNotFit`] if the
    /// scores are not those of the model's units, [`crate::Error::Interrupted`] if the work is stopped, what
    /// the strategy returns, and what [`UnitMap::remove`](crate::units::UnitMap::remove) returns for the
    /// units that it names.
    pub fn preview(&mut self) -> Result<Selection> {
        let parent = self.learner.model.clone();
        let result = self.preview_from(&parent);
        self.learner.model = parent;
        result
    }

    fn preview_from(&mut self, parent: &Model) -> Result<Selection> {
        let budget = to_prune(&self.plan.cycle_counts(&self.learner.model, 1));
        let goals = self.plan.cost_goals(&self.learner.model, 1)?;
        let of = self.plan.pruning_steps;
        let mut gone = Selection::new();
        for number in 1..=of {
            let step = PruneStep { cycle: 1, number, of, budget: &budget, goals, parent };
            let Some(chosen) = self.prune_step(step)? else { continue };
            surgery::remove(&mut self.learner.model, None, &chosen.selection, 1, None)?;
            for (place, units) in chosen.selection {
                gone.entry(place).or_default().extend(units);
            }
            if number < of {
                self.refit(parent, 0)?;
            }
        }
        gone.values_mut().for_each(|units| units.sort_unstable());
        Ok(gone)
    }

    /// The units that go such that what is left costs `goal` at most: as few as the strategy's order allows. Units
    /// of different kinds compete by importance per price.
    fn select_by_cost(&mut self, scores: &Scores, goal: f64) -> Result<Selection> {
        let kinds = self.plan.config.prune.units;
        let model = self.learner.model.clone();
        let prices = self.plan.prices(&model)?;
        let scores = if kinds.is_mixed() {
            let of_units = prices.of_units(self.learner.model.units(), kinds.counted());
            &per_price(scores, &of_units)
        } else {
            scores
        };
        let order = budget::order(self.learner.model.units(), scores, kinds.iter());
        let most = self.plan.prunable(&self.learner.model);
        let counts = |first: usize| {
            let mut counts: BTreeMap<Site, usize> = most.keys().map(|site| (*site, 0)).collect();
            for (site, size) in &order[..first] {
                counts.entry(*site).and_modify(|count| *count = (*count + size).min(most[site]));
            }
            counts
        };
        let suffices = |pipeline: &mut Self, counts: BTreeMap<Site, usize>| {
            let mut units = pipeline.learner.model.units().clone();
            units.remove(&pipeline.select(scores, counts)?)?;
            // Sums of prices are rounded.
            Ok::<bool, Error>(prices.total(&units) <= goal * (1.0 + 1e-12))
        };
        let first = lowest(0..order.len(), |first| suffices(self, counts(first)))?;
        let mut chosen = counts(first);
        // The last to go may have been dear: what is left over brings cheaper ones back.
        for site in kinds.iter().filter(|_| kinds.is_mixed()) {
            let with = |count| {
                let mut counts = chosen.clone();
                counts.insert(site, count);
                counts
            };
            let fewest = lowest(0..chosen[&site], |count| suffices(self, with(count)))?;
            chosen.insert(site, fewest);
        }
        self.select(scores, chosen)
    }

    /// Says by how much the model misses `goal`: a later cycle may find too few units left, and whole units may
    /// leave something over.
    pub(super) fn unmet_cost(
        &self,
        CostGoals { start, pruned: goal, .. }: CostGoals,
    ) -> Result<Option<String>> {
        let total = self.plan.prices(&self.learner.model)?.total(self.learner.model.units());
        let prune = &self.plan.config.prune;
        let name = prune.budget.name();
        let number = |cost: f64| if cost < 100.0 { format!("{cost:.6}") } else { format!("{cost:.0}") };
        let (has, may) = (number(total), number(goal));
        let message = if total > goal * (1.0 + 1e-9) {
            format!(
                "{name}: {has}, not the {may} asked for: min_heads {} and units {} allow no less",
                prune.min_heads, prune.units
            )
        } else if start > goal && total < goal * (1.0 - 1e-3) {
            let whole = match prune.shape == Shape::Uniform && !self.plan.takes_layers() {
                true => "widths are whole steps",
                false => "units go whole",
            };
            format!("{name}: {has}, where {may} may stay: {whole}")
        } else {
            return Ok(None);
        };
        Ok(Some(message))
    }

    /// Says that the model is above the target, as it is where the last cycle was rolled back.
    pub(super) fn above_target(&self) -> Result<Option<String>> {
        let Some(target) = self.plan.config.prune.target else { return Ok(None) };
        let (model, prices) = (&self.learner.model, self.plan.prices(&self.learner.model)?);
        let (total, whole) = (prices.total(model.units()), prices.total(&model.spec().full_units()));
        let above = total > target.amount_of(whole) * (1.0 + 1e-9);
        Ok(above.then(|| format!("the result has more than the target {target}: {total}")))
    }

    /// What goes in one of a cycle's steps; nothing where none is due.
    pub(super) fn prune_step(&mut self, step: PruneStep<'_>) -> Result<Option<Chosen>> {
        let PruneStep { cycle, number, of, budget, goals, parent } = step;
        let there = self.learner.model.units();
        // What an earlier step could not take is asked of the next.
        let share = |(site, count): (&Site, &usize)| {
            let gone = parent.units().count(site.counted()) - there.count(site.counted());
            (*site, (count * number / of).saturating_sub(gone))
        };
        let counts: BTreeMap<Site, usize> = budget.iter().map(share).collect();
        let share: usize = counts.values().sum();
        let left =
            goals.map(|CostGoals { start, pruned, .. }| start - (start - pruned) * number as f64 / of as f64);
        let is_due = match left {
            None => share > 0,
            Some(left) => self.plan.prices(&self.learner.model)?.total(there) > left * (1.0 + 1e-12),
        };
        if number < of && !is_due {
            return Ok(None);
        }
        let scores = self.score(cycle)?;
        trim_buffers();
        let amount = left.map_or(Amount::Units(counts), Amount::Left);
        let selection = self.choose(&scores, amount)?;
        let share = if goals.is_none() { share } else { selection.values().map(Vec::len).sum() };
        Ok(Some(Chosen { scores, share, selection }))
    }

    /// What goes, in the shape that the plan has.
    pub(super) fn choose(&mut self, scores: &Scores, amount: Amount) -> Result<Selection> {
        if self.plan.config.prune.shape == Shape::Uniform && !self.plan.takes_layers() {
            let model = &self.learner.model;
            let widths = self.plan.widths(model)?;
            let width = match amount {
                Amount::Units(counts) => widths.within_counts(model.units(), &counts),
                Amount::Left(goal) => {
                    let prices = self.plan.prices(model)?;
                    widths.within_cost(model.units(), scores, goal, |units| prices.total(units))?
                }
            };
            return Ok(widths.choose(model.units(), scores, width));
        }
        match amount {
            Amount::Units(counts) => self.select(scores, counts),
            Amount::Left(goal) => self.select_by_cost(scores, goal),
        }
    }

    /// What the strategy takes of a budget of so many units.
    fn select(&mut self, scores: &Scores, counts: BTreeMap<Site, usize>) -> Result<Selection> {
        let budget = self.plan.budget(counts);
        let priced =
            self.plan.config.prune.budget != Currency::Units && self.plan.config.prune.units.is_mixed();
        let view = PruneView { model: &self.learner.model, importances: scores, priced, budget: &budget };
        let selection = self.strategy.select_units_to_prune(&view)?;
        check_kept(self.learner.model.units(), &selection, &budget)?;
        Ok(selection)
    }
}

/// How many units of each kind a cycle prunes.
pub(super) fn to_prune(counts: &BTreeMap<Site, CycleCounts>) -> BTreeMap<Site, usize> {
    counts.iter().map(|(site, counts)| (*site, counts.prune)).collect()
}

/// Scores divided by what a unit of their place costs. Nothing is gained where that is nothing: such units go last.
fn per_price(scores: &Scores, prices: &BTreeMap<LayerSite, f64>) -> Scores {
    let mut scores = scores.clone();
    for (place, &price) in prices {
        let own = scores.at_mut(*place).iter_mut();
        own.for_each(|score| *score = if price > 0.0 { *score / price } else { f64::INFINITY });
    }
    scores
}

/// The lowest number for which something holds that holds for all above it, the range's end included.
fn lowest(range: Range<usize>, mut holds: impl FnMut(usize) -> Result<bool>) -> Result<usize> {
    let Range { start: mut low, end: mut high } = range;
    while low < high {
        let middle = usize::midpoint(low, high);
        if holds(middle)? { high = middle } else { low = middle + 1 }
    }
    Ok(low)
}
