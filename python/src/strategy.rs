//! Strategies on both sides: Python objects that the core asks, and the core's decisions that Python classes
//! call.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use upgrayedd::budget::{self, Budget, Schedule, Scope};
use upgrayedd::config::{GrowOptions, PruneOptions};
use upgrayedd::data::Pass;
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::record::Evaluation;
use upgrayedd::score::ScoreContext;
use upgrayedd::spec::Objective;
use upgrayedd::strategy::{GrowView, Options, PruneView, Strategy, get_strategy};
use upgrayedd::units::{LayerSite, Scores, Selection, Site, Sites, Unit};
use upgrayedd::{Error, Result};

use crate::errors::{from_py, to_py};
use crate::model::{Model, UnitsByKind, selection};

/// What every strategy has in Python, and what is its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Params {
    pruning_ratio: f64,
    growth_ratio: f64,
    min_heads: usize,
    seed: Option<u64>,
    options: Options,
}

impl Default for Params {
    fn default() -> Self {
        let PruneOptions { pruning_ratio, min_heads, .. } = PruneOptions::default();
        let GrowOptions { growth_ratio, .. } = GrowOptions::default();
        Self { pruning_ratio, growth_ratio, min_heads, seed: None, options: Options::new() }
    }
}

impl Params {
    /// Reads them from JSON. Refuses values out of range.
    fn read(json: &str) -> Result<Self> {
        let params: Self = read(json)?;
        let Self { pruning_ratio, growth_ratio, min_heads, .. } = params;
        PruneOptions { pruning_ratio, min_heads, ..PruneOptions::default() }.check()?;
        GrowOptions { growth_ratio, ..GrowOptions::default() }.check()?;
        Ok(params)
    }

    fn strategy(&self, name: &str) -> Result<Box<dyn Strategy>> {
        get_strategy(name, self.options.clone())
    }
}

/// Refuses parameters out of range.
#[pyfunction]
pub fn check_strategy(name: Option<&str>, params: &str) -> PyResult<()> {
    let params = Params::read(params).map_err(to_py)?;
    name.map_or(Ok(()), |name| params.strategy(name).map(|_| ())).map_err(to_py)
}

/// What a cycle allows to be pruned, on its way through Python.
#[derive(Debug, Serialize, Deserialize)]
struct Prunable {
    heads: usize,
    scope: Scope,
    units: Site,
    min_heads: usize,
}

impl Prunable {
    /// Python's strategies decide about heads.
    fn of(Budget { counts, scope, min_heads }: &Budget) -> Self {
        let of_heads = counts.iter().find(|(site, _)| site.counted() == Site::Head);
        let (units, heads) = of_heads.map_or((Site::Head, 0), |(site, count)| (*site, *count));
        Self { heads, scope: *scope, units, min_heads: *min_heads }
    }

    fn budget(self) -> Budget {
        Budget::of(self.units, self.heads, self.scope, self.min_heads)
    }
}

/// And to be grown back.
#[derive(Debug, Serialize, Deserialize)]
struct Growable {
    count: usize,
    units: Site,
    seed: u64,
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|e| Error::malformed(e.to_string()))
}

/// Heads as Python has them: by layer.
type HeadsByLayer = BTreeMap<usize, Vec<usize>>;

/// What the built-in strategy `name` prunes: layer → heads.
#[pyfunction]
pub fn select_to_prune(
    name: &str,
    params: &str,
    model: PyRef<'_, Model>,
    importances: Vec<Vec<f64>>,
    allowed: Option<&str>,
) -> PyResult<HeadsByLayer> {
    let decide = || {
        let params = Params::read(params)?;
        let mut strategy = params.strategy(name)?;
        let importances = strategy.shown(&Scores::of_heads(importances));
        importances.check(model.inner.units(), Sites::default())?;
        let budget = match allowed {
            Some(allowed) => read::<Prunable>(allowed)?.budget(),
            None => {
                let most = budget::prunable(model.inner.units(), Site::Head, params.min_heads);
                let ratios = (params.pruning_ratio, params.growth_ratio);
                let counts = budget::cycle_counts(
                    Schedule::PerCycle,
                    model.inner.units(),
                    Site::Head,
                    ratios,
                    (1, 1),
                    most,
                );
                Budget::of(Site::Head, counts.prune, strategy.scope(), params.min_heads)
            }
        };
        let selection = strategy.select_units_to_prune(&PruneView {
            model: &model.inner,
            importances: &importances,
            priced: false,
            budget: &budget,
        })?;
        Ok(selection.into_iter().map(|(place, heads)| (place.layer, heads)).collect())
    };
    decide().map_err(to_py)
}

