//! Measuring: loss, perplexity, accuracy on held-out data, and speed on this machine.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use upgrayedd_nn::Tape;
use upgrayedd_nn::ops::IGNORE;

use crate::data::{Dataset, Pass};
use crate::event::{Control, Observer, Progress};
use crate::model::{Batch, Hooks, KvCache};
use crate::record::{Evaluation, Speed};
use crate::reduce::{Reduce, own};
use crate::spec::Objective;
use crate::units::rank_correlation;
use crate::{Error, Model, Result};

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct EvalOptions<'a> {
    /// Sequences at once.
    pub batch_size: usize,
    /// Sequences at most, from the first.
    pub max_windows: Option<usize>,
    /// Tokens per window, for the record.
    pub window: usize,
    /// Shares the batches with other processes.
    pub reduce: &'a dyn Reduce,
}

/// Measures `model` on sequences `range` of `data`. `task` names the work for progress.
///
/// ```
/// use upgrayedd::builtin;
/// use upgrayedd::data::{DataOptions, Dataset};
/// use upgrayedd::eval::{EvalOptions, evaluate};
/// use upgrayedd::event::Silent;
/// use upgrayedd::reduce::Alone;
///
/// let model = builtin::model()?;
/// let options = DataOptions { sequence_length: 64, ..DataOptions::default() };
/// let data = Dataset::from_documents(builtin::stories(3, 20), &model, &model.tokenizer()?, &options)?;
/// let options = EvalOptions { batch_size: 4, max_windows: None, window: 64, reduce: &Alone };
/// let found = evaluate(&model, &data, &(0..data.len()), options, "held out", &mut Silent)?;
/// assert!(found.loss < 1.0 && found.protocol == "chunks");
/// # Ok::<(), upgrayedd::Error>(())
/// ```
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for a plain encoder without a reference, [`Error::Data`] if the sequences
/// have nothing to predict, [`Error::NotFinite`] if the loss is not finite, [`Error::Interrupted`] if the
/// observer or whoever started the work stops it, and what `options.reduce` returns.
pub fn evaluate(
    model: &Model,
    data: &Dataset,
    range: &Range<usize>,
    options: EvalOptions<'_>,
    task: &str,
    observer: &mut dyn Observer,
) -> Result<Evaluation> {
    if model.spec().objective == Objective::Encoder && model.reference().is_none() {
        return Err(Error::does_not_fit(
            "this is a plain encoder, with no objective of its own: name a reference, the model whose hidden states it is to agree with",
        ));
    }
    if range.end > data.len() {
        return Err(Error::does_not_fit(format!(
            "sequences {range:?} are to be measured: there are {}",
            data.len()
        )));
    }
    let count = range.len().min(options.max_windows.unwrap_or(usize::MAX));
    let indices: Vec<usize> = range.clone().take(count).collect();
    let mut sums = Sums::default();
    let mut done = 0;
    for indices in own(options.reduce, indices.chunks(options.batch_size.max(1))) {
        if observer.control() == Control::Interrupt {
            return Err(Error::Interrupted);
        }
        sums.add(model, &data.batch(indices, Pass::Fixed))?;
        // The other processes are as far.
        done = (done + indices.len() * options.reduce.size()).min(count);
        observer.on_progress(Progress { task, done: done as u64, total: count as u64 });
    }
    model.device().settle()?;
    let Sums { loss, targets, right, found, missed, invented, predicted, wanted } = &mut sums;
    let mut shared = [*loss, *targets as f64, *right as f64, *found as f64, *missed as f64, *invented as f64];
    options.reduce.sum(&mut shared)?;
    options.reduce.gather(predicted)?;
    options.reduce.gather(wanted)?;
    let [loss, targets, right, found, missed, invented] = shared;
    if targets == 0.0 {
        return Err(Error::data("the data to measure on has nothing to predict"));
    }
    let loss = loss / targets;
    if !loss.is_finite() {
        return Err(Error::NotFinite(format!(
            "the loss on the measured data is {loss}: the model's weights give no finite prediction"
        )));
    }
    let objective = model.spec().objective;
    let regresses = objective.is_regression();
    Ok(Evaluation {
        loss,
        perplexity: matches!(objective, Objective::CausalLm | Objective::MaskedLm).then(|| loss.exp()),
        accuracy: (objective.outputs().is_some() && !regresses).then(|| right / targets),
        f1: matches!(objective, Objective::MultiLabel { .. })
            .then(|| 2.0 * found / (2.0 * found + missed + invented).max(1.0)),
        spearman: if regresses { rank_correlation(predicted, wanted) } else { None },
        tokens: targets as u64,
        sequences: count,
        protocol: protocol(objective).to_owned(),
        window: options.window,
        data_hash: data.hash.clone(),
    })
}

/// What a measurement is called.
fn protocol(objective: Objective) -> &'static str {
    match objective {
        Objective::MaskedLm => "masked",
        Objective::Classifier { labels: 1 } => "numbers",
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => "labels",
        Objective::Encoder => "hidden states",
        Objective::CausalLm => "chunks",
    }
}

/// What has been measured so far.
#[derive(Default)]
struct Sums {
    loss: f64,
    targets: u64,
    /// Sequences whose labels are right.
    right: u64,
    /// Of several labels: those that were found, those that were not, and those that are not there.
    found: u64,
    missed: u64,
    invented: u64,
    /// Of regression.
    predicted: Vec<f64>,
    wanted: Vec<f64>,
}

