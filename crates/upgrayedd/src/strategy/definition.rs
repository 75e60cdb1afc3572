//! What a strategy is, what it sees, and what built-in ones share.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::budget::{self, Budget, Scope};
use crate::grow::{self, Gains};
use crate::record::{CycleRecord, Evaluation};
use crate::score::ScoreContext;
use crate::spec::Objective;
use crate::units::{Scores, Selection, Site, Sites};
use crate::{Error, Model, Result};

/// What a strategy sees when it prunes.
#[derive(Debug, Clone, Copy)]
pub struct PruneView<'a> {
    /// The model before pruning.
    pub model: &'a Model,
    /// The strategy's importances of the units that are there, higher = keep; per price, where units of several
    /// kinds compete.
    pub importances: &'a Scores,
    /// Whether these are per price, and so no longer what was scored.
    pub priced: bool,
    /// What the user's ratio comes to. Built-in strategies keep to it.
    pub budget: &'a Budget,
}

/// What a strategy sees when it grows.
#[derive(Debug, Clone, Copy)]
pub struct GrowView<'a> {
    /// The model after pruning.
    pub model: &'a Model,
    /// Per layer: how many units of this kind can be restored.
    pub restorable: &'a [usize],
    /// What each archived unit's return promises; empty where nothing was measured.
    pub gains: &'a Gains,
    /// The importances of the units that are left, as scored before pruning.
    pub importances: &'a Scores,
    /// How many units may come back.
    pub count: usize,
    /// What comes back at once: each kind of units is asked for on its own.
    pub units: Site,
    /// Random choices of this cycle.
    pub seed: u64,
    /// The cycle, from 1.
    pub cycle: usize,
    /// The held-out quality after pruning.
    pub evaluation: &'a Evaluation,
    /// The cycles before this one.
    pub history: &'a [CycleRecord],
}

/// Decides which units go and where units come back. `examples/own_strategy.rs` has one from outside.
///
/// ```
/// use upgrayedd::strategy::{ALL, get_strategy};
///
/// let auto = get_strategy("auto", Default::default())?;
/// assert_eq!(auto.calibration_samples(), Some(128));
/// assert!(ALL.iter().any(|strategy| strategy.name == "entropy"));
/// # Ok::<(), upgrayedd::Error>(())
/// ```
///
/// What is decided here is checked afterwards. Decisions are pure: the pipeline carries them out.
pub trait Strategy: Send {
    /// What runs and messages call it; `prune.strategy` of the configuration is not read where a strategy is given.
    fn name(&self) -> &str;
    /// Sequences to set aside for scoring; by default `None`, which leaves it to the run.
    fn calibration_samples(&self) -> Option<usize> {
        None
    }
    /// Where units compete unless the user says otherwise; by default within their layer.
    fn scope(&self) -> Scope {
        Scope::Layer
    }
    /// Parts in which a cycle prunes such units unless the user says otherwise; by default one.
    fn pruning_steps(&self, _: Sites) -> usize {
        1
    }
    /// The kinds of units that it decides about; by default heads.
    fn units(&self) -> Sites {
        Sites::of(Site::Head)
    }
    /// The importance of every unit of the context's kinds: the higher, the rather it is kept. The archive
    /// remembers it.
    ///
    /// # Errors
    /// A built-in strategy returns what [`compute_all`](crate::score::compute_all) returns; one of the
    /// caller's own wraps its errors in [`Error::Caller`].
    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores>;
    /// Importances as users see them, or back: an entropy has the other sign.
    fn shown(&self, importances: &Scores) -> Scores {
        importances.clone()
    }
    /// The units to prune, by place and original index.
    ///
    /// # Errors
    /// A built-in strategy has none; one of the caller's own wraps its errors in [`Error::Caller`].
    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection>;
    /// How many units come back in which layer.
    ///
    /// # Errors
    /// A built-in strategy has none; one of the caller's own wraps its errors in [`Error::Caller`].
    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>>;
}

/// Parameters of a single strategy, by name.
pub type Options = BTreeMap<String, toml::Value>;

/// An entry of the registry.
#[derive(Debug)]
pub struct StrategyInfo {
    /// The name on the command line and in `get_strategy`.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    pub(super) build: fn(Options) -> Result<Box<dyn Strategy>>,
}

/// Reads a strategy's own options; unknown names and wrong types are errors that say what there is.
pub(super) fn parse_options<T: for<'de> Deserialize<'de>>(strategy: &str, options: Options) -> Result<T> {
    let table: toml::Table = options.into_iter().collect();
    T::deserialize(toml::Value::Table(table))
        .map_err(|e| Error::malformed(format!("options of strategy {strategy:?}: {}", e.message())))
}

/// Spreads `count` units over layers in the order given: one each (or one group each), round by round, where
/// units are missing.
pub fn spread(view: &GrowView<'_>, order: &[usize]) -> BTreeMap<usize, usize> {
    let size = budget::unit_size(view.model.units(), view.units);
    let mut room = view.restorable.to_vec();
    let mut counts = BTreeMap::new();
    let mut remaining = view.count;
    loop {
        let before = remaining;
        for &layer in order {
            if size <= remaining && size <= room[layer] {
                room[layer] -= size;
                remaining -= size;
                *counts.entry(layer).or_insert(0) += size;
            }
        }
        if remaining == before {
            return counts;
        }
    }
}

/// Counts that bring back the archived units with the highest gains, wherever they are.
pub fn by_gain(view: &GrowView<'_>) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    let mut remaining = view.count;
    for candidate in grow::candidates(view.model.units(), view.gains, view.units) {
        if candidate.count <= remaining {
            remaining -= candidate.count;
            *counts.entry(candidate.layer).or_insert(0) += candidate.count;
        }
    }
    counts
}

/// Layers sorted by their mean importance, highest first; ties to the lower layer.
pub fn by_mean(importances: &Scores, site: Site) -> Vec<usize> {
    let means = importances.layer_means(site.counted());
    let mut order: Vec<usize> = (0..means.len()).collect();
    order.sort_by(|&a, &b| means[b].total_cmp(&means[a]));
    order
}

/// What was computed for one state of one model, so that it is never used for another.
#[derive(Debug)]
pub(super) struct Cache<T> {
    entry: Option<(u64, String, T)>,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { entry: None }
    }
}

impl<T: Clone> Cache<T> {
    pub(super) fn get_or(
        &mut self,
        enabled: bool,
        context: &ScoreContext<'_>,
        compute: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        // Gates of a plain encoder are scored along random directions, which differ from cycle to cycle.
        let seed = (context.model.spec().objective == Objective::Encoder).then_some(context.seed);
        let data = context
            .data
            .map(|(d, r)| format!("{} {r:?} {} {seed:?}", d.hash, context.samples))
            .unwrap_or_default();
        let data = format!("{} {data}", context.units);
        let state = context.model.state_id();
        match &self.entry {
            Some((cached, from, found)) if enabled && *cached == state && *from == data => Ok(found.clone()),
            _ => {
                let found = compute()?;
                self.entry = Some((state, data, found.clone()));
                Ok(found)
            }
        }
    }
}

/// The units that `budget` takes, lowest `keep` first.
pub fn within_budget(view: &PruneView<'_>, keep: &Scores) -> Selection {
    budget::choose(view.model.units(), keep, view.budget)
}