/// Where the built-in strategy `name` grows: layer → number of heads. `restorable` counts per layer what can
/// come back, `gains` says what it promises: layer → head → gain.
#[pyfunction]
pub fn select_to_grow(
    name: &str,
    params: &str,
    model: PyRef<'_, Model>,
    restorable: Vec<usize>,
    layer_means: Vec<f64>,
    gains: BTreeMap<usize, BTreeMap<usize, f64>>,
    allowed: Option<&str>,
) -> PyResult<BTreeMap<usize, usize>> {
    let decide = || {
        let params = Params::read(params)?;
        let mut strategy = params.strategy(name)?;
        let can_return = restorable.iter().sum();
        let Growable { count, units, seed } = match allowed {
            Some(allowed) => read(allowed)?,
            None => {
                let count = budget::growth(params.growth_ratio, can_return, model.inner.units(), Site::Head);
                Growable { count, units: Site::Head, seed: params.seed.unwrap_or(42) }
            }
        };
        let importances = strategy.shown(&Scores::of_heads(layer_means.into_iter().map(|mean| vec![mean])));
        let evaluation = Evaluation {
            loss: 0.0,
            perplexity: None,
            accuracy: None,
            f1: None,
            spearman: None,
            tokens: 0,
            sequences: 0,
            protocol: String::new(),
            window: 0,
            data_hash: String::new(),
        };
        let each = |(layer, heads): (usize, BTreeMap<usize, f64>)| {
            heads.into_iter().map(move |(head, g)| (Unit::head(layer, head), g))
        };
        let gains = gains.into_iter().flat_map(each).collect();
        strategy.select_units_to_grow(&GrowView {
            model: &model.inner,
            gains: &gains,
            restorable: &restorable,
            importances: &importances,
            count,
            units,
            seed,
            cycle: 0,
            evaluation: &evaluation,
            history: &[],
        })
    };
    decide().map_err(to_py)
}

/// A strategy written in Python, as `upgrayedd.strategies._adapter.Adapter` presents it.
pub struct PyStrategy {
    adapter: Py<PyAny>,
    name: String,
    higher_keeps: bool,
    samples: Option<usize>,
    scope: Scope,
    steps: usize,
    units: Sites,
}

impl PyStrategy {
    pub fn new(adapter: Bound<'_, PyAny>) -> PyResult<Self> {
        let params: String = adapter.call_method0("params")?.extract()?;
        let params = Params::read(&params).map_err(to_py)?;
        let built_in: Option<String> = adapter.getattr("built_in")?.extract()?;
        let (scope, steps) = match built_in {
            Some(name) => {
                let strategy = params.strategy(&name).map_err(to_py)?;
                (strategy.scope(), strategy.pruning_steps(Sites::default()))
            }
            None => (Scope::Layer, 1),
        };
        Ok(Self {
            name: adapter.getattr("name")?.extract()?,
            higher_keeps: adapter.getattr("higher_keeps")?.extract()?,
            samples: adapter.getattr("samples")?.extract()?,
            scope,
            steps,
            units: if adapter.getattr("all_units")?.extract()? { Sites::FINEST } else { Sites::default() },
            adapter: adapter.unbind(),
        })
    }

    fn ask<T>(&self, ask: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Result<T> {
        Python::attach(|py| ask(self.adapter.bind(py))).map_err(from_py)
    }
}

impl Strategy for PyStrategy {
    fn name(&self) -> &str {
        &self.name
    }

