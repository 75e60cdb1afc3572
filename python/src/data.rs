//! Python's batches and texts → the core's data. Each epoch asks the caller's loader anew.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use pyo3::types::PyList;
use upgrayedd::data::{
    BatchSource, DataOptions, Dataset, Part, ReadOptions, Row, RunData, SetAside, Split, TakeBatch, Targets,
    many_unknown,
};
use upgrayedd::family::Family;
use upgrayedd::model::Batch;
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::pipeline::read_set_aside;
use upgrayedd::spec::{ModelSpec, Objective};
use upgrayedd::{Error, Model, Result, Tokenizer};

use crate::errors::from_py;

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
                let ReadOptions { text_field, text_pair_field, label_field, delimiter, columns, documents } =
                    &options.read;
                let reading = format!(
                    "{text_field:?} {text_pair_field:?} {label_field:?} {delimiter:?} {columns:?} {documents:?}"
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

/// Token ids, attention mask, token types.
type Inputs<'a> = (&'a [i64], Option<&'a [i64]>, Option<&'a [i64]>);

/// What a caller's labels are.
enum Labels<'a> {
    None,
    Classes(&'a [i64]),
    Numbers(&'a [f64]),
}

/// How rows are read for a model.
struct Reader<'a> {
    family: &'static Family,
    spec: &'a ModelSpec,
    labelled: bool,
}

