//! What happened in a run, as plain data, and who wants to know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::Model;
use crate::record::{Evaluation, Gpu, LayerRefit, LayerStart};
use crate::units::{LayerSite, Scores, Selection, Site};
use crate::{Error, Result};

/// When a measurement was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before anything.
    Baseline,
    /// After pruning.
    Pruned,
    /// While learning.
    Learning,
    /// After learning.
    Learned,
    /// The result as it is stored.
    Result,
}

/// Version of the events' layout.
pub const SCHEMA: u32 = 3;

/// Something that happened. Free of clock times, so that a resumed run has the same events.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins.
    RunStarted {
        /// Version of this program.
        version: String,
        /// Schema of the events.
        schema: u32,
        /// The model's family.
        family: String,
        /// Elements of all weights.
        parameters: usize,
        /// Query heads.
        heads: usize,
        /// Channels; absent where none of them go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
        /// What each layer has.
        layers: Vec<LayerStart>,
        /// Training, calibration and held-out sequences.
        sequences: [usize; 3],
        /// Optimiser steps in every cycle.
        steps_per_cycle: u64,
        /// What it computes on; absent for the CPU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gpu: Option<Gpu>,
    },
    /// A held-out measurement.
    Evaluated {
        /// Cycle, 0 for the baseline.
        cycle: usize,
        /// When.
        phase: Phase,
        /// What.
        #[serde(flatten)]
        evaluation: Evaluation,
    },
    /// Units were scored.
    Scored {
        /// Cycle, from 1.
        cycle: usize,
        /// Whose importances.
        strategy: String,
        /// Whether what users see is higher for what stays; not so for an entropy.
        higher_keeps: bool,
        /// Kind of unit → layer name → importances of those that are there, as users see them.
        importances: Map<String, Value>,
    },
    /// Units were removed.
    Pruned {
        /// Cycle, from 1.
        cycle: usize,
        /// How many the budget asked for.
        budget: usize,
        /// Kind of unit → layer name → original indices.
        units: Map<String, Value>,
        /// Query heads left.
        active: usize,
        /// Channels there are now; absent where none of them go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
    },
    /// Writers were repaired by least squares.
    Refit {
        /// Cycle, from 1.
        cycle: usize,
        /// Attention's, layer by layer; empty where no head is missing.
        layers: Vec<LayerRefit>,
        /// The MLPs', layer by layer; absent where no channel is missing.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mlp: Vec<LayerRefit>,
    },
    /// Units came back.
    Grown {
        /// Cycle, from 1.
        cycle: usize,
        /// Kind of unit → layer name → original indices.
        units: Map<String, Value>,
        /// Query heads there are now.
        active: usize,
        /// Channels there are now; absent where none of them go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
    },
    /// One optimiser step.
    Step {
        /// Cycle, from 1.
        cycle: usize,
        /// Step in the cycle, from 1.
        step: u64,
        /// Mean training loss of the step.
        loss: f64,
        /// Learning rate.
        learning_rate: f64,
        /// Global gradient norm before clipping.
        gradient_norm: f64,
        /// Targets learned from so far in the run.
        tokens: u64,
    },
    /// A training loss that stands out from those of the steps before.
    Spike {
        /// Cycle, from 1.
        cycle: usize,
        /// Step in the cycle, from 1.
        step: u64,
        /// Its training loss.
        loss: f64,
        /// The mean of the steps before.
        typical: f64,
    },
    /// The cycle's result is kept.
    Accepted {
        /// Cycle, from 1.
        cycle: usize,
        /// Held-out loss minus that at the cycle's start.
        loss_change: f64,
        /// Query heads there are now.
        active: usize,
        /// Channels there are now; absent where none of them go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
    },
    /// The cycle's result is discarded: the model is as it was.
    RolledBack {
        /// Cycle, from 1.
        cycle: usize,
        /// Held-out loss minus that at the cycle's start; `None` where numbers were not finite any more.
        loss_change: Option<f64>,
        /// What was allowed.
        max_loss_increase: f64,
        /// Query heads there are again.
        active: usize,
        /// Channels there are now; absent where none of them go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
    },
    /// The cycle is saved: the run can be continued from here.
    Saved {
        /// Cycle, from 1.
        cycle: usize,
    },
    /// Something that the user should know.
    Notice {
        /// Cycle, 0 before the first.
        cycle: usize,
        /// In plain words.
        message: String,
    },
    /// The run is complete.
    RunFinished {
        /// Query heads left.
        active: usize,
        /// Channels there are now; absent where none of them go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
        /// Elements of all weights.
        parameters: usize,
    },
}

/// What a run is busy with, for progress bars.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// For example "cycle 1 of 3: learn".
    pub task: &'a str,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// What a watcher wants a run to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop learning, complete this cycle and write the result.
    Finish,
    /// End with [`crate::Error::Interrupted`]; what has been learned is saved.
    Interrupt,
}

/// Watches a run and may stop it.
///
/// ```
/// use upgrayedd::event::{Control, Event, Observer};
///
/// /// Ends a run with its result once a cycle has lost too much.
/// #[derive(Default)]
/// struct Enough {
///     lost: f64,
/// }
///
/// impl Observer for Enough {
///     fn on_event(&mut self, event: &Event) {
///         if let Event::Accepted { loss_change, .. } = event {
///             self.lost += loss_change;
///         }
///     }
///
///     fn control(&mut self) -> Control {
///         if self.lost > 0.1 { Control::Finish } else { Control::Continue }
///     }
/// }
/// ```
pub trait Observer {
    /// Something happened.
    fn on_event(&mut self, _event: &Event) {}
    /// Work went on.
    fn on_progress(&mut self, _progress: Progress<'_>) {}
    /// Asked between steps, batches and cycles.
    fn control(&mut self) -> Control {
        Control::Continue
    }
}

/// Watches nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Units by kind and layer name.
pub fn named_units(model: &Model, selection: &Selection) -> Map<String, Value> {
    let (mut named, paths) = (Map::new(), model.paths());
    for (place, units) in selection.iter().filter(|(_, units)| !units.is_empty()) {
        let of_site = named.entry(place.site.name()).or_insert_with(|| Value::Object(Map::new()));
        of_site[&paths.of(place.site)[place.layer]] = units.clone().into();
    }
    named
}

/// The units that were named so.
pub(crate) fn units_named(model: &Model, named: &Map<String, Value>) -> Result<Selection> {
    let mut selection = Selection::new();
    let paths = model.paths();
    for (site, layers) in named {
        let site: Site = site.parse()?;
        let layers: BTreeMap<String, Vec<usize>> =
            BTreeMap::deserialize(layers).map_err(|e| Error::malformed(format!("{}: {e}", site.name())))?;
        for (name, units) in layers {
            let layer = paths.find(site, &name);
            let layer = layer.ok_or_else(|| Error::malformed(format!("{name} is no layer of this model")))?;
            selection.insert(LayerSite { layer, site }, units);
        }
    }
    Ok(selection)
}

/// Scores by kind and layer name.
pub(crate) fn named_scores(model: &Model, scores: &Scores) -> Map<String, Value> {
    let (mut named, paths) = (Map::new(), model.paths());
    for (place, scores) in scores.iter() {
        let of_site = named.entry(place.site.name()).or_insert_with(|| Value::Object(Map::new()));
        of_site[&paths.of(place.site)[place.layer]] = scores.into();
    }
    named
}