    fn calibration_samples(&self) -> Option<usize> {
        self.samples
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn pruning_steps(&self, _: Sites) -> usize {
        self.steps
    }

    fn units(&self) -> Sites {
        self.units
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores> {
        let model = Model::of(context.model.clone());
        let kinds: Vec<&str> = context.units.iter().map(Site::name).collect();
        let found: BTreeMap<String, Vec<Vec<f64>>> = self.ask(|adapter| {
            let batches = batches(adapter.py(), context)?;
            adapter.call_method1("importances", (model, batches, context.seed, kinds))?.extract()
        })?;
        let mut scores = Scores::default();
        for (kind, layers) in found {
            let site: Site = kind.parse()?;
            let places = layers.into_iter().enumerate();
            places.for_each(|(layer, values)| *scores.at_mut(LayerSite { layer, site }) = values);
        }
        Ok(self.shown(&scores))
    }

    fn shown(&self, importances: &Scores) -> Scores {
        if self.higher_keeps { importances.clone() } else { importances.map(|importance| -importance) }
    }

    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection> {
        let model = Model::of(view.model.clone());
        let mut importances: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
        for (place, values) in self.shown(view.importances).iter() {
            importances.entry(place.site.name()).or_default().push(values.to_vec());
        }
        let allowed = json!(Prunable::of(view.budget)).to_string();
        let chosen: UnitsByKind =
            self.ask(|adapter| adapter.call_method1("prune", (model, importances, allowed))?.extract())?;
        selection(chosen)
    }

    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        let model = Model::of(view.model.clone());
        let allowed = json!(Growable { count: view.count, units: view.units, seed: view.seed }).to_string();
        let mut gains: BTreeMap<String, BTreeMap<usize, f64>> = BTreeMap::new();
        let (kind, paths) = (view.units.counted(), view.model.paths());
        for (id, &gain) in view.gains.iter().filter(|(id, _)| id.site == kind) {
            gains.entry(paths.of(kind)[id.layer].clone()).or_default().insert(id.index, gain);
        }
        let metrics = json!({
            "gains": gains,
            "cycle": view.cycle,
            "evaluation": view.evaluation,
            "layer_means": self.shown(view.importances).layer_means(kind),
            "allowed": view.count,
            "history": view.history,
        });
        self.ask(|adapter| {
            adapter.call_method1("grow", (model, kind.name(), metrics.to_string(), allowed))?.extract()
        })
    }
}

/// The calibration sequences as dictionaries of nested lists; labels are those of Hugging Face, not shifted.
fn batches<'py>(py: Python<'py>, context: &ScoreContext<'_>) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    let Some((data, range)) = context.data else { return Ok(list) };
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    let objective = context.model.spec().objective;
    let causal = objective == Objective::CausalLm;
    for chunk in indices.chunks(context.batch_size.max(1)) {
        let batch = data.batch(chunk, Pass::Fixed);
        let (rows, len) = (batch.batch, batch.len);
        let tokens: Vec<i64> = batch.tokens.iter().map(|&t| i64::from(t)).collect();
        let mask: Vec<i64> =
            batch.mask.map_or_else(|| vec![1; rows * len], |m| m.into_iter().map(i64::from).collect());
        let mut labels = batch.targets;
        if causal {
            for row in labels.chunks_exact_mut(len.max(1)) {
                row.rotate_right(1);
                row[0] = IGNORE;
            }
        }
        let dict = PyDict::new(py);
        dict.set_item("input_ids", shaped(py, tokens, rows)?)?;
        dict.set_item("attention_mask", shaped(py, mask, rows)?)?;
        if let Some(types) = batch.types {
            dict.set_item(
                "token_type_ids",
                shaped(py, types.iter().map(|&t| i64::from(t)).collect(), rows)?,
            )?;
        }
        let labels = match objective {
            Objective::MultiLabel { .. } => shaped(py, batch.values, rows)?,
            Objective::Classifier { labels: 1 } => numpy::PyArray1::from_vec(py, batch.values).into_any(),
            Objective::Classifier { .. } => shaped_flat(py, labels)?,
            _ => shaped(py, labels, rows)?,
        };
        dict.set_item("labels", labels)?;
        list.append(dict)?;
    }
    Ok(list)
}

fn shaped<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    rows: usize,
) -> PyResult<Bound<'py, PyAny>> {
    shaped_flat(py, values)?.call_method1("reshape", (rows, -1))
}

fn shaped_flat<'py, T: numpy::Element>(py: Python<'py>, values: Vec<T>) -> PyResult<Bound<'py, PyAny>> {
    Ok(numpy::PyArray1::from_vec(py, values).into_any())
}
