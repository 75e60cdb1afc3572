//! What a run folder tells, read as far as the run has come.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::fate::{Layer, apply};
use super::map::{UnitMap, map};
use crate::event::{Event, Phase, SCHEMA};
use crate::record::{Evaluation, Gpu, LayerRefit, Summary};
use crate::run_dir::{EVENTS_FILE, RunRecord, SUMMARY_FILE, read_run};
use crate::{Error, Result};

/// How much of what was read is looked at again, to see whether the file still goes on from there.
const TAIL: usize = 512;

/// A run as its folder tells it, complete or under way.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    pub(super) record: RunRecord,
    pub(super) summary: Option<Summary>,
    pub(super) told: Told,
    /// Bytes of the events that have been read, and the last of them.
    read: u64,
    tail: Vec<u8>,
}

/// What the events told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub started: Option<Started>,
    pub layers: Vec<Layer>,
    pub cycles: Vec<Cycle>,
    pub baseline: Option<Evaluation>,
    pub result: Option<Evaluation>,
    pub notices: Vec<String>,
    pub finished: bool,
    /// The first scoring of the run.
    pub scored: Option<Scored>,
    /// The layers as the last cycle that was kept left them.
    settled: Vec<Layer>,
}

/// By what, whether higher is better, and kind → layer → values.
#[derive(Debug)]
pub(super) struct Scored {
    pub strategy: String,
    pub higher_keeps: bool,
    pub importances: Map<String, Value>,
}

/// How the run began.
#[derive(Debug)]
pub(super) struct Started {
    pub version: String,
    pub family: String,
    pub parameters: usize,
    pub heads: usize,
    pub sequences: [usize; 3],
    pub steps_per_cycle: u64,
    pub gpu: Option<Gpu>,
}

/// What happened in a cycle.
#[derive(Debug, Default)]
pub(super) struct Cycle {
    pub number: usize,
    /// Kind of unit and how many, of all of the cycle's pruning steps.
    pub pruned: Vec<(String, usize)>,
    pub grown: Vec<(String, usize)>,
    /// Attention's and the MLPs', after the last pruning.
    pub refit: Option<(Vec<LayerRefit>, Vec<LayerRefit>)>,
    pub steps: Vec<Step>,
    /// Held-out measurements, with the number of steps before.
    pub measured: Vec<(Phase, u64, Evaluation)>,
    /// Whether it was kept, and by how much the held-out loss changed.
    pub outcome: Option<(bool, Option<f64>)>,
    /// What each layer had at its end.
    pub map: Option<UnitMap>,
    /// Units came back, or might have.
    grew: bool,
}

/// An optimiser step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub step: u64,
    pub loss: f64,
    pub learning_rate: f64,
}

impl Log {
    /// Reads what is there.
    ///
    /// # Errors
    /// Returns [`Error::File`] if `run` is no run folder of this program or its events are damaged, and [`Error::Io`] if
    /// the system cannot read it.
    pub fn open(run: &Path) -> Result<Self> {
        let (record, told) = (read_run(run)?, Told::default());
        let mut log = Self { folder: run.to_owned(), record, summary: None, told, read: 0, tail: Vec::new() };
        log.refresh()?;
        Ok(log)
    }

