//! Python's batches and texts → the core's data.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use upgrayedd::data::{DataOptions, Dataset, ReadOptions, RunData};
use upgrayedd::pipeline::read_set_aside;
use upgrayedd::{Error, Model, Result, Tokenizer};

use crate::errors::from_py;
use crate::loader::{Epoch, loader_data};
use crate::rows::Reader;

/// Data as `upgrayedd._data` hands it over.
pub enum Source {
    /// An object with `epoch()`, an iterator over lists of rows, and `length()`.
    Loader(Py<PyAny>),
    /// An iterator over strings.
    Texts(Py<PyAny>),
    /// Files.
    Files(Vec<PathBuf>),
}

impl<'py> FromPyObject<'_, 'py> for Source {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let (kind, payload): (String, Bound<'py, PyAny>) = object.extract()?;
        Ok(match kind.as_str() {
            "loader" => Self::Loader(payload.unbind()),
            "texts" => Self::Texts(payload.unbind()),
            _ => Self::Files(payload.extract()?),
        })
    }
}

impl Source {
    /// All of it as one dataset. `labelled` refuses batches without labels where the model needs them.
    pub fn dataset(&self, model: &Model, options: &DataOptions, labelled: bool) -> Result<Dataset> {
        match self {
            Self::Files(files) => Dataset::open(files, model, &model.tokenizer()?, options),
            Self::Texts(texts) => texts_dataset(texts, model, &model.tokenizer()?, options),
            Self::Loader(loader) => {
                let reader = Reader { family: model.family(), spec: model.spec(), labelled };
                let mut rows = Vec::new();
                let mut batches = Epoch::start(loader)?;
                while let Some(batch) = batches.next(&reader, rows.len())? {
                    rows.extend(batch);
                }
                if rows.is_empty() {
                    return Err(Error::data("the data loader gave no batches"));
                }
                Ok(Dataset::from_rows(rows, model.spec().objective, 0))
            }
        }
    }

    /// Training, calibration and held-out parts for a run; of a loader those that `run` has kept, if that is
    /// to be gone on with.
    pub fn run_data(
        &self,
        eval: Option<&Self>,
        model: &Model,
        options: &DataOptions,
        (calibration, batch_size): (usize, usize),
        run: Option<&Path>,
    ) -> Result<RunData> {
        let eval = eval.map(|e| e.dataset(model, options, true)).transpose()?;
        match self {
            Self::Loader(loader) => {
                loader_data(loader, eval, model, calibration, run.map(read_set_aside).transpose()?)
            }
            _ => {
                let data = self.dataset(model, options, true)?;
                let mut data = RunData::split(data, eval, calibration, batch_size, options.seed)?;
                // How files are read is not on record where a program reads them: what is known of the data
                // has to tell.
                let ReadOptions {
                    text_field,
                    text_pair_field,
                    label_field,
                    delimiter,
                    columns,
                    documents,
                    chat_loss,
                } = &options.read;
                let reading = format!(
                    "{text_field:?} {text_pair_field:?} {label_field:?} {delimiter:?} {columns:?} {documents:?} {chat_loss:?}"
                );
                data.hash = format!("{} {}", data.hash, &blake3::hash(reading.as_bytes()).to_hex()[..16]);
                Ok(data)
            }
        }
    }
}

fn texts_dataset(
    texts: &Py<PyAny>,
    model: &Model,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Dataset> {
    let iterator = Python::attach(|py| Ok(texts.bind(py).try_iter()?.unbind())).map_err(from_py)?;
    let mut failure = None;
    let strings = std::iter::from_fn(|| {
        let next = Python::attach(|py| {
            iterator.bind(py).clone().next().map(|item| item?.extract::<String>()).transpose()
        });
        next.unwrap_or_else(|error| {
            failure = Some(error);
            None
        })
    });
    let dataset = Dataset::from_documents(strings, model, tokenizer, options);
    match failure {
        Some(error) => Err(from_py(error)),
        None => dataset,
    }
}
