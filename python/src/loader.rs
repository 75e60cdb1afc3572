//! A run's data out of the caller's loader, which each epoch asks anew.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyList;
use upgrayedd::data::{BatchSource, Dataset, Part, Row, RunData, SetAside, Split, TakeBatch, many_unknown};
use upgrayedd::family::Family;
use upgrayedd::model::Batch;
use upgrayedd::spec::ModelSpec;
use upgrayedd::{Error, Model, Result, Tokenizer};

use crate::errors::from_py;
use crate::rows::{Reader, batch_key, row_key};

/// One pass over the caller's loader.
pub struct Epoch(Py<PyAny>);

impl Epoch {
    pub fn start(loader: &Py<PyAny>) -> Result<Self> {
        Python::attach(|py| Ok(Self(loader.bind(py).call_method0("epoch")?.unbind()))).map_err(from_py)
    }

    /// The next batch; `first` is the number of its first row, for messages.
    pub fn next(&mut self, reader: &Reader<'_>, first: usize) -> Result<Option<Vec<Row>>> {
        let batch = Python::attach(|py| -> PyResult<Option<Result<Vec<Row>>>> {
            let Some(batch) = self.0.bind(py).try_iter()?.next() else { return Ok(None) };
            let batch = batch?;
            let items = batch.cast::<PyList>()?;
            let rows: PyResult<Result<Vec<Row>>> =
                items.iter().enumerate().map(|(i, item)| reader.row(&item, first + i)).collect();
            Ok(Some(rows?))
        });
        batch.map_err(from_py)?.transpose()
    }
}

/// Training batches from the caller's loader. Batches that come as they did when the loader was first read
/// are told apart by their position; a loader that shuffles has the sequences that were set aside taken out
/// wherever they turn up.
struct LoaderBatches {
    loader: Py<PyAny>,
    family: &'static Family,
    spec: ModelSpec,
    train: Range<usize>,
    keys: Vec<u64>,
    set_aside: HashSet<u64>,
    rows_per_batch: usize,
}

impl BatchSource for LoaderBatches {
    fn batches_per_epoch(&self) -> usize {
        self.train.len()
    }

    fn epoch(&mut self, _epoch: u64, take: &mut TakeBatch<'_>) -> Result<()> {
        let reader = Reader { family: self.family, spec: &self.spec, labelled: true };
        let mut batches = Epoch::start(&self.loader)?;
        let (mut index, mut seen) = (0, 0);
        let mut rest: Vec<Row> = Vec::new();
        while let Some(rows) = batches.next(&reader, seen)? {
            seen += rows.len();
            let in_place = self.keys.get(index) == Some(&batch_key(&rows, self.spec.objective));
            let trains = self.train.contains(&index);
            index += 1;
            if in_place && trains && rest.is_empty() {
                if take(Batch::from_rows(&rows, 0))?.is_break() {
                    return Ok(());
                }
                continue;
            }
            rest.extend(rows.into_iter().filter(|row| {
                if in_place { trains } else { !self.set_aside.contains(&row_key(row, self.spec.objective)) }
            }));
            while rest.len() >= self.rows_per_batch {
                let rows: Vec<Row> = rest.drain(..self.rows_per_batch).collect();
                if take(Batch::from_rows(&rows, 0))?.is_break() {
                    return Ok(());
                }
            }
        }
        if !rest.is_empty() {
            let _ = take(Batch::from_rows(&rest, 0))?;
        }
        Ok(())
    }
}

/// How many batches at the end have `rows` sequences, at most `most`: the last of a loader may be short.
fn last_batches(counts: &[usize], rows: usize, most: usize) -> usize {
    let mut sum = 0;
    let enough = counts.iter().rev().position(|n| {
        sum += n;
        sum >= rows
    });
    enough.map_or(most, |before| (before + 1).min(most))
}

/// What one pass over the loader showed.
struct FirstPass {
    /// Per batch: its key and how many sequences it has.
    keys: Vec<u64>,
    counts: Vec<usize>,
    /// Batches at the end, from number `kept_from` on.
    kept: Vec<Vec<Row>>,
    kept_from: usize,
    /// Over all sequences, in any order: a loader may change it from epoch to epoch.
    hash: u64,
    /// How many in all, and how many of them are unknown.
    tokens: (usize, usize),
}

/// A tenth, but something.
fn tenth(n: usize) -> usize {
    (n / 10).max(1)
}

