//! The dense model learning the same way, to set the result beside: a run of its own that prunes nothing, in the folder
//! `control` of the run that asked for it.

use super::state::{Given, Pipeline, Run};
use crate::config::{GrowOptions, OptimizeConfig, PruneOptions};
use crate::data::{BatchSource, Part, RunData, TakeBatch};
use crate::event::{Control, Event, Observer, Progress};
use crate::open::base_of;
use crate::record::Summary;
use crate::run_dir::{RUN_FILE, SUMMARY_FILE};
use crate::{Error, Result};

/// The run's folder in that of the one that asked for it.
const CONTROL: &str = "control";

impl Run<'_> {
    /// What the dense model comes to, if that is asked for. The run has no use for its batches and moments any more.
    pub(super) fn control(&mut self) -> Result<Option<Summary>> {
        if !self.pipeline.plan.config.measure.control {
            return Ok(None);
        }
        self.pipeline.learner.optim.states.clear();
        let out = self.journal.dir.path().join(CONTROL);
        // What was rolled back, the result has not learned either.
        let kept = self.journal.state.history.iter().filter(|cycle| cycle.accepted).count();
        let config = config_of(&self.pipeline.plan.config(), kept);
        let summary = if out.join("model").is_dir() {
            let path = out.join(SUMMARY_FILE);
            let bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
            serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(&path, format!("is damaged: {e}")))?
        } else {
            let given = self.given(&config)?;
            let observer = &mut Beside { observer: self.journal.observer };
            let learned = if out.join(RUN_FILE).is_file() {
                Pipeline::resume_with(&out, given, observer)
            } else {
                Pipeline::with(config, given)?.run(&out, observer)
            };
            match learned {
                Err(Error::NotFinite(reason)) => {
                    let message = format!("there is no control, as the dense model diverged: {reason}");
                    self.journal.emit(Event::Notice { cycle: self.journal.state.cycle, message })?;
                    return Ok(None);
                }
                learned => learned?,
            }
        };
        Ok(Some(summary))
    }

    /// Model, data and device of the run itself.
    fn given(&mut self, config: &OptimizeConfig) -> Result<Given> {
        let Pipeline { learner, data, record, reduce, .. } = &mut self.pipeline;
        let model = match record.given.model {
            true => Some(base_of(&self.journal.dir.base(), config, record.given)?),
            false => None,
        };
        let part = |part: &Part| Part { data: part.data.clone(), range: part.range.clone() };
        // The very same sequences: how many are set aside for scoring is the strategy's choice.
        let data = RunData {
            train: std::mem::replace(&mut data.train, Box::new(Spent)),
            calibration: part(&data.calibration),
            held_out: part(&data.held_out),
            split: data.split.clone(),
            hash: data.hash.clone(),
            eval_hash: data.eval_hash.clone(),
            set_aside: data.set_aside.take(),
            notices: data.notices.clone(),
        };
        let (device, reduce) = (Some(learner.model.device()), Some(reduce.clone()));
        Ok(Given { model, data: Some(data), device, reduce, ..Given::default() })
    }
}

/// The same run without anything that goes, comes back or is repaired.
fn config_of(config: &OptimizeConfig, cycles: usize) -> OptimizeConfig {
    let mut config = config.clone();
    config.run.num_cycles = cycles.max(1);
    if cycles == 0 {
        config.learn.max_steps_per_cycle = Some(0);
    }
    config.run.model.get_or_insert_with(|| "builtin".to_owned());
    let units = config.prune.units;
    config.prune =
        PruneOptions { strategy: "random".to_owned(), pruning_ratio: 0.0, units, ..PruneOptions::default() };
    config.grow = GrowOptions { growth_ratio: 0.0, ..GrowOptions::default() };
    config.refit.refit = false;
    config.measure.max_loss_increase = None;
    (config.measure.control, config.measure.samples) = (false, 0);
    config.measure.prompt.clear();
    config
}

/// Batches that another has taken.
struct Spent;

impl BatchSource for Spent {
    fn batches_per_epoch(&self) -> usize {
        0
    }

    fn epoch(&mut self, _: u64, _: &mut TakeBatch<'_>) -> Result<()> {
        Ok(())
    }
}

/// Whoever watches the run sees how far the other has come, and stops it too. What happens in it is told in its own folder.
struct Beside<'a> {
    observer: &'a mut dyn Observer,
}

impl Observer for Beside<'_> {
    fn on_progress(&mut self, progress: Progress<'_>) {
        let task = format!("control, {}", progress.task);
        self.observer.on_progress(Progress { task: &task, ..progress });
    }

    fn control(&mut self) -> Control {
        match self.observer.control() {
            // The result is asked for, which is made of this too.
            Control::Finish => Control::Continue,
            other => other,
        }
    }
}
