//! A model and its tokenizer, seen from Python.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::ndarray::{ArrayViewD, IxDyn};
use numpy::{PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Value, json};
use upgrayedd::data::{DataOptions, ReadOptions};
use upgrayedd::eval::{EvalOptions, evaluate};
use upgrayedd::export;
use upgrayedd::family::Task;
use upgrayedd::files::DType;
use upgrayedd::load::{LoadOptions, Weights};
use upgrayedd::model::{Batch, Companions, GenerateOptions, Hooks};
use upgrayedd::nn::{Tape, Tensor};
use upgrayedd::reduce::Alone;
use upgrayedd::refit::{batches, refit};
use upgrayedd::score::{self, ScoreContext};
use upgrayedd::spec::Objective;
use upgrayedd::units::{LayerSite, LayerUnits, Selection, Site, Sites};
use upgrayedd::weights::Writer;
use upgrayedd::{Error, Result, surgery};

use crate::data::Source;
use crate::errors::{detached, from_py, to_py, warn};
use crate::observer::PyObserver;
use crate::tokenizer::Tokenizer;

/// A transformer with the heads it still has.
#[pyclass(module = "upgrayedd._native")]
pub struct Model {
    pub inner: upgrayedd::Model,
}

impl Model {
    pub fn of(inner: upgrayedd::Model) -> Self {
        Self { inner }
    }
}

/// Keeps a tensor alive for the arrays that show it.
#[pyclass(frozen)]
struct Storage(Tensor);

/// A read-only array, over the tensor's own memory if that holds `f32`.
fn array<'py>(py: Python<'py>, tensor: Tensor) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let tensor = if tensor.as_f32().is_some() { tensor } else { tensor.to_host() };
    let shape = tensor.shape().to_vec();
    let storage = Bound::new(py, Storage(tensor))?;
    let view = ArrayViewD::from_shape(IxDyn(&shape), storage.get().0.as_f32().unwrap_or_default())
        .map_err(|e| pyo3::exceptions::PyRuntimeError::new_err(e.to_string()))?;
    #[allow(unsafe_code, reason = "arrays share the memory of weights")]
    // SAFETY: the array's base object holds a reference to the tensor's buffer, which is never written while
    // shared.
    let array = unsafe { PyArrayDyn::borrow_from_array(&view, storage.clone().into_any()) };
    let flags = PyDict::new(py);
    flags.set_item("write", false)?;
    array.getattr("setflags")?.call((), Some(&flags))?;
    Ok(array)
}

/// Weights that Python hands over: float32 arrays and the element types they stand for.
struct Arrays(BTreeMap<String, (Py<PyAny>, DType)>);

impl Arrays {
    fn with<T>(
        &self,
        name: &str,
        read: impl FnOnce(&PyReadonlyArrayDyn<'_, f32>) -> PyResult<T>,
    ) -> Result<T> {
        Python::attach(|py| read(&self.0[name].0.bind(py).extract()?)).map_err(from_py)
    }
}

impl Weights for Arrays {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.with(name, |a| Ok(a.shape().to_vec()))
    }

    fn dtype(&self, name: &str) -> Result<DType> {
        Ok(self.0[name].1)
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let tensor =
            self.with(name, |a| Ok(Tensor::from_vec(a.shape(), a.as_array().iter().copied().collect())))?;
        match tensor.data().iter().find(|v| !v.is_finite()) {
            Some(value) => {
                Err(Error::malformed(format!("tensor {name} holds {value}: the weights are damaged")))
            }
            None => Ok(tensor),
        }
    }
}

/// Units as Python has them: kind → layer → indices.
pub type UnitsByKind = BTreeMap<String, BTreeMap<usize, Vec<usize>>>;

fn site(kind: &str) -> PyResult<Site> {
    let sites: Sites = kind.parse().map_err(to_py)?;
    Ok(sites.iter().next().unwrap_or_default())
}

pub fn selection(units: UnitsByKind) -> Result<Selection> {
    let mut selection = Selection::new();
    for (kind, layers) in units {
        let site: Site = kind.parse()?;
        selection.extend(layers.into_iter().map(|(layer, units)| (LayerSite { layer, site }, units)));
    }
    Ok(selection)
}

#[pymethods]
impl Model {
    /// Loads a folder, run folder, Hub id or "builtin".
    #[staticmethod]
    fn load(py: Python<'_>, name: String, family: Option<String>) -> PyResult<Self> {
        let load = || {
            let model = upgrayedd::open(&name, &LoadOptions { family })?;
            warn(&model.notices)?;
            Ok(model)
        };
        detached(py, load).map(Self::of)
    }