    /// The folder's name.
    pub fn name(&self) -> String {
        let full = std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone());
        full.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
    }

    /// Reads what is new, and everything anew where a run that was continued has gone back to an earlier point. Says
    /// whether anything has changed.
    ///
    /// # Errors
    /// Returns what [`Self::open`] returns.
    pub fn refresh(&mut self) -> Result<bool> {
        let path = self.folder.join(EVENTS_FILE);
        let mut file = File::open(&path).map_err(Error::io(&path, "read"))?;
        let before = self.read;
        let goes_on = self.goes_on(&mut file).map_err(Error::io(&path, "read"))?;
        if !goes_on {
            self.record = read_run(&self.folder)?;
            (self.told, self.summary, self.read, self.tail) = (Told::default(), None, 0, Vec::new());
        }
        let mut new = Vec::new();
        file.seek(SeekFrom::Start(self.read))
            .and_then(|_| file.read_to_end(&mut new))
            .map_err(Error::io(&path, "read"))?;
        // A line under way is read when it is whole.
        new.truncate(new.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1));
        for line in new.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let event = serde_json::from_slice(line)
                .map_err(|e| Error::bad_file(&path, format!("has an event that cannot be read: {e}")))?;
            self.told.take(event).map_err(|e| e.of_file(&path))?;
        }
        self.read += new.len() as u64;
        self.tail.extend_from_slice(&new[new.len().saturating_sub(TAIL)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        let had = self.summary.is_some();
        // The result is what is written last.
        if !had && self.told.finished && self.folder.join("model").is_dir() {
            self.summary = self.read_summary()?;
        }
        Ok(!goes_on || self.read != before || had != self.summary.is_some())
    }

    /// Whether the events still are what was read, and more.
    fn goes_on(&self, file: &mut File) -> std::io::Result<bool> {
        let mut found = vec![0; self.tail.len()];
        file.seek(SeekFrom::Start(self.read - self.tail.len() as u64))?;
        match file.read_exact(&mut found) {
            Ok(()) => Ok(found == self.tail),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_summary(&self) -> Result<Option<Summary>> {
        let path = self.folder.join(SUMMARY_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| Error::bad_file(&path, format!("is damaged: {e}"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&path, "read")(error)),
        }
    }
}

impl Told {
    fn cycle(&mut self, number: usize) -> &mut Cycle {
        if self.cycles.last().is_none_or(|cycle| cycle.number != number) {
            self.cycles.push(Cycle { number, ..Cycle::default() });
        }
        let last = self.cycles.len() - 1;
        &mut self.cycles[last]
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::RunStarted { schema, .. } if schema != SCHEMA => {
                let message = format!("has events of schema {schema}: this program reads {SCHEMA}");
                return Err(Error::unsupported(message));
            }
            Event::RunStarted {
                version,
                family,
                parameters,
                heads,
                layers,
                sequences,
                steps_per_cycle,
                gpu,
                ..
            } => {
                self.layers = layers.into_iter().map(Layer::new).collect();
                self.settled.clone_from(&self.layers);
                self.started =
                    Some(Started { version, family, parameters, heads, sequences, steps_per_cycle, gpu });
            }
            Event::Evaluated { phase: Phase::Baseline, evaluation, .. } => self.baseline = Some(evaluation),
            Event::Evaluated { phase: Phase::Result, evaluation, .. } => self.result = Some(evaluation),
            Event::Evaluated { cycle, phase, evaluation } => {
                let cycle = self.cycle(cycle);
                let steps = cycle.steps.last().map_or(0, |step| step.step);
                cycle.measured.push((phase, steps, evaluation));
            }
            Event::Scored { cycle, strategy, higher_keeps, importances } => {
                self.cycle(cycle);
                self.scored.get_or_insert(Scored { strategy, higher_keeps, importances });
            }
            Event::Pruned { cycle, units, .. } => {
                apply(&mut self.layers, &units, cycle, false);
                count(&mut self.cycle(cycle).pruned, &units);
            }
            Event::Grown { cycle, units, .. } => {
                apply(&mut self.layers, &units, cycle, true);
                let cycle = self.cycle(cycle);
                cycle.grew = true;
                count(&mut cycle.grown, &units);
            }
            Event::Refit { cycle, layers, mlp } => {
                let cycle = self.cycle(cycle);
                // The one after growth repairs what little that has changed.
                if !cycle.grew || cycle.refit.is_none() {
                    cycle.refit = Some((layers, mlp));
                }
            }
            Event::Step { cycle, step, loss, learning_rate, .. } => {
                self.cycle(cycle).steps.push(Step { step, loss, learning_rate });
            }
            Event::Spike { cycle, step, loss, typical } => self.notices.push(format!(
                "cycle {cycle}: the training loss jumped to {loss:.3} at step {step}, from {typical:.3}"
            )),
            Event::Accepted { cycle, loss_change, .. } => {
                self.settled.clone_from(&self.layers);
                let map = map(&self.layers);
                let cycle = self.cycle(cycle);
                (cycle.outcome, cycle.map) = (Some((true, Some(loss_change))), Some(map));
            }
            Event::RolledBack { cycle, loss_change, max_loss_increase, .. } => {
                self.layers.clone_from(&self.settled);
                let map = map(&self.layers);
                let change =
                    loss_change.map_or("was not finite any more".to_owned(), |c| format!("rose by {c:.4}"));
                self.notices.push(format!(
                    "cycle {cycle} was rolled back: the held-out loss {change}, {max_loss_increase:.4} was allowed"
                ));
                let cycle = self.cycle(cycle);
                (cycle.outcome, cycle.map) = (Some((false, loss_change)), Some(map));
            }
            Event::Notice { message, .. } => self.notices.push(message),
            Event::Saved { .. } => {}
            Event::RunFinished { .. } => self.finished = true,
        }
        Ok(())
    }
}

fn count(counts: &mut Vec<(String, usize)>, units: &Map<String, Value>) {
    for (kind, layers) in units {
        let number = layers
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, units)| units.as_array().map_or(0, Vec::len))
            .sum();
        match counts.iter_mut().find(|(known, _)| known == kind) {
            Some((_, count)) => *count += number,
            None => counts.push((kind.clone(), number)),
        }
    }
}