impl Reader<'_> {
    /// `(tokens, mask or None, labels or None, token types or None)`, each an int64 array; labels may be
    /// float64.
    fn row(&self, item: &Bound<'_, PyAny>, number: usize) -> PyResult<Result<Row>> {
        type Array<'py> = PyReadonlyArray1<'py, i64>;
        type Item<'py> = (Array<'py>, Option<Array<'py>>, Option<Bound<'py, PyAny>>, Option<Array<'py>>);
        let (tokens, mask, labels, types): Item<'_> = item.extract()?;
        let tokens = tokens.as_slice()?;
        let mask = mask.as_ref().map(|m| m.as_slice()).transpose()?;
        let types = types.as_ref().map(|t| t.as_slice()).transpose()?;
        if let Some(numbers) = labels.as_ref().and_then(|l| l.extract::<PyReadonlyArray1<'_, f64>>().ok()) {
            return Ok(self.build((tokens, mask, types), Labels::Numbers(numbers.as_slice()?), number));
        }
        let labels = labels.map(|l| l.extract::<Array<'_>>()).transpose()?;
        let labels = labels.as_ref().map(|l| l.as_slice()).transpose()?;
        Ok(self.build((tokens, mask, types), labels.map_or(Labels::None, Labels::Classes), number))
    }

    fn build(&self, (tokens, mask, types): Inputs<'_>, labels: Labels<'_>, number: usize) -> Result<Row> {
        let refuse = |message: String| Error::data(format!("sequence {number} of the data: {message}"));
        let ids: Option<Vec<u32>> = tokens.iter().map(|&t| u32::try_from(t).ok()).collect();
        let ids = ids.ok_or_else(|| refuse("has a negative token id".to_owned()))?;
        if types.is_some() && self.family.types_are_tokens {
            return Err(refuse(format!(
                "has token_type_ids, which transformers adds to a {} model's tokens through their embedding: leave them out",
                self.family.model_type
            )));
        }
        if mask.is_some_and(|m| m.len() != ids.len()) {
            return Err(refuse("attention_mask and input_ids differ in length".to_owned()));
        }
        if let Some(value) = mask.and_then(|m| m.iter().find(|v| !(0..=1).contains(*v))) {
            return Err(refuse(format!(
                "attention_mask holds {value}: expected 1 for tokens and 0 for padding (numbers of packed documents are not supported)"
            )));
        }
        let mask: Option<Vec<u8>> = mask.map(|m| m.iter().map(|&v| u8::from(v != 0)).collect());
        let types: Option<Option<Vec<u32>>> =
            types.map(|t| t.iter().map(|&t| u32::try_from(t).ok()).collect());
        let types = match types {
            Some(None) => return Err(refuse("has a negative token type".to_owned())),
            types => types.flatten().filter(|t| t.iter().any(|t| *t > 0)),
        };
        let regresses = self.spec.objective.is_regression();
        let classes;
        let (labels, values) = match labels {
            Labels::None => (None, None),
            // Whole numbers, which may mean classes elsewhere.
            Labels::Classes(classes) if regresses => {
                (None, Some(classes.iter().map(|&v| v as f32).collect::<Vec<_>>()))
            }
            Labels::Classes(classes) => (Some(classes), None),
            Labels::Numbers(numbers)
                if !regresses && numbers.iter().all(|v| v.fract() == 0.0 && v.abs() < 1e15) =>
            {
                classes = numbers.iter().map(|&v| v as i64).collect::<Vec<_>>();
                (Some(&classes[..]), None)
            }
            Labels::Numbers(numbers) => (None, Some(numbers.iter().map(|&v| v as f32).collect())),
        };
        let per_token = |labels: &[i64]| {
            let message = || refuse(format!("has {} labels for {} tokens", labels.len(), ids.len()));
            if labels.len() == ids.len() { Ok(()) } else { Err(message()) }
        };
        let mut row = match (self.spec.objective, labels) {
            // Labels that come along are for something else.
            (Objective::Encoder, _) => Row::every(ids, mask),
            _ if values.is_some() => match (regresses, values.as_deref()) {
                (true, Some(&[value])) => {
                    Row { targets: Targets::Value(value), tokens: ids, mask, types: None }
                }
                (true, values) => {
                    return Err(refuse(format!(
                        "has {} labels: regression takes one a sequence",
                        values.map_or(0, <[_]>::len)
                    )));
                }
                (false, _) => return Err(refuse("has labels that are not integers".to_owned())),
            },
            (Objective::CausalLm, labels) => {
                labels.map_or(Ok(()), per_token)?;
                if let Some(labels) = labels {
                    check_causal(labels, tokens, mask.as_deref()).map_err(refuse)?;
                }
                Row::causal(ids, mask, labels)
            }
            (Objective::MaskedLm, Some(labels)) => {
                per_token(labels)?;
                Row { targets: Targets::Tokens(labels.to_vec()), tokens: ids, mask, types: None }
            }
            (Objective::Classifier { .. }, Some(&[label])) => {
                Row { targets: Targets::Label(label), tokens: ids, mask, types: None }
            }
            (Objective::Classifier { .. }, Some(labels)) => {
                return Err(refuse(format!(
                    "has {} labels: a classifier takes one a sequence",
                    labels.len()
                )));
            }
            (Objective::Classifier { .. }, None) if !self.labelled => {
                Row { targets: Targets::Label(IGNORE), tokens: ids, mask, types: None }
            }
            (_, None) if !self.labelled => {
                Row { targets: Targets::Tokens(vec![IGNORE; ids.len()]), tokens: ids, mask, types: None }
            }
            (objective, _) => {
                return Err(refuse(format!(
                    "has no labels, which a {} model learns from: give batches with labels, or texts",
                    objective.name()
                )));
            }
        };
        row.types = types;
        row.check(self.spec, number)?;
        Ok(row)
    }
}

/// Refuses labels of a causal model that transformers would predict from nothing, and those that are a mask.
fn check_causal(labels: &[i64], tokens: &[i64], mask: Option<&[u8]>) -> std::result::Result<(), String> {
    let begins = mask.map_or(0, |m| m.iter().position(|v| *v != 0).unwrap_or(m.len()));
    if let Some(at) = (1..=begins.min(labels.len().saturating_sub(1))).find(|&i| labels[i] != IGNORE) {
        return Err(format!(
            "the label at position {at} would be predicted from padding alone: set it to {IGNORE}, pad at the end, or leave labels out"
        ));
    }
    if labels != tokens && tokens.iter().any(|t| *t > 1) && labels.iter().all(|l| (0..=1).contains(l)) {
        return Err("has labels of 0 and 1 only, which look like an attention mask: in a tuple the second is labels, \
                    so give dictionaries, or (input_ids, attention_mask, labels)"
            .to_owned());
    }
    Ok(())
}

