//! How a cycle learns: step by step, measured, saved, and gone on with wherever it was stopped.

use std::ops::ControlFlow;

use super::state::{Journal, Learning, Pipeline, Run, State};
use crate::config::Plan;
use crate::data::{Part, RunData};
use crate::eval::evaluate;
use crate::event::{Control, Event, Phase, Progress, units_named};
use crate::learner::Learner;
use crate::model::{Distill, Model};
use crate::train::{self, Place, StepReport};
use crate::units::Selection;
use crate::{Error, Result, checkpoint};

/// Losses that a new one is compared with.
const RECENT: usize = 20;
/// Standard deviations above their mean that make a spike.
const SPIKE: f64 = 6.0;

impl Learning {
    /// The mean of the last losses, if `loss` stands out from them.
    fn spike(&mut self, loss: f64) -> Option<f64> {
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().sum::<f64>() / n;
        let variance = self.recent.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n;
        let found = self.recent.len() == RECENT && loss - mean > SPIKE * variance.sqrt();
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(loss);
        found.then_some(mean)
    }
}

impl Journal<'_> {
    /// Writes an event down and tells it.
    pub(super) fn emit(&mut self, event: Event) -> Result<()> {
        self.dir.write_event(&event)?;
        self.observer.on_event(&event);
        Ok(())
    }

    /// What whoever watches wants; of several processes the same in all, as any of them may be told.
    pub(super) fn control(&mut self) -> Result<Control> {
        let own = self.observer.control();
        let mut asked =
            [own == Control::Finish, own == Control::Interrupt].map(|asked| f64::from(u8::from(asked)));
        self.reduce.sum(&mut asked)?;
        Ok(match asked {
            [_, interrupt] if interrupt > 0.0 => Control::Interrupt,
            [finish, _] if finish > 0.0 => Control::Finish,
            _ => Control::Continue,
        })
    }

    fn learning(&mut self) -> &mut Learning {
        self.state.learning.get_or_insert_default()
    }

    /// What happens after a step: it is told, measured and saved if it is time to, and whoever watches may
    /// end it.
    fn after_step(
        &mut self,
        learner: &Learner,
        place: &Place,
        report: StepReport,
        cycle: &CycleInfo<'_>,
    ) -> Result<ControlFlow<()>> {
        // Everything up to here can be gone on from: nothing interrupts these lines.
        let StepReport { step, steps, loss, learning_rate, gradient_norm, tokens } = report;
        self.state.place = place.clone();
        self.state.tokens += tokens;
        let spike = self.learning().spike(loss);
        self.emit(Event::Step {
            cycle: cycle.number,
            step,
            loss,
            learning_rate,
            gradient_norm,
            tokens: self.state.tokens,
        })?;
        if let Some(typical) = spike {
            self.emit(Event::Spike { cycle: cycle.number, step, loss, typical })?;
        }
        self.observer.on_progress(Progress { task: cycle.task, done: step, total: steps });
        if self.measure(&learner.model, step, steps, cycle)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let control = self.control()?;
        if control == Control::Finish {
            (self.state.ending, self.state.place.stopped) = (true, true);
        }
        let due = cycle.plan.config.run.checkpoint_every.is_some_and(|every| step.is_multiple_of(every));
        if step < steps && due {
            self.save_step(learner)?;
        }
        match control {
            Control::Continue => Ok(ControlFlow::Continue(())),
            Control::Finish => Ok(ControlFlow::Break(())),
            Control::Interrupt => Err(Error::Interrupted),
        }
    }

    /// Measures if it is time to, and breaks if there has been no progress for too long. Whatever the loss
    /// while heads are being faded in, that state is not one to keep: folding its gates would leave part of
    /// these heads away for good.
    fn measure(
        &mut self,
        model: &Model,
        step: u64,
        steps: u64,
        cycle: &CycleInfo<'_>,
    ) -> Result<ControlFlow<()>> {
        let measure = &cycle.plan.config.measure;
        let due = measure.eval_every.is_some_and(|every| step.is_multiple_of(every) || step == steps);
        if !due || self.learning().measured == Some(step) {
            return Ok(ControlFlow::Continue(()));
        }
        let Part { data, range } = cycle.held_out;
        let options = cycle.plan.eval_options(self.reduce.as_ref());
        let evaluation = evaluate(model, data, range, options, cycle.task, self.observer)?;
        let loss = evaluation.loss;
        self.emit(Event::Evaluated { cycle: cycle.number, phase: Phase::Learning, evaluation })?;
        let learning = self.learning();
        learning.measured = Some(step);
        if step < cycle.whole_from {
            return Ok(ControlFlow::Continue(()));
        }
        learning.waited += 1;
        if learning.best.is_none_or(|(best, _)| loss < best) {
            (learning.best, learning.waited) = (Some((loss, step)), 0);
            let mut state = model.clone();
            train::fold_all_gates(&mut state);
            self.best = Some(state);
        }
        Ok(if self.learning().waited >= measure.patience {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }

    /// Saves the state inside a cycle.
    fn save_step(&mut self, learner: &Learner) -> Result<()> {
        let name = checkpoint::name(self.state.cycle, Some(self.state.place.step));
        self.dir.save_checkpoint(&name, learner, self.best.as_ref(), &self.state, &self.state.worth_keeping())
    }
}

/// What all steps of a cycle share.
struct CycleInfo<'a> {
    number: usize,
    task: &'a str,
    plan: &'a Plan,
    held_out: &'a Part,
    /// The first step whose state is a whole one: no head is being faded in any more.
    whole_from: u64,
}

