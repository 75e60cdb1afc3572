//! How a run that was stopped goes on: checked against its record, from its newest checkpoint.

use std::path::Path;

use super::state::{Given, Pipeline, Run, State};
use crate::checkpoint::Saved;
use crate::event::{Event, Observer};
use crate::model::Model;
use crate::open::base_of;
use crate::record::Summary;
use crate::run_dir::{RunDir, RunRecord, read_run};
use crate::{Error, Result};

impl Pipeline {
    /// Continues a run from its newest checkpoint to the same result as an uninterrupted one.
    pub fn resume(path: &Path, observer: &mut dyn Observer) -> Result<Summary> {
        Self::resume_with(path, Given::default(), observer)
    }

    /// What the run at `path` was started with, and from which model.
    pub fn recorded(path: &Path) -> Result<(RunRecord, Model)> {
        let record: RunRecord = read_run(path)?;
        let model = base_of(&path.join("base"), &record.config, record.given)?;
        Ok((record, model))
    }

    /// [`Self::resume`] for a run with parts that the caller had made itself: data and strategy must be given again.
    pub fn resume_with(path: &Path, mut given: Given, observer: &mut dyn Observer) -> Result<Summary> {
        let record: RunRecord = read_run(path)?;
        let mut dir = RunDir::open(path)?;
        if record.program_version != env!("CARGO_PKG_VERSION") {
            return Err(Error::bad_file(
                path,
                format!(
                    "was started by version {} of this program: only that continues it to the same result",
                    record.program_version
                ),
            ));
        }
        if dir.result().is_dir() {
            return Err(Error::bad_file(path, "is complete already: its result is in model/"));
        }
        for (what, was_given, is_given) in [
            ("data loader", record.given.data, given.data.is_some()),
            ("strategy object", record.given.strategy, given.strategy.is_some()),
        ] {
            if was_given && !is_given {
                let message = format!("was started with a {what} of the caller's: give the same {what} again");
                return Err(Error::bad_file(path, message));
            }
        }
        if record.given.model && given.model.is_none() {
            given.model = Some(base_of(&dir.base(), &record.config, record.given)?);
        }
        given.timings = record.timings.clone();
        let mut pipeline = Self::with(record.config.clone(), given)?;
        pipeline.keep_companions(&dir);
        // Of a model from memory they were said of what was given then.
        pipeline.notices = record.notices.clone();
        if pipeline.strategy.name() != record.config.prune.strategy {
            let (was, is) = (&record.config.prune.strategy, pipeline.strategy.name());
            return Err(Error::bad_file(path, format!("was started with the strategy {was}: {is} cannot continue it")));
        }
        let same_eval = pipeline.data.eval_hash == record.eval_data_hash;
        if pipeline.model_hash != record.model_hash {
            return Err(Error::bad_file(
                path,
                "the model or its teacher has changed since the run was started: it cannot be continued",
            ));
        }
        if pipeline.data.hash != record.data_hash || !same_eval || pipeline.data.split != record.split {
            return Err(Error::bad_file(path, "the data has changed since the run was started: it cannot be continued"));
        }
        let weight_decay = pipeline.plan.train.weight_decay;
        let mut damaged = Vec::new();
        let saved = dir.load_checkpoint::<State>(&pipeline.learner.model, weight_decay, &mut damaged);
        for error in damaged {
            // Not written: an uninterrupted run has the same events.
            observer.on_event(&Event::Notice { cycle: 0, message: format!("a checkpoint is damaged and passed over: {error}") });
        }
        let (saved, fresh) = match saved? {
            Some(saved) => (saved, false),
            None => {
                let state = State::new(pipeline.measure("baseline", observer)?);
                (Saved { learner: pipeline.learner.clone(), best: None, state, events_bytes: 0 }, true)
            }
        };
        let Saved { learner, best, state, .. } = saved;
        let start = match &state {
            State { learning: Some(_), cycle, .. } if pipeline.plan.config.measure.max_loss_increase.is_some() => {
                Some(match cycle {
                    0 => pipeline.learner.clone(),
                    cycle => dir.load_cycle::<State>(*cycle, &pipeline.learner.model, weight_decay)?.learner,
                })
            }
            _ => None,
        };
        pipeline.learner = learner;
        let mut run = Run { pipeline, dir, state, observer, start, best };
        if fresh {
            run.begin()?;
        }
        run.cycles()?;
        run.finish()
    }
}
