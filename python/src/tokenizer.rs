//! A tokenizer, seen from Python.

use std::path::PathBuf;

use pyo3::prelude::*;
use serde_json::Value;
use upgrayedd::load::{is_model_folder, read_config};

use crate::errors::{to_py, warn};

/// Text ↔ token ids.
#[pyclass(module = "upgrayedd._native", frozen)]
pub struct Tokenizer(pub upgrayedd::Tokenizer);

#[pymethods]
impl Tokenizer {
    /// The tokenizer of a model folder.
    #[staticmethod]
    fn load(folder: PathBuf) -> PyResult<Self> {
        let config =
            if is_model_folder(&folder) { read_config(&folder).map_err(to_py)? } else { Value::Null };
        let load = || {
            let tokenizer = upgrayedd::Tokenizer::load(&folder, &config)?;
            warn(tokenizer.notices())?;
            Ok(Self(tokenizer))
        };
        load().map_err(to_py)
    }

    /// The text of a tokenizer_config.json that goes with `to_json`.
    fn to_config(&self) -> String {
        self.0.to_config().to_string()
    }

    /// Token ids, framed by special tokens if asked.
    fn encode(&self, text: &str, special: bool) -> PyResult<Vec<u32>> {
        let ids = self.0.encode(text).map_err(to_py)?;
        Ok(if special { [self.0.prefix(), &ids, self.0.suffix()].concat() } else { ids })
    }

    /// Token ids as a model reads them, cut to a limit where the tokenizer cuts.
    fn sequence(&self, text: &str, limit: usize) -> PyResult<Vec<u32>> {
        let (ids, _) = self.0.sequence(text, None, limit).map_err(to_py)?;
        Ok(if ids.is_empty() { [self.0.prefix(), self.0.suffix()].concat() } else { ids })
    }

    /// The text of a tokenizer.json.
    fn to_json(&self) -> PyResult<String> {
        self.0.to_json().map_err(to_py)
    }

    fn decode(&self, ids: Vec<u32>) -> PyResult<String> {
        self.0.decode(&ids).map_err(to_py)
    }

    /// Special tokens before and after a sequence.
    fn frame(&self) -> (Vec<u32>, Vec<u32>) {
        (self.0.prefix().to_vec(), self.0.suffix().to_vec())
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
}