impl Run<'_> {
    /// Learns what is left of the cycle.
    pub(super) fn learn(&mut self, cycle: usize) -> Result<()> {
        if self.journal.state.learning.as_ref().is_none_or(|learning| learning.done) {
            return Ok(());
        }
        let task = self.task(cycle, "learn");
        let Self { pipeline, journal, .. } = self;
        let Pipeline { learner, data, plan, teacher, reduce, .. } = pipeline;
        let options = &plan.train;
        let (share, temperature) = (plan.distill as f32, plan.config.learn.distill_temperature as f32);
        let distill = teacher.as_ref().map(|teacher| Distill { teacher, temperature, share });
        let RunData { train: source, held_out, .. } = data;
        let steps = train::steps(options, source.batches_per_epoch());
        let growing = journal
            .state
            .learning
            .as_ref()
            .map_or_else(|| Ok(Selection::new()), |l| units_named(&learner.model, &l.growing))?;
        let whole_from = if growing.is_empty() { 0 } else { train::fading_steps(options, steps) + 1 };
        let mut place = journal.state.place.clone();
        let info = CycleInfo { number: cycle, task: &task, plan, held_out, whole_from };
        // Continued where a measurement was due: the gates are as the last step had them.
        train::set_fading(&mut learner.model, options, &growing, steps, place.step.saturating_sub(1))?;
        place.stopped |= journal.measure(&learner.model, place.step, steps, &info)?.is_break();
        train::learn(
            learner,
            source.as_mut(),
            options,
            (&mut place, &growing),
            distill.as_ref(),
            reduce.as_ref(),
            |learner, place, report| journal.after_step(learner, place, report, &info),
        )?;
        journal.state.place = place;
        learner.reset_learning_rates();
        let learning = journal.learning();
        learning.done = true;
        let earlier = learning.best.filter(|_| learning.waited > 0);
        if let Some((model, (_, step))) = journal.best.take().zip(earlier) {
            self.pipeline.learner.model = model;
            let message = format!("the state after step {step} was the best of the cycle and is kept");
            self.journal.emit(Event::Notice { cycle, message })?;
        }
        Ok(())
    }

    /// Saves what a cycle that is cut short has learned.
    pub(super) fn save_progress(&mut self) -> Result<()> {
        if self.journal.state.learning.is_none() {
            return Ok(());
        }
        self.journal.save_step(&self.pipeline.learner)
    }

    /// Saves the state after a cycle.
    pub(super) fn save_cycle(&mut self) -> Result<()> {
        let Journal { dir, state, .. } = &mut self.journal;
        dir.save_checkpoint(
            &checkpoint::name(state.cycle, None),
            &self.pipeline.learner,
            None,
            state,
            &state.worth_keeping(),
        )
    }
}

impl State {
    /// The checkpoints to keep beside the newest: the first, the best, and the last after a whole cycle.
    fn worth_keeping(&self) -> Vec<String> {
        let losses =
            self.history.iter().filter(|c| c.accepted).filter_map(|c| Some((c.cycle, c.loss_learned?)));
        let best = losses.min_by(|(_, a), (_, b)| a.total_cmp(b));
        let cycles = [Some(1), best.map(|(cycle, _)| cycle), Some(self.cycle)];
        cycles.into_iter().flatten().map(|cycles| checkpoint::name(cycles, None)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loss_that_stands_out_is_a_spike() {
        let mut learning = Learning::default();
        let wave = |i: usize| 3.0 + 0.1 * (i as f64).sin();
        assert!((0..100).all(|i| learning.spike(wave(i)).is_none()));
        assert!(learning.spike(3.2).is_none());
        let typical = learning.spike(9.0).expect("that is one");
        assert!((typical - 3.0).abs() < 0.1);
        assert!(learning.spike(3.0).is_none() && learning.recent.len() == RECENT);
    }
}
