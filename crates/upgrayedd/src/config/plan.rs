//! From what a user asked to what a run does.

use std::collections::BTreeMap;

use super::derived::{distill_share, fit_memory, locate, train_options, usual_scope, work_of};
use super::optimize::OptimizeConfig;
use crate::budget::{self, Budget, CycleCounts, Schedule, Scope, Shape};
use crate::data::{DataOptions, Part, RunData, check_length};
use crate::eval::EvalOptions;
use crate::export::why_not_heads;
use crate::memory::Work;
use crate::model::{Companions, Model};
use crate::price::{Currency, Prices};
use crate::reduce::{Reduce, of_first};
use crate::score::ScoreContext;
use crate::strategy::Strategy;
use crate::timings::{Timings, time_layers};
use crate::train::TrainOptions;
use crate::uniform::Widths;
use crate::units::{LayerUnits, Scores, Site, Sites, UnitMap};
use crate::{Error, Result};

/// What a run does: what was asked for with everything that follows from the model, the strategy and the
/// machine, checked. It does not change any more; `run.toml` has it as a configuration that makes it again.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) config: OptimizeConfig,
    /// Where units compete.
    pub scope: Scope,
    /// Parts in which a cycle prunes.
    pub pruning_steps: usize,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// How a cycle learns.
    pub train: TrainOptions,
    /// Share of the loss that the teacher's predictions have.
    pub distill: f64,
    /// For a budget in latency.
    pub timings: Option<Timings>,
}

/// Costs that a cycle aims at, in the currency of its budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CostGoals {
    /// What the model costs that it starts with.
    pub(crate) start: f64,
    /// At most, after pruning.
    pub(crate) pruned: f64,
    /// At most, after growth.
    pub(crate) grown: f64,
    /// Whether enough can go that growth ends at the goal; if not, pruning stops at the goal.
    pub(crate) growth_fits: bool,
}

impl Plan {
    /// Completes and checks what was asked for. `own_strategy`: the strategy is none of ours. `timings` are
    /// measured or read if a budget in latency needs them and there are none; the processes of `reduce` go by the same.
    ///
    /// # Errors
    /// Returns what [`OptimizeConfig::check`] returns, and [`Error::DoesNotFit`] for options that do not go
    /// with the model, with the strategy or with each other. For a budget in latency, [`Error::File`] or
    /// [`Error::Io`] if the file of timings cannot be used, [`Error::DoesNotFit`] if the timings are not the
    /// model's, [`Error::Interrupted`] if measuring is stopped, and what `reduce` returns.
    pub fn new(
        mut config: OptimizeConfig,
        model: &Model,
        strategy: &dyn Strategy,
        own_strategy: bool,
        timings: Option<Timings>,
        reduce: &dyn Reduce,
    ) -> Result<Self> {
        config.check()?;
        config.prune.strategy = strategy.name().to_owned();
        locate(&mut config, model);
        let sequence_length = config.data.length_for(model);
        let distill = distill_share(&config, model)?;
        let learning_rate = config.learn.learning_rate.unwrap_or(match model.companions {
            // The built-in model is far smaller than what users bring.
            Companions::Memory(_) => 1e-3,
            _ => 5e-5,
        });
        let mut plan = Self {
            scope: config.prune.scope.unwrap_or_else(|| usual_scope(&config, model, strategy)),
            pruning_steps: config
                .prune
                .pruning_steps
                .unwrap_or_else(|| strategy.pruning_steps(config.prune.units)),
            sequence_length,
            train: train_options(&config, learning_rate),
            distill,
            timings: None,
            config,
        };
        if let Some(target) = plan.config.prune.target {
            (plan.config.prune.budget, plan.config.prune.schedule) = (target.currency, Schedule::Target);
        }
        if own_strategy {
            plan.check_own_strategy()?;
        }
        plan.check_units(strategy)?;
        check_length(model, sequence_length)?;
        let timed = timings.is_some() || plan.config.prune.timings.is_some();
        fit_memory(&mut plan.config, model, sequence_length, timed)?;
        plan.check_heads(model)?;
        plan.check_shape(model, own_strategy)?;
        plan.timings = plan.find_timings(model, timings, reduce)?;
        plan.resolve_target(model)?;
        plan.check_target(model)?;
        plan.check_reachable(model)?;
        Ok(plan)
    }

    /// The configuration that makes this plan again.
    pub fn config(&self) -> OptimizeConfig {
        let mut config = self.config.clone();
        config.prune.scope = Some(self.scope);
        config.prune.pruning_steps = Some(self.pruning_steps);
        config.data.sequence_length = Some(self.sequence_length);
        config.learn.learning_rate = Some(self.train.learning_rate);
        if config.learn.distill.is_some() || self.distill > 0.0 {
            config.learn.distill = Some(self.distill);
        }
        config
    }