impl Sums {
    fn add(&mut self, model: &Model, batch: &Batch) -> Result<()> {
        match model.spec().objective {
            Objective::Classifier { labels: 1 } => {
                let logits = model.logits(batch, &mut Hooks::default())?;
                let pairs = logits
                    .data()
                    .iter()
                    .zip(&batch.values)
                    .zip(&batch.targets)
                    .filter(|(_, t)| **t != IGNORE);
                for ((&predicted, &wanted), _) in pairs {
                    let (predicted, wanted) = (f64::from(predicted), f64::from(wanted));
                    self.loss += (predicted - wanted).powi(2);
                    self.targets += 1;
                    self.predicted.push(predicted);
                    self.wanted.push(wanted);
                }
            }
            Objective::MultiLabel { labels } => {
                let logits = model.logits(batch, &mut Hooks::default())?;
                let rows = logits.data().chunks_exact(labels).zip(batch.values.chunks_exact(labels));
                for ((logits, wanted), _) in rows.zip(&batch.targets).filter(|(_, t)| **t != IGNORE) {
                    self.add_labels(logits, wanted);
                }
            }
            Objective::Classifier { .. } => {
                let (loss, right) = classify(model, batch)?;
                self.loss += loss;
                self.right += right;
                self.targets += batch.counted();
            }
            _ => {
                let mut tape = Tape::inference(model.device(), model.params());
                let loss = model.loss(&mut tape, batch, 1.0, &mut Hooks::default())?;
                self.loss += loss.sum.read();
                self.targets += loss.count;
            }
        }
        Ok(())
    }
}

impl Sums {
    /// One sequence of several labels; those at one half and above are said to be there.
    fn add_labels(&mut self, logits: &[f32], wanted: &[f32]) {
        let (mut loss, mut right) = (0.0, true);
        for (&logit, &wanted) in logits.iter().zip(wanted) {
            let x = f64::from(logit);
            loss += x.max(0.0) - x * f64::from(wanted) + (-x.abs()).exp().ln_1p();
            let (said, there) = (logit >= 0.0, wanted >= 0.5);
            self.found += u64::from(said && there);
            self.missed += u64::from(!said && there);
            self.invented += u64::from(said && !there);
            right &= said == there;
        }
        self.loss += loss / logits.len() as f64;
        self.right += u64::from(right);
        self.targets += 1;
    }
}

/// Sum of the losses and number of right answers.
fn classify(model: &Model, batch: &Batch) -> Result<(f64, u64)> {
    let logits = model.logits(batch, &mut Hooks::default())?;
    let (mut sum, mut right) = (0.0, 0);
    let labelled =
        logits.data().chunks_exact(logits.cols()).zip(&batch.targets).filter(|(_, label)| **label != IGNORE);
    for (row, &label) in labelled {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = row.iter().map(|v| f64::from(v - max).exp()).sum::<f64>().ln() + f64::from(max);
        sum += log_sum - f64::from(row[label as usize]);
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        right += u64::from(best == Some(label as usize));
    }
    Ok((sum, right))
}

/// Counted runs per model at most, after one that warms up.
const SPEED_RUNS: usize = 5;
/// No further runs begin after so long. If the first take as long, they are what counts.
const SPEED_TIME: Duration = Duration::from_secs(60);
const DECODED: usize = 24;

/// Times several models in turn (A B A B …), so that a drifting machine is fair to all; medians.
///
/// # Errors
/// Returns [`Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If `length` is more than a model that has a table of positions takes.
pub fn measure_speed(models: &[&Model], batch: usize, length: usize) -> Result<Vec<Speed>> {
    let mut forward: Vec<Vec<f64>> = vec![Vec::new(); models.len()];
    let mut decode: Vec<Vec<f64>> = vec![Vec::new(); models.len()];
    let start = Instant::now();
    for run in 0..=SPEED_RUNS {
        for (i, model) in models.iter().enumerate() {
            let seconds = (time_forward(model, batch, length)?, time_decode(model, length)?);
            // The one before warmed up.
            if run == 1 {
                forward[i].clear();
                decode[i].clear();
            }
            forward[i].push(seconds.0);
            decode[i].extend(seconds.1);
        }
        if start.elapsed() >= SPEED_TIME {
            break;
        }
    }
    let speed = |(mut forward, mut decode): (Vec<f64>, Vec<f64>)| Speed {
        forward: (batch * length) as f64 / median(&mut forward),
        decode: (!decode.is_empty()).then(|| 1.0 / median(&mut decode)),
        batch,
        length,
    };
    Ok(forward.into_iter().zip(decode).map(speed).collect())
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn example(model: &Model, batch: usize, length: usize) -> Batch {
    let tokens = (0..batch * length).map(|i| (i * 31 % model.spec().vocab_size) as u32).collect();
    Batch { tokens: Arc::new(tokens), batch, len: length, ..Batch::default() }
}

fn time_forward(model: &Model, batch: usize, length: usize) -> Result<f64> {
    let input = example(model, batch, length);
    model.device().settle()?;
    let start = Instant::now();
    let mut tape = Tape::inference(model.device(), model.params());
    model.hidden(&mut tape, &input, &mut Hooks::default())?;
    model.device().settle()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds per token, or `None` for a model that does not generate.
fn time_decode(model: &Model, length: usize) -> Result<Option<f64>> {
    if model.spec().objective != Objective::CausalLm {
        return Ok(None);
    }
    let prompt = (length / 2).min(model.spec().max_positions.saturating_sub(DECODED)).max(1);
    let count = DECODED.min(model.spec().max_positions - prompt);
    if count == 0 {
        return Ok(None);
    }
    let mut cache = KvCache::new(model, prompt + count);
    let mut step = |length: usize| {
        model.last_logits(
            &example(model, 1, length),
            &mut Hooks { cache: Some(&mut cache), ..Hooks::default() },
        )
    };
    step(prompt)?;
    let start = Instant::now();
    for _ in 0..count {
        step(1)?;
    }
    Ok(Some(start.elapsed().as_secs_f64() / count as f64))
}