/// One pass over the caller's loader.
struct Epoch(Py<PyAny>);

impl Epoch {
    fn start(loader: &Py<PyAny>) -> Result<Self> {
        Python::attach(|py| Ok(Self(loader.bind(py).call_method0("epoch")?.unbind()))).map_err(from_py)
    }

    /// The next batch; `first` is the number of its first row, for messages.
    fn next(&mut self, reader: &Reader<'_>, first: usize) -> Result<Option<Vec<Row>>> {
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

/// Identifies a sequence whatever batch it comes in, however its tokens are masked this time, and however far
/// it is padded.
fn row_key(row: &Row, objective: Objective) -> u64 {
    let real: Vec<usize> =
        (0..row.tokens.len()).filter(|&i| row.mask.as_ref().is_none_or(|m| m[i] != 0)).collect();
    // Where it stands among its neighbours, not how far the batch is padded in front of it.
    let places: Vec<i64> = real.iter().map(|i| (i - real[0]) as i64).collect();
    let mut hasher = blake3::Hasher::new();
    let mut add = |values: &[i64]| {
        hasher.update(&values.len().to_le_bytes()).update(bytemuck::cast_slice(values));
    };
    let tokens = |original: &dyn Fn(usize) -> i64| real.iter().map(|&i| original(i)).collect::<Vec<i64>>();
    match (&row.targets, objective) {
        // A masked token's label is the token itself.
        (Targets::Tokens(targets), Objective::MaskedLm) => {
            add(&tokens(&|i| if targets[i] == IGNORE { i64::from(row.tokens[i]) } else { targets[i] }));
        }
        (Targets::Tokens(targets), _) => {
            add(&tokens(&|i| i64::from(row.tokens[i])));
            add(&tokens(&|i| targets[i]));
        }
        (Targets::Label(label), _) => {
            add(&tokens(&|i| i64::from(row.tokens[i])));
            add(&[*label]);
        }
        (Targets::Value(value), _) => {
            add(&tokens(&|i| i64::from(row.tokens[i])));
            add(&[i64::from(value.to_bits())]);
        }
    }
    add(&places);
    if let Some(types) = &row.types {
        add(&tokens(&|i| i64::from(types[i])));
    }
    let hash = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
}

fn batch_key(rows: &[Row], objective: Objective) -> u64 {
    rows.iter().fold(0, |key, row| key.rotate_left(7) ^ row_key(row, objective))
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

/// Reads the loader once: a tenth of its sequences, in whole batches at its end, is held out (unless there is
/// data to measure on), a tenth before it, with about `calibration` sequences at most, serves for scoring.
/// `kept` are those of a run that is gone on with: a loader that shuffles has others in these places now.
fn loader_data(
    loader: &Py<PyAny>,
    eval: Option<Dataset>,
    model: &Model,
    calibration: usize,
    kept: Option<SetAside>,
) -> Result<RunData> {
    let (reader, objective) =
        (Reader { family: model.family(), spec: model.spec(), labelled: true }, model.spec().objective);
    let length: Option<usize> =
        Python::attach(|py| loader.bind(py).call_method0("length")?.extract()).map_err(from_py)?;
    let tenth = |n: usize| (n / 10).max(1);
    let last_from = length.map_or(0, |n| n.saturating_sub(2 * tenth(n) + 2));
    let (mut keys, mut counts, mut last, mut hash) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
    // Batches of ids need no tokenizer; one that is there knows what is unknown.
    let tokenizer = model.tokenizer().ok();
    let unknown = tokenizer.as_ref().and_then(Tokenizer::unknown);
    let mut tokens = (0, 0);
    let mut batches = Epoch::start(loader)?;
    let mut seen = 0;
    while let Some(rows) = batches.next(&reader, seen)? {
        seen += rows.len();
        for row in &rows {
            tokens.0 += row.tokens.len();
            tokens.1 += row.tokens.iter().filter(|t| Some(**t) == unknown).count();
        }
        // A sum does not depend on the order, which a loader may change from epoch to epoch.
        hash = rows.iter().fold(hash, |sum, row| sum.wrapping_add(row_key(row, objective)));
        keys.push(batch_key(&rows, objective));
        counts.push(rows.len());
        if keys.len() > last_from {
            last.push(rows);
        }
    }
    let count = keys.len();
    if let Some(length) = length.filter(|n| *n != count) {
        return Err(Error::data(format!(
            "the data loader says that it has {length} batches, but gave {count}"
        )));
    }
    let needed = if eval.is_some() { 2 } else { 3 };
    if count < needed {
        return Err(Error::data(format!(
            "the data loader gave {count} batches, but {} need one each: give more or smaller batches",
            if eval.is_some() { "training and calibration" } else { "training, calibration and measurement" }
        )));
    }
    let rows_per_batch = counts.iter().copied().max().unwrap_or(1).max(1);
    let (rows, most) = (tenth(count) * seen / count, tenth(count) + 1);
    let rest = if eval.is_some() { count } else { count - last_batches(&counts, rows, most.min(count - 2)) };
    let train = 0..rest - last_batches(&counts[..rest], rows.min(calibration), most.min(rest - 1));
    let part = |range: Range<usize>| -> Vec<Row> {
        let first = last_from.min(count);
        last[range.start - first..range.end - first].iter().flatten().cloned().collect()
    };
    let now = SetAside { calibration: part(train.end..rest), held_out: part(rest..count) };
    let set_aside = kept.unwrap_or_else(|| now.clone());
    for (number, row) in set_aside.calibration.iter().chain(&set_aside.held_out).enumerate() {
        row.check(model.spec(), number)?;
    }
    let all = |set: &SetAside| -> Vec<u64> {
        set.calibration.iter().chain(&set.held_out).map(|row| row_key(row, objective)).collect()
    };
    let aside = all(&set_aside);
    if aside != all(&now) {
        // Nothing is in the place that it had.
        keys.clear();
    }
    let SetAside { calibration: scored, held_out: measured } = set_aside.clone();
    let sequences: usize = counts[..train.end].iter().sum();
    let scored_range = sequences..sequences + scored.len();
    let whole = |rows: Vec<Row>| {
        let data = Dataset::from_rows(rows, model.spec().objective, 0);
        Part { range: 0..data.len(), data: Arc::new(data) }
    };
    let separate = eval.is_some();
    let eval_hash = eval.as_ref().map(|e| e.hash.clone());
    let mut notices = eval.as_ref().map(|e| e.notices.clone()).unwrap_or_default();
    notices.extend(tokenizer.iter().flat_map(|tokenizer| many_unknown(tokenizer, tokens)));
    let held_out = match eval {
        Some(data) => Part { range: 0..data.len(), data: Arc::new(data) },
        None => whole(measured),
    };
    let start = if separate { 0 } else { scored_range.end };
    let split = Split {
        train: 0..sequences,
        calibration: scored_range,
        held_out: start..start + held_out.range.len(),
        separate_eval_data: separate,
    };
    let loader = Python::attach(|py| loader.clone_ref(py));
    Ok(RunData {
        train: Box::new(LoaderBatches {
            loader,
            family: model.family(),
            spec: model.spec().clone(),
            train,
            keys,
            set_aside: aside.into_iter().collect(),
            rows_per_batch,
        }),
        calibration: whole(scored),
        held_out,
        split,
        hash: format!("{hash:016x}-{count}"),
        eval_hash,
        set_aside: Some(set_aside),
        notices,
    })
}