impl FirstPass {
    fn read(loader: &Py<PyAny>, model: &Model, unknown: Option<u32>) -> Result<Self> {
        let objective = model.spec().objective;
        let reader = Reader { family: model.family(), spec: model.spec(), labelled: true };
        let length: Option<usize> =
            Python::attach(|py| loader.bind(py).call_method0("length")?.extract()).map_err(from_py)?;
        let kept_from = length.map_or(0, |n| n.saturating_sub(2 * tenth(n) + 2));
        let mut read =
            Self { keys: vec![], counts: vec![], kept: vec![], kept_from, hash: 0, tokens: (0, 0) };
        let mut batches = Epoch::start(loader)?;
        let mut seen = 0;
        while let Some(rows) = batches.next(&reader, seen)? {
            seen += rows.len();
            for row in &rows {
                read.tokens.0 += row.tokens.len();
                read.tokens.1 += row.tokens.iter().filter(|t| Some(**t) == unknown).count();
                read.hash = read.hash.wrapping_add(row_key(row, objective));
            }
            read.keys.push(batch_key(&rows, objective));
            read.counts.push(rows.len());
            if read.keys.len() > kept_from {
                read.kept.push(rows);
            }
        }
        let count = read.keys.len();
        match length {
            Some(length) if length != count => Err(Error::data(format!(
                "the data loader says that it has {length} batches, but gave {count}"
            ))),
            _ => Ok(read),
        }
    }

    /// The batches to train on, and where those for scoring end.
    fn shares(&self, separate_eval: bool, calibration: usize) -> Result<(Range<usize>, usize)> {
        let count = self.keys.len();
        let (needed, what) = match separate_eval {
            true => (2, "training and calibration"),
            false => (3, "training, calibration and measurement"),
        };
        if count < needed {
            return Err(Error::data(format!(
                "the data loader gave {count} batches, but {what} need one each: give more or smaller batches"
            )));
        }
        let sequences: usize = self.counts.iter().sum();
        let (rows, most) = (tenth(count) * sequences / count, tenth(count) + 1);
        let measured = if separate_eval { 0 } else { last_batches(&self.counts, rows, most.min(count - 2)) };
        let rest = count - measured;
        let scored = last_batches(&self.counts[..rest], rows.min(calibration), most.min(rest - 1));
        Ok((0..rest - scored, rest))
    }

    /// The sequences of some of the batches at the end.
    fn rows(&self, batches: Range<usize>) -> Vec<Row> {
        let first = self.kept_from.min(self.keys.len());
        self.kept[batches.start - first..batches.end - first].iter().flatten().cloned().collect()
    }
}

/// Reads the loader once: a tenth of its sequences, in whole batches at its end, is held out (unless there is
/// data to measure on), a tenth before it, with about `calibration` sequences at most, serves for scoring.
/// `kept` are those of a run that is gone on with: a loader that shuffles has others in these places now.
pub fn loader_data(
    loader: &Py<PyAny>,
    eval: Option<Dataset>,
    model: &Model,
    calibration: usize,
    kept: Option<SetAside>,
) -> Result<RunData> {
    let objective = model.spec().objective;
    // Batches of ids need no tokenizer; one that is there knows what is unknown.
    let tokenizer = model.tokenizer().ok();
    let unknown = tokenizer.as_ref().and_then(Tokenizer::unknown);
    let read = FirstPass::read(loader, model, unknown)?;
    let (train, rest) = read.shares(eval.is_some(), calibration)?;
    let count = read.keys.len();
    let now = SetAside { calibration: read.rows(train.end..rest), held_out: read.rows(rest..count) };
    let set_aside = kept.unwrap_or_else(|| now.clone());
    for (number, row) in set_aside.calibration.iter().chain(&set_aside.held_out).enumerate() {
        row.check(model.spec(), number)?;
    }
    let all = |set: &SetAside| -> Vec<u64> {
        set.calibration.iter().chain(&set.held_out).map(|row| row_key(row, objective)).collect()
    };
    let aside = all(&set_aside);
    // Otherwise nothing is in the place that it had.
    let keys = if aside == all(&now) { read.keys } else { Vec::new() };
    let sequences: usize = read.counts[..train.end].iter().sum();
    let whole = |rows: &[Row]| {
        let data = Dataset::from_rows(rows.to_vec(), objective, 0);
        Part { range: 0..data.len(), data: Arc::new(data) }
    };
    let mut notices = eval.as_ref().map(|e| e.notices.clone()).unwrap_or_default();
    notices.extend(tokenizer.iter().flat_map(|tokenizer| many_unknown(tokenizer, read.tokens)));
    let (eval_hash, separate_eval_data) = (eval.as_ref().map(|e| e.hash.clone()), eval.is_some());
    let held_out = match eval {
        Some(data) => Part { range: 0..data.len(), data: Arc::new(data) },
        None => whole(&set_aside.held_out),
    };
    let scored = sequences..sequences + set_aside.calibration.len();
    let start = if separate_eval_data { 0 } else { scored.end };
    let split = Split {
        train: 0..sequences,
        calibration: scored,
        held_out: start..start + held_out.range.len(),
        separate_eval_data,
    };
    Ok(RunData {
        train: Box::new(LoaderBatches {
            loader: Python::attach(|py| loader.clone_ref(py)),
            family: model.family(),
            spec: model.spec().clone(),
            train,
            keys,
            set_aside: aside.into_iter().collect(),
            rows_per_batch: read.counts.iter().copied().max().unwrap_or(1).max(1),
        }),
        calibration: whole(&set_aside.calibration),
        held_out,
        split,
        hash: format!("{:016x}-{count}", read.hash),
        eval_hash,
        set_aside: Some(set_aside),
        notices,
    })
}