    /// What the run does to a model, by which goes what it holds in memory.
    pub(crate) fn work(&self) -> Work {
        work_of(&self.config, self.sequence_length)
    }

    fn check_own_strategy(&self) -> Result<()> {
        if self.pruning_steps != 1 {
            return Err(Error::does_not_fit(
                "pruning_steps needs a built-in strategy: one of the caller's own decides about a whole cycle at once",
            ));
        }
        if let Some(site) = self.config.prune.units.blocks().next() {
            return Err(Error::does_not_fit(format!(
                "units {} needs a built-in strategy: one of the caller's own decides about heads and channels",
                site.name()
            )));
        }
        let budget = self.config.prune.budget;
        if budget != Currency::Units {
            return Err(Error::does_not_fit(format!(
                "a budget in {} needs a built-in strategy: one of the caller's own decides how much goes",
                budget.name()
            )));
        }
        Ok(())
    }

    fn check_units(&self, strategy: &dyn Strategy) -> Result<()> {
        let (units, known) = (self.config.prune.units.counted(), strategy.units());
        let knows = |site: Site| {
            known.contains(site)
                || Sites::of(site).leaves().iter().all(|leaf| known.contains(leaf) && site.is_block())
        };
        let all = self.config.prune.units;
        let overlap = |site: &Site| {
            let others = all.iter().filter(|other| other != site && other.is_block());
            others.flat_map(Site::leaves).any(|leaf| site.leaves().contains(leaf))
        };
        if let Some(site) = all.iter().find(overlap).filter(|_| self.config.prune.budget == Currency::Units) {
            return Err(Error::does_not_fit(format!(
                "units {all}: {} are parts of others that go whole, so that no share of each can be told: use a budget in parameters, macs, bytes or latency",
                site.name()
            )));
        }
        if let Some(site) = units.iter().find(|site| !knows(*site)) {
            return Err(Error::does_not_fit(format!(
                "strategy {} prunes {known}, not {}: use another strategy, or units {known}",
                strategy.name(),
                site.name()
            )));
        }
        Ok(())
    }

    fn check_heads(&self, model: &Model) -> Result<()> {
        let prune = &self.config.prune;
        if let Some(why) = model.spec().why_heads_stay().filter(|_| prune.units.leaves().contains(Site::Head))
        {
            return Err(Error::unsupported(format!(
                "heads of a {} model cannot be pruned: {why}",
                model.family().model_type
            )));
        }
        let attentions =
            model.units().layers().iter().enumerate().filter(|(_, l)| l.count(Site::Attention) > 0);
        for (layer, heads) in attentions {
            if prune.min_heads > heads.active().len() && prune.units.leaves().contains(Site::Head) {
                return Err(Error::does_not_fit(format!(
                    "min_heads is {}, but layer {layer} has {} heads: expected at most that",
                    prune.min_heads,
                    heads.active().len()
                )));
            }
        }
        let group = |layer: &LayerUnits| layer.total() / layer.kv_total();
        let alike = model.units().layers().windows(2).all(|pair| group(&pair[0]) == group(&pair[1]));
        if prune.units.contains(Site::KvGroup) && !alike {
            return Err(Error::does_not_fit(
                "units kv-groups needs layers whose key/value heads have as many readers each: use heads",
            ));
        }
        Ok(())
    }

    fn check_shape(&self, model: &Model, own_strategy: bool) -> Result<()> {
        let prune = &self.config.prune;
        if prune.shape == Shape::Free {
            return Ok(());
        }
        if own_strategy {
            return Err(Error::does_not_fit(
                "shape uniform needs a built-in strategy: one of the caller's own decides what goes",
            ));
        }
        if self.config.grow.growth_ratio > 0.0 {
            return Err(Error::does_not_fit(
                "shape uniform grows nothing back, which would make layers differ: set growth_ratio to 0",
            ));
        }
        if prune.units.blocks().next().is_some() && !self.takes_layers() {
            return Err(Error::does_not_fit(format!(
                "shape uniform takes heads and channels, or whole layers alone, not units {}",
                prune.units
            )));
        }
        let widths = self.widths(model)?;
        let asked = prune.target.is_some() || prune.pruning_ratio > 0.0;
        if asked && !self.takes_layers() && !widths.can_be_less() {
            let heads = model.units().layers().first().map_or(0, |layer| layer.count(Site::Head));
            let why = (1..heads).rev().find_map(|heads| why_not_heads(model, heads));
            let why = why.filter(|_| prune.units.leaves().contains(Site::Head));
            return Err(Error::does_not_fit(format!(
                "shape uniform finds nothing to take of units {}: {}",
                prune.units,
                why.unwrap_or_else(|| "min_heads and multiple allow no other width".to_owned())
            )));
        }
        Ok(())
    }