    /// A model of arrays: Hugging Face name → (float32 array, dtype that it stands for).
    #[staticmethod]
    fn from_arrays(
        py: Python<'_>,
        config: String,
        arrays: BTreeMap<String, (Py<PyAny>, String)>,
    ) -> PyResult<Self> {
        let config: Value =
            serde_json::from_str(&config).map_err(|e| to_py(Error::malformed(format!("config: {e}"))))?;
        let typed = |(name, (array, dtype)): (String, (Py<PyAny>, String))| {
            Ok((name, (array, dtype.parse::<DType>()?)))
        };
        let arrays = Arrays(arrays.into_iter().map(typed).collect::<Result<_>>().map_err(to_py)?);
        let load = || {
            let model = upgrayedd::Model::from_weights(config, &arrays, &LoadOptions::default())?;
            warn(&model.notices)?;
            Ok(model)
        };
        detached(py, load).map(Self::of)
    }

    /// The folder with tokenizer and generation files.
    fn set_companions(&mut self, folder: Option<PathBuf>) {
        self.inner.companions = folder.map_or(Companions::None, Companions::Folder);
    }

    /// Another model with the same weights, which are shared until one changes.
    fn copy(&self) -> Self {
        Self { inner: self.inner.clone() }
    }

    fn save(&self, py: Python<'_>, folder: PathBuf, format: &str, dtype: Option<&str>) -> PyResult<()> {
        let formats = export::listed(format).map_err(to_py)?;
        let dtype = dtype.map(str::parse).transpose().map_err(to_py)?;
        detached(py, || export::export_all(&self.inner, &formats, dtype, &folder, None))
    }

    /// Another number after every change of weights or heads.
    fn state_id(&self) -> u64 {
        self.inner.state_id()
    }

    /// config.json of the model as it is, as JSON.
    fn config(&self) -> String {
        export::with_own_config(self.inner.clone()).config.to_string()
    }

    /// Everything that can be said in a line, as JSON; with what it costs at so many visible keys, if that is
    /// asked for.
    #[pyo3(signature = (context))]
    fn info(&self, context: Option<usize>) -> String {
        let model = &self.inner;
        let cost = context.map(|context| model.cost(context));
        let spec = &model.spec();
        let counts = |of: fn(&LayerUnits) -> usize| -> BTreeMap<String, usize> {
            model
                .units()
                .layers()
                .iter()
                .enumerate()
                .map(|(layer, units)| (model.layer_name(layer), of(units)))
                .collect()
        };
        let architecture = model.family().architecture_of(Task::of(spec.objective));
        json!({
            "classes": architecture.map(|a| json!({ "stock": a.class, "pruned": a.pruned, "auto": a.auto })),
            "family": model.family().model_type, "objective": spec.objective.name(), "dtype": model.dtype().name(),
            "layers": spec.num_layers(), "hidden_size": spec.hidden_size, "head_dim": spec.head_dim,
            "original_heads": counts(LayerUnits::total), "original_kv_heads": counts(LayerUnits::kv_total),
            "vocab_size": spec.vocab_size,
            "max_positions": spec.max_positions, "cost": cost,
        })
        .to_string()
    }

    /// Module paths of where units of a kind belong, layer by layer.
    fn layer_names(&self, kind: &str) -> PyResult<Vec<String>> {
        Ok(self.inner.paths().of(site(kind)?).to_vec())
    }

    /// How many units of a kind the layers had unpruned.
    fn original_units(&self, kind: &str) -> PyResult<Vec<usize>> {
        let site = site(kind)?;
        Ok(self.inner.units().layers().iter().map(|l| l.total_of(site)).collect())
    }

    /// Units of a kind that are there, by layer.
    fn active_units(&self, kind: &str) -> PyResult<Vec<Vec<usize>>> {
        let site = site(kind)?;
        Ok(self.inner.units().layers().iter().map(|l| l.units(site)).collect())
    }

    /// Pruned units of a kind that are in the archive, by layer.
    fn restorable_units(&self, kind: &str) -> PyResult<Vec<Vec<usize>>> {
        let site = site(kind)?;
        let mut layers = vec![Vec::new(); self.inner.spec().num_layers()];
        for unit in self.inner.archive().all(site) {
            layers[unit.layer].push(unit.index);
        }
        Ok(layers)
    }

    fn kv_group_of(&self, layer: usize, head: usize) -> PyResult<usize> {
        let known = self.inner.units().layers().get(layer);
        let Some(known) = known.filter(|known| head < known.total()) else {
            let heads = known.map_or(0, LayerUnits::total);
            return Err(to_py(Error::malformed(format!(
                "layer {layer} has no head {head}: it had {heads} heads"
            ))));
        };
        Ok(known.kv_group_of(head))
    }

    fn num_parameters(&self) -> usize {
        self.inner.num_parameters()
    }

