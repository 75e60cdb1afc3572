//! A run under way: the cycle, step by step.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::select::{Chosen, PruneStep, to_prune};
use super::state::{Learning, Pipeline, Run};
use crate::config::CostGoals;
use crate::event::{Control, Event, Phase, Progress, SCHEMA, named_scores, named_units};
use crate::learner::Learner;
use crate::model::Model;
use crate::record::{CycleRecord, Evaluation, LayerStart};
use crate::reduce::check_alike;
use crate::spec::Objective;
use crate::train::Place;
use crate::units::{LayerSite, LayerUnits, Scores, Selection, Site};
use crate::weights::Writer;
use crate::{Error, Result, checkpoint};

/// Nats by which pruning may raise the held-out loss before the user is told.
const DAMAGE: f64 = 0.5;
/// The strategy that the measurements speak for.
const RECOMMENDED: &str = "auto";

impl Run<'_> {
    pub(super) fn begin(&mut self) -> Result<()> {
        let (model, split) = (&self.pipeline.learner.model, &self.pipeline.data.split);
        let units = model.units();
        let lost = |site: Site| {
            let back: usize = model.archive().restorable(units, site).iter().sum();
            units.total_of(site) - units.count(site) - back
        };
        let lost = [(Site::Head, lost(Site::Head)), (Site::Channel, lost(Site::Channel))];
        let (wanted, calibration) = (self.pipeline.strategy.calibration_samples(), split.calibration.len());
        let evaluation = self.journal.state.baseline.clone();
        self.journal.emit(Event::RunStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            schema: SCHEMA,
            family: model.family().model_type.to_owned(),
            parameters: model.num_parameters(),
            heads: units.num_active(),
            channels: self.pipeline.channels(),
            layers: layers_of(model),
            sequences: [split.train.len(), calibration, split.held_out.len()],
            steps_per_cycle: self.pipeline.steps_per_cycle(),
            gpu: self.pipeline.record.gpu.clone(),
        })?;
        self.journal.emit(Event::Evaluated { cycle: 0, phase: Phase::Baseline, evaluation })?;
        for message in self.pipeline.record.notices.clone() {
            self.journal.emit(Event::Notice { cycle: 0, message })?;
        }
        for (site, lost) in lost.into_iter().filter(|(_, lost)| *lost > 0) {
            let message = format!(
                "{lost} {} were pruned before this run and are in no archive: they cannot grow back",
                site.name()
            );
            self.journal.emit(Event::Notice { cycle: 0, message })?;
        }
        if self.pipeline.plan.config.refit.refit && calibration < 2 {
            let message =
                "no refit: it needs at least 2 calibration sequences, one to fit on and one to judge by"
                    .to_owned();
            self.journal.emit(Event::Notice { cycle: 0, message })?;
        }
        if let Some(wanted) = wanted.filter(|w| *w > calibration) {
            let message = format!(
                "scoring uses {calibration} sequences, a tenth of the data, not the {wanted} that were asked for"
            );
            self.journal.emit(Event::Notice { cycle: 0, message })?;
        }
        Ok(())
    }

    pub(super) fn cycles(&mut self) -> Result<()> {
        while self.journal.state.cycle < self.pipeline.plan.config.run.num_cycles
            && !self.journal.state.ending
        {
            let cycle = self.journal.state.cycle + 1;
            match self.cycle(cycle) {
                Ok(()) => {}
                Err(error) => {
                    if matches!(error, Error::Interrupted | Error::Caller(_)) {
                        self.save_progress()?;
                    }
                    return Err(error);
                }
            }
            self.save_cycle()?;
            // Not written: the checkpoint says how far the events go.
            self.journal.observer.on_event(&Event::Saved { cycle });
            match self.journal.control()? {
                Control::Continue => {}
                // A run that goes on from here must know it too.
                Control::Finish if !self.journal.state.ending => {
                    self.journal.state.ending = true;
                    self.journal.dir.forget_checkpoint(&checkpoint::name(cycle, None))?;
                    self.save_cycle()?;
                }
                Control::Finish => {}
                Control::Interrupt => return Err(Error::Interrupted),
            }
        }
        Ok(())
    }

    fn cycle(&mut self, cycle: usize) -> Result<()> {
        if self.journal.state.learning.is_none() {
            (self.start, self.journal.best) = (self.keep_for_roll_back(), None);
        }
        let loss_learned = match self.change(cycle) {
            Ok(evaluation) => Some(evaluation.loss),
            // A cycle that diverged is rolled back like any other that lost too much; the next one has the
            // data in another order. If nothing had changed yet, it would come to the same.
            Err(Error::NotFinite(message)) if self.has_changed() => {
                self.journal.state.place.epoch += 1;
                self.journal.emit(Event::Notice { cycle, message })?;
                None
            }
            Err(error) => return Err(error),
        };
        let accepted = self.accept(cycle, loss_learned)?;
        // There is none if pruning has left numbers that are not finite.
        let learning = self.journal.state.learning.take();
        let loss_pruned = learning.as_ref().map(|learning| learning.loss_pruned);
        let Learning { pruned, grown, tokens_before, .. } = learning
            .unwrap_or_else(|| Learning { tokens_before: self.journal.state.tokens, ..Learning::default() });
        if !accepted {
            self.journal.state.tokens = tokens_before;
        }
        let active = self.pipeline.learner.model.units().num_active();
        self.journal.state.history.push(CycleRecord {
            cycle,
            pruned,
            grown,
            active,
            loss_pruned,
            loss_learned,
            accepted,
        });
        self.journal.state.cycle = cycle;
        Ok(())
    }

    /// Whether there is something to roll back.
    fn has_changed(&self) -> bool {
        let state = self.pipeline.learner.model.state_id();
        self.start
            .as_ref()
            .is_some_and(|start| self.journal.state.learning.is_some() || start.model.state_id() != state)
    }

    /// What changes the model in a cycle, or what is left to do of it.
    fn change(&mut self, cycle: usize) -> Result<Evaluation> {
        if self.journal.state.learning.is_none() {
            self.settle_units(cycle)?;
        }
        self.learn(cycle)?;
        self.measure(cycle, Phase::Learned)
    }

    /// Prunes and grows: all of a cycle but learning.
    fn settle_units(&mut self, cycle: usize) -> Result<()> {
        let parent = self.pipeline.learner.model.clone();
        let counts = self.pipeline.plan.cycle_counts(&parent, cycle);
        let goals = self.pipeline.plan.cost_goals(&parent, cycle)?;
        let ratio = self.pipeline.plan.config.grow.growth_ratio;
        if goals.is_some_and(|goals| !goals.growth_fits) {
            let message = format!(
                "growth_ratio {ratio} cannot be had: to end at the target after growth, more than may go would have to go \
                 first; none go beyond it in this cycle"
            );
            self.journal.emit(Event::Notice { cycle, message })?;
        }
        for (site, counts) in counts.iter().filter(|_| goals.is_none()) {
            let (Some(goal), false) = (counts.goal, counts.growth_fits) else { continue };
            let name = site.counted().name();
            let message = format!(
                "growth_ratio {ratio} cannot be had: for {goal} {name} to be gone after growth, more than may go would have to go first; \
                 none go beyond those in this cycle"
            );
            self.journal.emit(Event::Notice { cycle, message })?;
        }
        let (pruned, kept) = self.prune(cycle, &to_prune(&counts), goals, &parent)?;
        let after_pruning = self.measure(cycle, Phase::Pruned)?;
        self.warn_of_damage(cycle, after_pruning.loss - self.journal.state.loss)?;
        let (grown, growing) = self.grow(cycle, &kept, (&counts, goals), &after_pruning, &parent)?;
        let count = |units: &Selection| units.values().map(Vec::len).sum();
        self.journal.state.learning = Some(Learning {
            growing: named_units(&self.pipeline.learner.model, &growing),
            pruned: count(&pruned),
            grown: count(&grown),
            loss_pruned: after_pruning.loss,
            tokens_before: self.journal.state.tokens,
            ..Learning::default()
        });
        self.journal.state.place = Place { epoch: self.journal.state.place.epoch, ..Place::default() };
        Ok(())
    }

    /// Tensors share memory until they are changed, so this costs nothing until the cycle learns.
    fn keep_for_roll_back(&self) -> Option<Learner> {
        self.pipeline.plan.config.measure.max_loss_increase.map(|_| self.pipeline.learner.clone())
    }

    pub(super) fn task(&self, cycle: usize, what: &str) -> String {
        format!("cycle {cycle} of {}: {what}", self.pipeline.plan.config.run.num_cycles)
    }

    /// Prunes in steps, each scored anew and repaired; returns what went and the scores of the units that are
    /// left.
    fn prune(
        &mut self,
        cycle: usize,
        budget: &BTreeMap<Site, usize>,
        goals: Option<CostGoals>,
        parent: &Model,
    ) -> Result<(Selection, Scores)> {
        let of = self.pipeline.plan.pruning_steps;
        let task = self.task(cycle, "score");
        let all = self.pipeline.plan.config.refit.refit_samples;
        let mut pruned = Selection::new();
        let mut kept = Scores::default();
        for number in 1..=of {
            self.journal.observer.on_progress(Progress { task: &task, done: 0, total: 1 });
            let step = PruneStep { cycle, number, of, budget, goals, parent };
            let chosen = self.pipeline.prune_step(step)?;
            self.check_chosen(chosen.as_ref().map(|chosen| &chosen.selection))?;
            let Some(Chosen { scores, share, selection }) = chosen else { continue };
            self.journal.observer.on_progress(Progress { task: &task, done: 1, total: 1 });
            let shown = self.pipeline.strategy.shown(&scores);
            let higher_keeps = !shown.values().zip(scores.values()).any(|(shown, score)| shown * score < 0.0);
            let importances = named_scores(&self.pipeline.learner.model, &shown);
            let strategy = self.pipeline.strategy.name().to_owned();
            self.journal.emit(Event::Scored { cycle, strategy, higher_keeps, importances })?;
            let learner = &mut self.pipeline.learner;
            let units = named_units(&learner.model, &selection);
            learner.remove(&selection, cycle, Some(&scores))?;
            kept = remaining(&learner.model, &scores, &selection);
            let (active, channels) = (learner.model.units().num_active(), self.pipeline.channels());
            self.journal.emit(Event::Pruned { cycle, budget: share, units, active, channels })?;
            for (place, units) in selection {
                pruned.entry(place).or_default().extend(units);
            }
            // What comes before another step need not be perfect.
            self.refit(cycle, parent, if number < of { 0 } else { all })?;
        }
        let unmet = match goals {
            None => self.unmet(parent, budget),
            Some(goals) => self.pipeline.unmet_cost(goals)?,
        };
        if let Some(message) = unmet {
            self.journal.emit(Event::Notice { cycle, message })?;
        }
        Ok((pruned, kept))
    }

    /// Refuses a strategy that does not choose the same in all processes.
    pub(super) fn check_chosen(&self, selection: Option<&Selection>) -> Result<()> {
        check_alike(self.pipeline.reduce.as_ref(), &format!("{selection:?}"))
    }

    /// Why pruning took another number of units than the budget asked for.
    fn unmet(&self, parent: &Model, budget: &BTreeMap<Site, usize>) -> Option<String> {
        let Pipeline { plan, record, learner: Learner { model, .. }, .. } = &self.pipeline;
        let config = &plan.config.prune;
        // A strategy of the caller's decides freely.
        if record.given.strategy {
            return None;
        }
        if model.units() == parent.units() && budget.values().all(|count| *count == 0) {
            let one = config.units.iter().map(|site| site.counted().one()).collect::<Vec<_>>().join(" or ");
            return Some(format!(
                "nothing to prune: pruning_ratio {} with schedule {} comes to no {one}",
                config.pruning_ratio,
                config.schedule.name()
            ));
        }
        budget.iter().find_map(|(site, &budget)| {
            let counted = site.counted();
            let count = parent.units().count(counted) - model.units().count(counted);
            let name = counted.name();
            match count.cmp(&budget) {
                Ordering::Equal => None,
                Ordering::Greater => Some(format!(
                    "{} {name} pruned beyond the ratio: the strategy holds them for dead",
                    count - budget
                )),
                Ordering::Less => Some(format!(
                    "{count} of {budget} {name} pruned: min_heads {}, units {} and shape {} allow no more",
                    config.min_heads,
                    config.units,
                    config.shape.name()
                )),
            }
        })
    }

    /// Repairs writers towards the model that the cycle started with, if that is asked for and
    /// possible.
    pub(super) fn refit(&mut self, cycle: usize, parent: &Model, sequences: usize) -> Result<bool> {
        let task = self.task(cycle, "refit");
        if self.pipeline.plan.config.refit.refit {
            self.journal.observer.on_progress(Progress { task: &task, done: 0, total: 1 });
        }
        match self.pipeline.refit(parent, sequences)? {
            Some(mut repairs) => {
                self.journal.observer.on_progress(Progress { task: &task, done: 1, total: 1 });
                let mut of = |writer| repairs.remove(&writer).unwrap_or_default();
                let (layers, mlp) = (of(Writer::Attention), of(Writer::Mlp));
                self.journal.emit(Event::Refit { cycle, layers, mlp })?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn measure(&mut self, cycle: usize, phase: Phase) -> Result<Evaluation> {
        let what = if phase == Phase::Pruned { "measure pruned" } else { "measure learned" };
        let task = self.task(cycle, what);
        let evaluation = self.pipeline.measure(&task, self.journal.observer)?;
        self.journal.emit(Event::Evaluated { cycle, phase, evaluation: evaluation.clone() })?;
        Ok(evaluation)
    }

    /// Says at once, in plain words, that pruning has cost more than learning usually repairs.
    fn warn_of_damage(&mut self, cycle: usize, lost: f64) -> Result<()> {
        if lost <= DAMAGE {
            return Ok(());
        }
        let name = self.pipeline.strategy.name();
        let advice = if name == RECOMMENDED {
            "prune a smaller share per cycle".to_owned()
        } else {
            format!(
                "strategy {RECOMMENDED} usually loses far less at the same size (docs/strategies.md has measurements)"
            )
        };
        let objective = self.pipeline.learner.model.spec().objective;
        let unit = if objective == Objective::Encoder || objective.is_regression() { "" } else { " nats" };
        let message = format!(
            "pruning by {name} has raised the held-out loss by {lost:.2}{unit}, which learning may not repair: {advice}"
        );
        self.journal.emit(Event::Notice { cycle, message })
    }

    /// Keeps the cycle or rolls it back; one that diverged has no loss.
    fn accept(&mut self, cycle: usize, loss: Option<f64>) -> Result<bool> {
        let loss_change = loss.map(|loss| loss - self.journal.state.loss);
        match (loss, loss_change, self.start.take(), self.pipeline.plan.config.measure.max_loss_increase) {
            (Some(loss), Some(loss_change), _, limit) if limit.is_none_or(|limit| loss_change <= limit) => {
                self.journal.state.loss = loss;
                let active = self.pipeline.learner.model.units().num_active();
                let channels = self.pipeline.channels();
                self.journal.emit(Event::Accepted { cycle, loss_change, active, channels })?;
                Ok(true)
            }
            (_, _, Some(start), Some(max_loss_increase)) => {
                self.pipeline.learner = start;
                let active = self.pipeline.learner.model.units().num_active();
                let channels = self.pipeline.channels();
                let event = Event::RolledBack { cycle, loss_change, max_loss_increase, active, channels };
                self.journal.emit(event)?;
                Ok(false)
            }
            _ => Err(Error::NotFinite("the held-out loss after learning is not finite".to_owned())),
        }
    }
}

/// What each layer has.
fn layers_of(model: &Model) -> Vec<LayerStart> {
    let paths = model.paths();
    let (attention, mlp) = (paths.of(Site::Head), paths.of(Site::Channel));
    let of = |(layer, units): (usize, &LayerUnits)| LayerStart {
        attention: attention[layer].clone(),
        mlp: mlp[layer].clone(),
        heads: units.active().to_vec(),
        num_heads: units.total(),
        num_kv_heads: units.kv_total(),
        channels: units.count(Site::Channel),
        num_channels: units.total_of(Site::Channel),
    };
    model.units().layers().iter().enumerate().map(of).collect()
}

/// The scores of the units that pruning has left.
fn remaining(model: &Model, scores: &Scores, pruned: &Selection) -> Scores {
    let mut kept = scores.clone();
    let places: Vec<LayerSite> = scores.places().filter(|place| place.site.is_block()).collect();
    for place in places {
        kept.at_mut(place).truncate(model.units().layers()[place.layer].count(place.site));
    }
    for (&place, gone) in pruned.iter().filter(|(place, _)| !scores.at(**place).is_empty()) {
        let units = model.units().layers()[place.layer].units(place.site);
        let mut before: Vec<usize> = units.iter().chain(gone).copied().collect();
        before.sort_unstable();
        let left: BTreeSet<usize> = units.into_iter().collect();
        let stays = before.iter().zip(scores.at(place)).filter(|(unit, _)| left.contains(unit));
        *kept.at_mut(place) = stays.map(|(_, score)| *score).collect();
    }
    kept
}