    /// Whether layers go whole and nothing else does: those that are left are alike, whichever go.
    pub(crate) fn takes_layers(&self) -> bool {
        self.config.prune.units == Sites::of(Site::Layer)
    }

    /// What the layers may be cut to, with shape uniform.
    pub(crate) fn widths(&self, model: &Model) -> Result<Widths> {
        let prune = &self.config.prune;
        let may_have = |heads| heads >= prune.min_heads && why_not_heads(model, heads).is_none();
        Widths::of(model.units(), prune.units, may_have, prune.multiple)
    }

    /// Makes of a target the share of the unpruned model that goes.
    fn resolve_target(&mut self, model: &Model) -> Result<()> {
        let Some(target) = self.config.prune.target else { return Ok(()) };
        let all = self.prices(model)?.total(&model.spec().full_units());
        if all <= 0.0 {
            let name = target.currency.name();
            return Err(Error::does_not_fit(format!("target {target}: the model has no {name}")));
        }
        let amount = target.amount_of(all);
        if amount > all {
            return Err(Error::does_not_fit(format!(
                "target {target} is more than the {all} that the unpruned model has: expected less"
            )));
        }
        let ratio = 1.0 - amount / all;
        if ratio >= 1.0 {
            return Err(Error::does_not_fit(format!("target {target} leaves nothing of the model's {all}")));
        }
        self.config.prune.pruning_ratio = ratio;
        Ok(())
    }

    /// Refuses a share of the units that `min_heads` keeps.
    fn check_target(&self, model: &Model) -> Result<()> {
        let prune = &self.config.prune;
        if prune.schedule == Schedule::Target && prune.budget == Currency::Units {
            for site in prune.units.iter() {
                let (total, there) =
                    (model.units().total_of(site.counted()), model.units().count(site.counted()));
                let goal = budget::portion(prune.pruning_ratio, total);
                let most = total - there + budget::prunable(model.units(), site, prune.min_heads);
                if goal > most {
                    return Err(Error::does_not_fit(format!(
                        "pruning_ratio {} asks for {goal} of {total} {}, but min_heads {} lets only {most} go",
                        prune.pruning_ratio,
                        site.counted().name(),
                        prune.min_heads
                    )));
                }
            }
        }
        Ok(())
    }

    /// The times that a budget in latency goes by: those there are, those of a file, or those of this
    /// machine.
    fn find_timings(
        &self,
        model: &Model,
        given: Option<Timings>,
        reduce: &dyn Reduce,
    ) -> Result<Option<Timings>> {
        let prune = &self.config.prune;
        let timings = match (given, &prune.timings) {
            (Some(given), _) => Some(given),
            (None, Some(file)) => Some(Timings::read(file)?),
            (None, None) if prune.budget == Currency::Latency => {
                let (batch, length) = (self.config.learn.batch_size, self.sequence_length);
                Some(of_first(reduce, || time_layers(model, batch, length))?)
            }
            (None, None) => None,
        };
        if let Some(timings) = &timings {
            timings.by_layer(model)?;
        }
        Ok(timings)
    }

    /// Refuses a share of the model that all the units together are not.
    fn check_reachable(&self, model: &Model) -> Result<()> {
        let prune = &self.config.prune;
        if prune.budget == Currency::Units {
            return Ok(());
        }
        let prices = self.prices(model)?;
        let least = self.least(model)?;
        // Shares are of what is there, or of the unpruned model.
        let all = match prune.schedule {
            Schedule::PerCycle => prices.total(model.units()),
            Schedule::Target => prices.total(&model.spec().full_units()),
        };
        if all <= 0.0 {
            let name = prune.budget.name();
            return Err(Error::does_not_fit(format!("the model has no {name}: use another budget")));
        }
        let possible = 1.0 - prices.total(&least) / all;
        if prune.pruning_ratio > possible {
            let asked = prune
                .target
                .map_or(format!("pruning_ratio {}", prune.pruning_ratio), |t| format!("target {t}"));
            return Err(Error::does_not_fit(format!(
                "{asked} of the model's {} asks for more than its {} are: without all but min_heads {} a layer there would be {possible:.3} less",
                prune.budget.name(),
                prune.units.counted(),
                prune.min_heads
            )));
        }
        Ok(())
    }