    /// Hugging Face name → read-only array.
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, tensor, _) in export::tensors(&self.inner, false) {
            dict.set_item(name, array(py, tensor)?)?;
        }
        Ok(dict)
    }

    /// `units`: kind → layer → indices.
    fn prune(&mut self, units: UnitsByKind) -> PyResult<()> {
        let gone = selection(units).map_err(to_py)?;
        surgery::remove(&mut self.inner, None, &gone, 0, None).map_err(to_py)
    }

    /// `units`: kind → layer → indices.
    fn restore(&mut self, units: UnitsByKind) -> PyResult<()> {
        let back = selection(units).map_err(to_py)?;
        surgery::restore(&mut self.inner, None, &back, 1.0).map_err(to_py)
    }

    /// Logits `(batch, length, vocabulary)`, or `(batch, classes)`.
    fn logits<'py>(&self, py: Python<'py>, rows: Source) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let logits = detached(py, || {
            if self.inner.spec().objective == Objective::Encoder {
                return Err(Error::unsupported("a plain encoder has no logits: take its hidden_states"));
            }
            let batch = self.unlabelled(&rows)?;
            let logits = self.inner.logits(&batch, &mut Hooks::default())?;
            let classes = logits.cols();
            let per_position = logits.rows() == batch.batch * batch.len && logits.rows() != batch.batch;
            let shape = if per_position || batch.len == 1 && !self.classifies() {
                vec![batch.batch, batch.len, classes]
            } else {
                vec![batch.batch, classes]
            };
            Ok(logits.reshaped(&shape))
        })?;
        array(py, logits)
    }

    /// The last hidden states of one batch, `(batch, length, d)`.
    fn hidden_states<'py>(&self, py: Python<'py>, rows: Source) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let states = detached(py, || {
            let batch = self.unlabelled(&rows)?;
            let mut tape = Tape::inference(self.inner.device(), self.inner.params());
            let states = self.inner.hidden(&mut tape, &batch, &mut Hooks::default())?.tensor().clone();
            let width = states.cols();
            Ok(states.reshaped(&[batch.batch, batch.len, width]))
        })?;
        array(py, states)
    }

    /// Attention probabilities of one batch: per layer `(batch, active heads, length, length)`.
    fn attention_maps<'py>(
        &self,
        py: Python<'py>,
        rows: Source,
    ) -> PyResult<Vec<Bound<'py, PyArrayDyn<f32>>>> {
        let maps = detached(py, || Ok(self.inner.attention_maps(&self.unlabelled(&rows)?)?))?;
        maps.into_iter().map(|map| array(py, map)).collect()
    }

    /// Loss and what goes with it, as JSON.
    fn evaluate(
        &self,
        py: Python<'_>,
        data: Source,
        options: &str,
        batch_size: usize,
        max_windows: Option<usize>,
        reference: Option<PyRef<'_, Self>>,
    ) -> PyResult<String> {
        let options = data_options(options)?;
        let mut observer = PyObserver::new(None);
        let mut model = self.inner.clone();
        if let Some(reference) = reference {
            model.set_reference(Arc::new(reference.inner.clone())).map_err(to_py)?;
        }
        let result = detached(py, || {
            let dataset = data.dataset(&self.inner, &options, true)?;
            warn(&dataset.notices)?;
            let range = 0..dataset.len();
            let options =
                EvalOptions { batch_size, max_windows, window: options.sequence_length, reduce: &Alone };
            evaluate(&model, &dataset, &range, options, "evaluate", &mut observer)
        });
        if let Some(raised) = observer.raised {
            return Err(raised);
        }
        serde_json::to_string(&result?).map_err(|e| to_py(Error::malformed(e.to_string())))
    }

    /// A score by name: per layer the values of the units of a kind that are there. `limits`: batch size,
    /// sequences, seed.
    #[pyo3(signature = (name, kind, data, options, limits))]
    fn score(
        &self,
        py: Python<'_>,
        name: &str,
        kind: &str,
        data: Option<Source>,
        options: &str,
        limits: (usize, usize, u64),
    ) -> PyResult<Vec<Vec<f64>>> {
        let options = data_options(options)?;
        let (batch_size, samples, seed) = limits;
        let units = Sites::of(site(kind)?);
        detached(py, || {
            let score = score::named(name)?;
            let mut dataset = data.map(|d| d.dataset(&self.inner, &options, false)).transpose()?;
            dataset.iter().try_for_each(|d| warn(&d.notices))?;
            dataset.iter_mut().for_each(|d| d.spread_over(d.len()));
            let range = 0..dataset.as_ref().map_or(0, |d| d.len());
            let data = dataset.as_ref().map(|d| (d, &range));
            let model = &self.inner;
            let context = ScoreContext {
                model,
                units,
                data,
                batch_size,
                samples,
                seed,
                gradient_checkpointing: false,
                reduce: &Alone,
            };
            Ok(score.shown(&score.compute(&context)?).iter().map(|(_, scores)| scores.to_vec()).collect())
        })
    }

    /// What the return of each archived head promises: layer → head → gain.
    fn growth_gains(
        &self,
        py: Python<'_>,
        data: Source,
        options: &str,
        limits: (usize, usize),
    ) -> PyResult<BTreeMap<usize, BTreeMap<usize, f64>>> {
        let options = data_options(options)?;
        let (batch_size, samples) = limits;
        detached(py, || {
            let mut dataset = data.dataset(&self.inner, &options, false)?;
            warn(&dataset.notices)?;
            dataset.spread_over(dataset.len());
            let range = 0..dataset.len();
            let (model, data) = (&self.inner, Some((&dataset, &range)));
            let context = ScoreContext {
                model,
                units: Sites::default(),
                data,
                batch_size,
                samples,
                seed: 0,
                gradient_checkpointing: false,
                reduce: &Alone,
            };
            let mut gains: BTreeMap<usize, BTreeMap<usize, f64>> = BTreeMap::new();
            for (id, gain) in upgrayedd::grow::gains(&context)? {
                gains.entry(id.layer).or_default().insert(id.index, gain);
            }
            Ok(gains)
        })
    }

    /// Repairs writers towards `parent`: for each kind of units that are missing, per layer the share of the
    /// held-out error that is gone.
    fn refit(
        &mut self,
        py: Python<'_>,
        parent: PyRef<'_, Self>,
        data: Source,
        options: &str,
        limits: (usize, usize),
    ) -> PyResult<BTreeMap<&'static str, Vec<f64>>> {
        let options = data_options(options)?;
        let (batch_size, samples) = limits;
        let (model, parent) = (&mut self.inner, parent.inner.clone());
        detached(py, || {
            let mut dataset = data.dataset(model, &options, false)?;
            warn(&dataset.notices)?;
            dataset.spread_over(dataset.len());
            let indices: Vec<usize> = (0..dataset.len().min(samples)).collect();
            let repairs = refit(model, &parent, batches(&dataset, &indices, batch_size), &Alone)?;
            let repaired =
                |layers: Vec<upgrayedd::record::LayerRefit>| layers.into_iter().map(|l| l.repaired).collect();
            let of = |(writer, layers): (Writer, _)| (writer.site().name(), repaired(layers));
            Ok(repairs.into_iter().map(of).collect())
        })
    }

    fn generate(
        &self,
        py: Python<'_>,
        prompt: Vec<u32>,
        max_new_tokens: usize,
        sampling: (f32, f32, u64),
        end_tokens: Vec<u32>,
    ) -> PyResult<Vec<u32>> {
        let mut raised = None;
        let (temperature, top_p, seed) = sampling;
        let options = GenerateOptions { max_new_tokens, temperature, top_p, seed, end_tokens };
        let result = detached(py, || {
            self.inner.generate(&prompt, &options, |_| {
                raised = Python::attach(|py| py.check_signals()).err();
                raised.is_none()
            })
        });
        match raised {
            Some(error) => Err(error),
            None => Ok(result?.tokens),
        }
    }

    /// Tokens that end a text.
    fn end_tokens(&self) -> PyResult<Vec<u32>> {
        let tokens = || {
            warn(&self.inner.generation_settings()?.1)?;
            self.inner.end_tokens(&self.inner.tokenizer()?)
        };
        tokens().map_err(to_py)
    }

    fn tokenizer(&self, py: Python<'_>) -> PyResult<Tokenizer> {
        detached(py, || self.inner.tokenizer()).map(Tokenizer)
    }
}

impl Model {
    fn classifies(&self) -> bool {
        self.inner.spec().objective.outputs().is_some()
    }

    fn unlabelled(&self, rows: &Source) -> Result<Batch> {
        let dataset = rows.dataset(&self.inner, &DataOptions::default(), false)?;
        let all: Vec<usize> = (0..dataset.len()).collect();
        Ok(dataset.batch(&all, upgrayedd::data::Pass::Fixed))
    }
}

/// How sequences are made of texts, as JSON: `sequence_length`, `seed` and the options for reading files.
pub fn data_options(json: &str) -> PyResult<DataOptions> {
    #[derive(serde::Deserialize)]
    struct Given {
        sequence_length: Option<usize>,
        seed: Option<u64>,
        #[serde(flatten)]
        read: ReadOptions,
    }
    let standard = DataOptions::default();
    if json.is_empty() {
        return Ok(standard);
    }
    let Given { sequence_length, seed, read } = crate::pipeline::read_json(json)?;
    Ok(DataOptions {
        sequence_length: sequence_length.unwrap_or(standard.sequence_length),
        read,
        seed: seed.unwrap_or(standard.seed),
    })
}
