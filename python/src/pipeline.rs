//! Runs: configuration and parts from Python, events to Python, the summary back.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use upgrayedd::data::RunData;
use upgrayedd::pipeline::{CALIBRATION, Given};
use upgrayedd::strategy::Strategy;
use upgrayedd::{Error, OptimizeConfig, Pipeline, Summary};

use crate::data::Source;
use crate::errors::{detached, to_py};
use crate::model::{Model, data_options};
use crate::observer::PyObserver;
use crate::strategy::PyStrategy;

/// What Python gives a run, before it is turned into the core's parts.
struct Parts {
    model: upgrayedd::Model,
    /// Training data, data to measure on; absent if the configuration names files or the built-in text.
    data: Option<(Source, Option<Source>)>,
    options: String,
    strategy: Option<PyStrategy>,
}

impl Parts {
    fn new(
        model: &Model,
        data: Option<(Source, Option<Source>)>,
        options: String,
        strategy: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let strategy = strategy.map(PyStrategy::new).transpose()?;
        Ok(Self { model: model.inner.clone(), data, options, strategy })
    }

    /// `run`: the folder of the run that is gone on with.
    fn given(
        self,
        config: &OptimizeConfig,
        keep_model: bool,
        run: Option<&Path>,
    ) -> upgrayedd::Result<Given> {
        let Self { model, data, options, strategy } = self;
        let strategy: Option<Box<dyn Strategy>> = strategy.map(|s| -> Box<dyn Strategy> { Box::new(s) });
        let samples = match &strategy {
            Some(strategy) => strategy.calibration_samples(),
            None => config.build_strategy()?.calibration_samples(),
        };
        let mut options = data_options(&options).map_err(crate::errors::from_py)?;
        options.seed = config.run.seed;
        options.sequence_length = config.data.length_for(&model);
        let data = data
            .map(|(train, eval)| -> upgrayedd::Result<RunData> {
                let limits = (samples.unwrap_or(CALIBRATION), config.learn.batch_size);
                train.run_data(eval.as_ref(), &model, &options, limits, run)
            })
            .transpose()?;
        Ok(Given { model: keep_model.then_some(model), data, strategy, ..Given::default() })
    }
}

fn read_config(config: &str) -> PyResult<OptimizeConfig> {
    read_json(config)
}

/// Options in JSON; what is wrong with one is said by its name.
pub fn read_json<T: serde::de::DeserializeOwned>(options: &str) -> PyResult<T> {
    let mut json = serde_json::Deserializer::from_str(options);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // Where in the JSON is nothing that the caller has seen; which option is.
        let message = error.inner().to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        let option = error.path().iter().next().map(|_| format!("{}: ", error.path())).unwrap_or_default();
        to_py(Error::malformed(format!("{option}{message}")))
    })
}

fn outcome(result: PyResult<Summary>, observer: PyObserver) -> PyResult<String> {
    if let Some(raised) = observer.raised {
        return Err(raised);
    }
    serde_json::to_string(&result?).map_err(|e| to_py(Error::malformed(e.to_string())))
}

/// Refuses options that are unknown or out of range.
#[pyfunction]
pub fn check_config(config: &str) -> PyResult<()> {
    let config = read_config(config)?;
    config.check().and_then(|()| config.open_device().map(|_| ())).map_err(to_py)
}

/// Runs all cycles into the new folder `out`; returns the summary as JSON. `keep_model`: the model is not
/// what the configuration names, so the run keeps its weights.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one private call from Python")]
pub fn optimize(
    py: Python<'_>,
    config: &str,
    model: PyRef<'_, Model>,
    keep_model: bool,
    data: Option<(Source, Option<Source>)>,
    options: String,
    strategy: Option<Bound<'_, PyAny>>,
    handler: Option<Py<PyAny>>,
    group: Option<Bound<'_, PyAny>>,
    out: PathBuf,
) -> PyResult<String> {
    let config = read_config(config)?;
    let parts = Parts::new(&model, data, options, strategy)?;
    drop(model);
    let mut observer = PyObserver::new(handler);
    let Given { reduce, device, .. } = crate::group::given(group.as_ref(), &config)?;
    let result = detached(py, || {
        config.check()?;
        upgrayedd::files::check_new(&out)?;
        let given = Given { reduce, device, ..parts.given(&config, keep_model, None)? };
        Pipeline::with(config, given)?.run(&out, &mut observer)
    });
    outcome(result, observer)
}

/// How the run at `path` was started: its record as JSON, and its model as it was given.
#[pyfunction]
pub fn recorded(py: Python<'_>, path: PathBuf) -> PyResult<(String, Model)> {
    let (record, model) = detached(py, || Pipeline::recorded(&path))?;
    let json = serde_json::to_string(&record).map_err(|e| to_py(Error::malformed(e.to_string())))?;
    Ok((json, Model::of(model)))
}

/// Continues the run at `path` to the same result as an uninterrupted one.
#[pyfunction]
pub fn resume(
    py: Python<'_>,
    path: PathBuf,
    data: Option<(Source, Option<Source>)>,
    options: String,
    strategy: Option<Bound<'_, PyAny>>,
    handler: Option<Py<PyAny>>,
    group: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let (record, model) = detached(py, || Pipeline::recorded(&path))?;
    let parts = Parts::new(&Model::of(model), data, options, strategy)?;
    let mut observer = PyObserver::new(handler);
    let Given { reduce, device, .. } = crate::group::given(group.as_ref(), &record.config)?;
    let result = detached(py, || {
        let given = Given { reduce, device, ..parts.given(&record.config, record.given.model, Some(&path))? };
        Pipeline::resume_with(&path, given, &mut observer)
    });
    outcome(result, observer)
}
