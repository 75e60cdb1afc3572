//! How a run that was stopped goes on: checked against its record, from its newest checkpoint.

use std::path::Path;

use super::state::{Given, Journal, Pipeline, Run, State};
use crate::checkpoint::Saved;
use crate::event::{Event, Observer};
use crate::model::Model;
use crate::open::base_of;
use crate::record::{Gpu, Summary};
use crate::reduce::{check_alike, in_all};
use crate::run_dir::{RunDir, RunRecord, read_run};
use crate::{Error, Result};

impl Pipeline {
    /// Continues a run from its newest checkpoint to the same result as an uninterrupted one.
    ///
    /// # Errors
    /// Returns what [`Self::resume_with`] returns.
    pub fn resume(path: &Path, observer: &mut dyn Observer) -> Result<Summary> {
        Self::resume_with(path, Given::default(), observer)
    }

    /// What the run at `path` was started with, and from which model.
    ///
    /// # Errors
    /// Returns [`Error::File`] if `path` is no run of this program or its files cannot be used, [`Error::Io`]
    /// if the system cannot read them, and what [`crate::open()`] returns for a model that the run does not
    /// keep itself.
    pub fn recorded(path: &Path) -> Result<(RunRecord, Model)> {
        let record: RunRecord = read_run(path)?;
        let model = base_of(&path.join("base"), &record.config, record.given)?;
        Ok((record, model))
    }

    /// [`Self::resume`] for a run with parts that the caller had made itself: data and strategy must be given
    /// again.
    ///
    /// # Errors
    /// Returns [`Error::File`] if `path` is no run of this program, is in use, is complete, or was started by
    /// another version; if a part that the caller made is not given again; if model, data or strategy are not
    /// those that it was started with; and if all its checkpoints are damaged. Returns [`Error::Io`] if the
    /// system cannot read or write the folder. Beyond these, what [`Self::with`] and [`Self::run`] return.
    pub fn resume_with(path: &Path, mut given: Given, observer: &mut dyn Observer) -> Result<Summary> {
        let record: RunRecord = read_run(path)?;
        let others = given.reduce.as_ref().is_some_and(|reduce| reduce.rank() > 0);
        let mut dir = if others { RunDir::follow(path) } else { RunDir::open(path)? };
        check_can_go_on(&dir, &record, &given)?;
        if record.given.model && given.model.is_none() {
            given.model = Some(base_of(&dir.base(), &record.config, record.given)?);
        }
        given.timings = record.timings.clone();
        let mut pipeline = Self::with(record.config.clone(), given)?;
        pipeline.keep_companions(&dir);
        pipeline.spill_to(&dir)?;
        check_same(&dir, &record, &pipeline.record)?;
        // Of a model from memory they were said of what was given then.
        pipeline.record.notices.clone_from(&record.notices);
        let place = |gpu: &Option<Gpu>| gpu.as_ref().map_or("the CPU".to_owned(), Gpu::to_string);
        let moved = (pipeline.record.gpu != record.gpu).then(|| {
            let (was, is) = (place(&record.gpu), place(&pipeline.record.gpu));
            format!("the run began on {was} and goes on on {is}: its numbers differ in their last bits from here on")
        });
        let weight_decay = pipeline.plan.train.weight_decay;
        let mut damaged = Vec::new();
        let saved = dir.load_checkpoint::<State>(&pipeline.learner.model, weight_decay, &mut damaged);
        for error in damaged {
            // Not written: an uninterrupted run has the same events.
            observer.on_event(&Event::Notice {
                cycle: 0,
                message: format!("a checkpoint is damaged and passed over: {error}"),
            });
        }
        let reduce = pipeline.reduce.clone();
        let saved = in_all(reduce.as_ref(), saved)?;
        // Nobody goes on, and saves, while another still reads; and all have read the same.
        let state = serde_json::to_string(&saved.as_ref().map(|saved| &saved.state));
        check_alike(reduce.as_ref(), &state.map_err(|e| Error::malformed(e.to_string()))?)?;
        let (saved, fresh) = match saved {
            Some(saved) => (saved, false),
            None => {
                let state = State::new(pipeline.measure("baseline", observer)?);
                (Saved { learner: pipeline.learner.clone(), best: None, state, events_bytes: 0 }, true)
            }
        };
        let Saved { learner, best, state, .. } = saved;
        let start = match &state {
            State { learning: Some(_), cycle, .. }
                if pipeline.plan.config.measure.max_loss_increase.is_some() =>
            {
                Some(match cycle {
                    0 => pipeline.learner.clone(),
                    cycle => dir.load_cycle::<State>(*cycle, &pipeline.learner.model, weight_decay)?.learner,
                })
            }
            _ => None,
        };
        pipeline.learner = learner;
        let mut run = Run { pipeline, journal: Journal { dir, reduce, observer, state, best }, start };
        if fresh {
            run.begin()?;
        }
        if let Some(message) = moved {
            let cycle = run.journal.state.cycle;
            run.journal.emit(Event::Notice { cycle, message })?;
        }
        run.cycles()?;
        run.finish()
    }
}

/// Refuses a run that is complete or another version's, and one whose caller has not given again what it had
/// made.
fn check_can_go_on(dir: &RunDir, record: &RunRecord, given: &Given) -> Result<()> {
    let refuse = |message: String| Err(Error::bad_file(dir.path(), message));
    if record.program_version != env!("CARGO_PKG_VERSION") {
        return refuse(format!(
            "was started by version {} of this program: only that continues it to the same result",
            record.program_version
        ));
    }
    if dir.result().is_dir() {
        return refuse("is complete already: its result is in model/".to_owned());
    }
    for (what, was_given, is_given) in [
        ("data loader", record.given.data, given.data.is_some()),
        ("strategy object", record.given.strategy, given.strategy.is_some()),
    ] {
        if was_given && !is_given {
            return refuse(format!("was started with a {what} of the caller's: give the same {what} again"));
        }
    }
    Ok(())
}

/// Refuses to go on with another strategy, model or data than the run was started with.
fn check_same(dir: &RunDir, was: &RunRecord, is: &RunRecord) -> Result<()> {
    let refuse = |message: String| Err(Error::bad_file(dir.path(), message));
    let (strategy, other) = (&was.config.prune.strategy, &is.config.prune.strategy);
    if strategy != other {
        return refuse(format!("was started with the strategy {strategy}: {other} cannot continue it"));
    }
    if was.model_hash != is.model_hash {
        return refuse(
            "the model or its teacher has changed since the run was started: it cannot be continued"
                .to_owned(),
        );
    }
    if was.data_hash != is.data_hash || was.eval_data_hash != is.eval_data_hash || was.split != is.split {
        return refuse("the data has changed since the run was started: it cannot be continued".to_owned());
    }
    Ok(())
}
