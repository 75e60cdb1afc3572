//! The native half of the Python package: translates between Python objects and the core, and decides
//! nothing.

mod data;
mod errors;
mod group;
mod loader;
mod model;
mod observer;
mod pipeline;
mod rows;
mod strategy;
mod tokenizer;

use std::collections::BTreeMap;

use pyo3::prelude::*;
use upgrayedd::family::{self, Family};

/// The core of Upgrayedd. Private: use the package `upgrayedd`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::pipeline::{check_config, optimize, recorded, resume};
    #[pymodule_export]
    use super::tokenizer::Tokenizer;

    #[pymodule_export]
    use super::strategy::{check_strategy, select_to_grow, select_to_prune};
    #[pymodule_export]
    use super::{main, modeling_files, option_names, set_num_threads, strategy_names};

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // Panics become exceptions (`errors::detached`): what they print would only repeat it.
        std::panic::set_hook(Box::new(|_| {}));
        module.add("OPEN_ENDED", upgrayedd::config::OPEN_ENDED)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// Runs the command line, shared with the other processes of `group`, and returns its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<std::ffi::OsString>, group: Option<Bound<'_, PyAny>>) -> PyResult<u8> {
    let shared = group.as_ref().map(group::shared).transpose()?;
    errors::detached(py, || Ok(upgrayedd_cli::run(arguments, shared)))
}

/// Names of the options of a run.
#[pyfunction]
fn option_names() -> Vec<&'static str> {
    upgrayedd::OptimizeConfig::names()
}

/// The modeling file of every family, by the name of its module.
#[pyfunction]
fn modeling_files() -> BTreeMap<String, String> {
    let file = |family: &Family| (family.model_type.replace('-', "_"), family.modeling.text());
    family::all().into_iter().map(file).collect()
}

/// Names of the built-in strategies.
#[pyfunction]
fn strategy_names() -> Vec<&'static str> {
    upgrayedd::strategy::ALL.iter().map(|s| s.name).collect()
}

/// Sets the number of threads, once, before any work.
#[pyfunction]
fn set_num_threads(count: usize) -> PyResult<()> {
    if count == 0 {
        return Err(errors::to_py(upgrayedd::Error::out_of_range(
            "the number of threads",
            count,
            "at least 1",
        )));
    }
    rayon::ThreadPoolBuilder::new().num_threads(count).build_global().map_err(|_| {
        errors::to_py(upgrayedd::Error::malformed(
            "the threads have been started already: set their number before any work",
        ))
    })
}
