//! Which heads go: the strategy's choice for a number of heads or a share of a cost, step by step.

use upgrayedd_nn::trim_buffers;

use super::state::Pipeline;
use crate::budget;
use crate::model::Model;
use crate::price::Currency;
use crate::strategy::PruneView;
use crate::units::{Scores, Selection};
use crate::{Result, surgery};

/// A step of a cycle that prunes in steps.
pub(super) struct PruneStep<'a> {
    pub(super) cycle: usize,
    /// From 1.
    pub(super) number: usize,
    pub(super) of: usize,
    /// Heads of the whole cycle.
    pub(super) budget: usize,
    /// Heads that have gone in this cycle.
    pub(super) before: usize,
    /// The model that the cycle started with.
    pub(super) parent: &'a Model,
}

/// What goes in a step.
pub(super) struct Chosen {
    pub(super) scores: Scores,
    /// How many heads the budget asked for.
    pub(super) share: usize,
    pub(super) selection: Selection,
}

impl Pipeline {
    /// The heads that the first cycle would prune, without changing anything.
    ///
    /// # Errors
    /// Returns [`crate::Error::NotFinite`] if a score is not finite, [`crate::Error::DoesNotFit`] if the
    /// scores are not those of the model's heads, [`crate::Error::Interrupted`] if the work is stopped, what
    /// the strategy returns, and what [`UnitMap::remove`](crate::units::UnitMap::remove) returns for the
    /// heads that it names.
    pub fn preview(&mut self) -> Result<Selection> {
        let parent = self.learner.model.clone();
        let result = self.preview_from(&parent);
        self.learner.model = parent;
        result
    }

    fn preview_from(&mut self, parent: &Model) -> Result<Selection> {
        let (budget, of) = (self.plan.cycle_counts(&self.learner.model, 1).prune, self.plan.pruning_steps);
        let mut gone = Selection::new();
        for number in 1..=of {
            let before = gone.values().map(Vec::len).sum();
            let Some(chosen) = self.prune_step(PruneStep { cycle: 1, number, of, budget, before, parent })?
            else {
                continue;
            };
            surgery::remove(&mut self.learner.model, None, &chosen.selection, 1, None)?;
            for (place, heads) in chosen.selection {
                gone.entry(place).or_default().extend(heads);
            }
            if number < of {
                self.refit(parent, 0)?;
            }
        }
        gone.values_mut().for_each(|heads| heads.sort_unstable());
        Ok(gone)
    }

    /// The heads that go such that `share` of the cost of `start` is gone: as few as the strategy's order
    /// allows.
    pub(super) fn select_by_cost(&mut self, scores: &Scores, start: &Model, share: f64) -> Result<Selection> {
        let prices = self.plan.prices(start)?;
        let goal = prices.total(start.units()) * (1.0 - share);
        let most = self.prunable();
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = usize::midpoint(low, high);
            let mut heads = self.learner.model.units().clone();
            heads.remove(&self.select(scores, middle)?, 1)?;
            // Sums of prices are rounded.
            if prices.total(&heads) <= goal * (1.0 + 1e-12) { high = middle } else { low = middle + 1 }
        }
        self.select(scores, low)
    }

    /// Says by how much less than `share` of the cost of `start` is gone: a later cycle may find too few
    /// heads left.
    pub(super) fn unmet_cost(&self, start: &Model, share: f64) -> Result<Option<String>> {
        let prices = self.plan.prices(start)?;
        let gone = 1.0 - prices.total(self.learner.model.units()) / prices.total(start.units());
        let name = self.plan.config.prune.budget.name();
        let message = format!(
            "{:.1} % of the {name} pruned, not the {:.1} % asked for: min_heads {} and units {} allow no more",
            100.0 * gone,
            100.0 * share,
            self.plan.config.prune.min_heads,
            self.plan.config.prune.units.name()
        );
        Ok((gone < share * (1.0 - 1e-9)).then_some(message))
    }

    /// What goes in one of a cycle's steps, `before` heads having gone in those before it; nothing where none
    /// is due.
    pub(super) fn prune_step(&mut self, step: PruneStep<'_>) -> Result<Option<Chosen>> {
        let PruneStep { cycle, number, of, budget, before, parent } = step;
        let by_heads = self.plan.config.prune.budget == Currency::Heads;
        // What an earlier step could not take is asked of the next.
        let share = (budget * number / of).saturating_sub(before);
        if by_heads && share == 0 && number < of {
            return Ok(None);
        }
        let scores = self.score(cycle)?;
        trim_buffers();
        let selection = if by_heads {
            self.select(&scores, share)?
        } else {
            self.select_by_cost(
                &scores,
                parent,
                self.plan.config.prune.pruning_ratio * number as f64 / of as f64,
            )?
        };
        let share = if by_heads { share } else { selection.values().map(Vec::len).sum() };
        Ok(Some(Chosen { scores, share, selection }))
    }

    /// What the strategy takes of a budget of `heads`.
    pub(super) fn select(&mut self, scores: &Scores, heads: usize) -> Result<Selection> {
        let budget = self.plan.budget(heads);
        let view = PruneView { model: &self.learner.model, importances: scores, budget };
        let selection = self.strategy.select_heads_to_prune(&view)?;
        self.learner.model.units().clone().remove(&selection, budget.min_heads)?;
        Ok(selection)
    }

    /// Heads that may go at most.
    pub(super) fn prunable(&self) -> usize {
        let prune = &self.plan.config.prune;
        budget::prunable(self.learner.model.units(), prune.units, prune.min_heads)
    }
}
