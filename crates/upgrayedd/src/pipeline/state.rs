//! What a run consists of: what it is made from, and where it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use upgrayedd_nn::Device;

use crate::config::Plan;
use crate::data::RunData;
use crate::event::Observer;
use crate::learner::Learner;
use crate::model::Model;
use crate::record::{CycleRecord, Evaluation};
use crate::reduce::Reduce;
use crate::run_dir::{RunDir, RunRecord};
use crate::strategy::Strategy;
use crate::timings::Timings;
use crate::train::Place;
use crate::units::Site;

/// The parts of a run that a caller has made itself; what is absent comes from the configuration.
#[derive(Default)]
pub struct Given {
    /// The model to optimise. Its weights are kept in the run folder.
    pub model: Option<Model>,
    /// What to learn from and be measured on. Whoever continues the run must give it again.
    pub data: Option<RunData>,
    /// What decides. Whoever continues the run must give it again.
    pub strategy: Option<Box<dyn Strategy>>,
    /// Where to compute, in the place of what the configuration names.
    pub device: Option<Device>,
    /// Times for a budget in latency, in the place of measuring them.
    pub timings: Option<Timings>,
    /// What started the run, so that it knows the run again when it starts it anew.
    pub launch: Option<String>,
    /// The process among those that share the work, where there are several: each is given the same. The first has the
    /// run folder, which all must be able to read; the others write nothing.
    pub reduce: Option<Arc<dyn Reduce>>,
}

/// A run in the making: everything is read and checked, nothing is written yet.
///
/// ```
/// use upgrayedd::event::Silent;
/// use upgrayedd::{OptimizeConfig, Pipeline};
///
/// let config = OptimizeConfig::from_toml("num_cycles = 1\nmax_steps_per_cycle = 2\nmax_eval_windows = 4")?;
/// let pipeline = Pipeline::new(config)?;
/// assert_eq!(pipeline.model().units().num_active(), 32);
/// let out = std::env::temp_dir().join(format!("first-{}", std::process::id()));
/// let summary = pipeline.run(&out, &mut Silent)?;
/// assert_eq!(summary.cycles[0].active, 23);
/// # std::fs::remove_dir_all(&out).expect("it is there");
/// # Ok::<(), upgrayedd::Error>(())
/// ```
pub struct Pipeline {
    pub(super) plan: Plan,
    pub(super) learner: Learner,
    pub(super) data: RunData,
    pub(super) strategy: Box<dyn Strategy>,
    /// What is learned from beside the targets.
    pub(super) teacher: Option<Model>,
    /// Shares the work with other processes.
    pub(super) reduce: Arc<dyn Reduce>,
    /// What of it is kept in `run.toml`.
    pub(super) record: RunRecord,
}

impl Pipeline {
    /// Channels that are there; `None` where none of them go.
    pub(super) fn channels(&self) -> Option<usize> {
        let goes = self.plan.config.prune.units.leaves().contains(Site::Channel);
        goes.then(|| self.learner.model.units().count(Site::Channel))
    }
}

/// A run under way: what it works on, and its journal.
pub(super) struct Run<'a> {
    pub(super) pipeline: Pipeline,
    pub(super) journal: Journal<'a>,
    /// What there was at the start of the cycle, where it may be rolled back.
    pub(super) start: Option<Learner>,
}

/// How far a run has come, and who is told: everything that a step of learning changes beside the learner.
pub(super) struct Journal<'a> {
    pub(super) dir: RunDir,
    pub(super) reduce: Arc<dyn Reduce>,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) state: State,
    /// The best weights of the cycle so far, where it is measured while it learns.
    pub(super) best: Option<Model>,
}

/// Where a run is; saved with every checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// Cycles completed.
    pub(super) cycle: usize,
    pub(super) place: Place,
    pub(super) tokens: u64,
    pub(super) baseline: Evaluation,
    pub(super) loss: f64,
    pub(super) history: Vec<CycleRecord>,
    /// The cycle under way, once its units are settled.
    pub(super) learning: Option<Learning>,
    /// The caller has asked for the result: no cycle begins after this one.
    pub(super) ending: bool,
}

impl State {
    pub(super) fn new(baseline: Evaluation) -> Self {
        let loss = baseline.loss;
        let (place, history) = (Place::default(), Vec::new());
        Self { cycle: 0, place, tokens: 0, baseline, loss, history, learning: None, ending: false }
    }
}

/// Where a cycle is once its units are settled; part of every checkpoint inside a cycle.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Learning {
    /// The units that are to be faded in: kind → layer name → original indices.
    pub(super) growing: Map<String, Value>,
    /// Units that went and came back.
    pub(super) pruned: usize,
    pub(super) grown: usize,
    /// Held-out loss in between.
    pub(super) loss_pruned: f64,
    /// Of the whole run before this cycle.
    pub(super) tokens_before: u64,
    /// Lowest held-out loss so far, and after which step.
    pub(super) best: Option<(f64, u64)>,
    /// Measurements since then.
    pub(super) waited: usize,
    /// The step after which was measured last.
    pub(super) measured: Option<u64>,
    /// Training losses of the last steps.
    pub(super) recent: Vec<f64>,
    /// Nothing is left but the measurement at the end.
    pub(super) done: bool,
}