    /// What a cycle that starts with `model` aims at, where the budget is a cost; `None` where units are counted.
    pub(crate) fn cost_goals(&self, model: &Model, cycle: usize) -> Result<Option<CostGoals>> {
        let OptimizeConfig { prune, grow, run, .. } = &self.config;
        if prune.budget == Currency::Units {
            return Ok(None);
        }
        let prices = self.prices(model)?;
        let (start, back) = (prices.total(model.units()), grow.growth_ratio);
        let mut whole = model.units().clone();
        let mut archived = model.archive().selection();
        archived.retain(|place, _| prune.units.leaves().contains(place.site));
        whole.insert(&archived)?;
        let whole = prices.total(&whole);
        let grown_from = |pruned: f64| pruned + back * (whole - pruned);
        if prune.schedule == Schedule::PerCycle {
            let pruned = start * (1.0 - prune.pruning_ratio);
            return Ok(Some(CostGoals { start, pruned, grown: grown_from(pruned), growth_fits: true }));
        }
        let end = prices.total(&model.spec().full_units()) * (1.0 - prune.pruning_ratio);
        // An equal part of what is left to do; the last cycle does all of it.
        let grown = start + (end - start) / (run.num_cycles + 1 - cycle) as f64;
        let peak = (grown - back * whole) / (1.0 - back);
        let least = prices.total(&self.least(model)?);
        let growth_fits = back < 1.0 && peak >= least;
        let pruned = if growth_fits { peak } else { grown };
        Ok(Some(CostGoals { start, pruned: pruned.min(start), grown, growth_fits }))
    }

    /// What is left where all goes that may go.
    fn least(&self, model: &Model) -> Result<UnitMap> {
        let all = Scores::zeros(model.units(), self.config.prune.units.counted());
        let budget = Budget { scope: Scope::Global, ..self.budget(self.prunable(model)) };
        let mut least = model.units().clone();
        least.remove(&budget::choose(model.units(), &all, &budget))?;
        Ok(least)
    }

    /// So many units of each kind, where and as the plan has them go.
    pub(crate) fn budget(&self, counts: BTreeMap<Site, usize>) -> Budget {
        Budget { counts, scope: self.scope, min_heads: self.config.prune.min_heads }
    }

    /// Units of each kind that may go at most.
    pub(crate) fn prunable(&self, model: &Model) -> BTreeMap<Site, usize> {
        let prune = &self.config.prune;
        let most = |site| (site, budget::prunable(model.units(), site, prune.min_heads));
        prune.units.iter().map(most).collect()
    }

    /// Prices in the currency of the budget, for the units that `model` has now.
    pub(crate) fn prices<'m>(&self, model: &'m Model) -> Result<Prices<'m>> {
        Prices::new(model, self.config.prune.budget, self.sequence_length, self.timings.as_ref())
    }

    /// How many units of each kind go in a cycle, and how many are to be gone after growth.
    pub(crate) fn cycle_counts(&self, model: &Model, cycle: usize) -> BTreeMap<Site, CycleCounts> {
        let OptimizeConfig { prune, grow, run, .. } = &self.config;
        let (ratios, cycles) = ((prune.pruning_ratio, grow.growth_ratio), (cycle, run.num_cycles));
        let counts = |(site, most)| {
            (site, budget::cycle_counts(prune.schedule, model.units(), site, ratios, cycles, most))
        };
        self.prunable(model).into_iter().map(counts).collect()
    }

    /// A number that differs from cycle to cycle and depends on nothing but seed and cycle.
    pub(crate) fn cycle_seed(&self, cycle: usize) -> u64 {
        let seed = self.config.prune.strategy_seed.unwrap_or(self.config.run.seed);
        seed.wrapping_add((cycle as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub(crate) fn data_options(&self) -> DataOptions {
        DataOptions {
            sequence_length: self.sequence_length,
            read: self.config.read.clone(),
            seed: self.config.run.seed,
        }
    }

    pub(crate) fn eval_options<'a>(&self, reduce: &'a dyn Reduce) -> EvalOptions<'a> {
        EvalOptions {
            batch_size: self.config.learn.batch_size,
            max_windows: self.config.measure.max_eval_windows,
            window: self.sequence_length,
            reduce,
        }
    }

    /// Scoring of `model` on what is set aside for it.
    pub(crate) fn score_context<'a>(
        &self,
        model: &'a Model,
        data: &'a RunData,
        cycle: usize,
        reduce: &'a dyn Reduce,
    ) -> ScoreContext<'a> {
        let Part { data, range } = &data.calibration;
        ScoreContext {
            model,
            units: self.config.prune.units.counted(),
            data: Some((data, range)),
            batch_size: self.config.learn.batch_size,
            samples: range.len(),
            seed: self.cycle_seed(cycle),
            gradient_checkpointing: self.train.gradient_checkpointing,
            reduce,
        }
    }
}
