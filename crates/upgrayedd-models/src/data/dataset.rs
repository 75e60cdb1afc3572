//! Sequences to learn from or to be measured on.

use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::masking::Masking;
use super::options::{DataOptions, Documents, Pass};
use super::rows::{Row, Targets};
use super::tokens::{self, TokenStore};
use super::{chat, labelled};
use crate::model::{Batch, Model};
use crate::spec::Objective;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

#[derive(Debug)]
enum Source {
    /// Windows `(first token, tokens)` over a token stream.
    Windows(TokenStore, Windows),
    Rows(Vec<Row>),
}

impl Source {
    /// Tokens, and how many of them are this one.
    fn share_of(&self, token: u32) -> (usize, usize) {
        match self {
            Self::Windows(store, _) => (store.len(), store.count_of(token)),
            Self::Rows(rows) => {
                let tokens = rows.iter().flat_map(|r| &r.tokens);
                (tokens.clone().count(), tokens.filter(|t| **t == token).count())
            }
        }
    }

    fn largest_token(&self) -> Option<u32> {
        match self {
            Self::Windows(store, _) => store.largest_token(),
            Self::Rows(rows) => rows.iter().flat_map(|r| &r.tokens).copied().max(),
        }
    }
}

#[derive(Debug)]
enum Windows {
    /// All `length` long, end to end.
    Even {
        length: usize,
        count: usize,
    },
    Ragged(Vec<(u64, u32)>),
}

/// Sequences to learn from or to be measured on, in file order.
///
/// ```no_run
/// use upgrayedd_models::Model;
/// use upgrayedd_models::data::{DataOptions, Dataset, Pass};
/// use upgrayedd_models::load::LoadOptions;
///
/// let model = Model::load("SmolLM2-135M".as_ref(), &LoadOptions::default())?;
/// let options = DataOptions { sequence_length: 512, ..DataOptions::default() };
/// let data = Dataset::open(&["my-text.txt".into()], &model, &model.tokenizer()?, &options)?;
/// let batch = data.batch(&[0, 1], Pass::Fixed);
/// assert_eq!((batch.batch, batch.len), (2, 512));
/// # Ok::<(), upgrayedd_models::Error>(())
/// ```
#[derive(Debug)]
pub struct Dataset {
    source: Source,
    objective: Objective,
    masking: Option<Masking>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    pad: u32,
    /// Sequences whose order is spread, and the step from one to the next.
    spread: (usize, usize),
    /// blake3 of the files' contents; of all of them together if there are several.
    pub hash: String,
    /// blake3 of each file's contents.
    pub file_hashes: Vec<String>,
    /// What was passed over, and how much of the text the vocabulary does not have, a line each.
    pub notices: Vec<String>,
}

/// The share of unknown tokens from which on a user is told.
const MANY_UNKNOWN: f64 = 0.03;

/// Which sequences serve what, by index; those that are not held out are in the order of
/// [`Dataset::spread_over`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Learned from.
    pub train: Range<usize>,
    /// Scored on.
    pub calibration: Range<usize>,
    /// Measured on; indices of the evaluation files if these are others.
    pub held_out: Range<usize>,
    /// Whether `held_out` counts in files of its own.
    pub separate_eval_data: bool,
}

impl Dataset {
    /// Reads files for the model's objective. Text is tokenised once and cached.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if there are no files, too little text, text that the tokenizer cannot take, a
    /// token or a class that the model does not have, or options for another kind of file;
    /// [`Error::DoesNotFit`] if a sequence is too long or too short for the model, or an option or the
    /// tokenizer is not for its objective; [`Error::File`] if a file is not what its name says, or its fields
    /// or labels are not what is asked for; [`Error::Io`] if the system cannot read one or write the token
    /// cache; [`Error::Malformed`] if there is no place for the cache; and [`Error::Interrupted`] if the work
    /// is stopped.
    pub fn open(
        files: &[PathBuf],
        model: &Model,
        tokenizer: &Tokenizer,
        options: &DataOptions,
    ) -> Result<Self> {
        if files.is_empty() {
            return Err(Error::data("no data files given"));
        }
        Self::build(model, tokenizer, options, |in_stream, room| {
            if model.spec.objective.outputs().is_some() {
                let read = labelled::read(files, model, tokenizer, options)?;
                return Ok((Source::Rows(read.rows), tokens::hash_files(files)?, read.notices));
            }
            if model.spec.objective == Objective::CausalLm && chat::are_conversations(files, options)? {
                let read = chat::read(files, model, tokenizer, options)?;
                return Ok((Source::Rows(read.rows), tokens::hash_files(files)?, read.notices));
            }
            if let Some(field) = &options.read.text_pair_field {
                return Err(Error::does_not_fit(format!(
                    "the second text in {field:?} is for classifiers: a {} model learns from one text",
                    model.spec.objective.name()
                )));
            }
            windows(TokenStore::open(files, tokenizer, options, in_stream)?, options, room)
        })
    }

    /// Text in memory, a document each, for language models.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for a classifier, which learns from labels, for too little text, for text that
    /// the tokenizer cannot take, and for a token that the model does not have; [`Error::DoesNotFit`] if a
    /// sequence is too long or too short for the model, or the tokenizer is not for its objective; and
    /// [`Error::Interrupted`] if the work is stopped.
    pub fn from_documents(
        texts: impl Iterator<Item = String>,
        model: &Model,
        tokenizer: &Tokenizer,
        options: &DataOptions,
    ) -> Result<Self> {
        if model.spec.objective.outputs().is_some() {
            return Err(Error::data("a classifier learns from labelled examples, not from plain text"));
        }
        Self::build(model, tokenizer, options, |in_stream, room| {
            windows(TokenStore::from_documents(texts, tokenizer, options, in_stream)?, options, room)
        })
    }

    /// Sequences that the caller has tokenised and checked ([`Row::check`]).
    pub fn from_rows(rows: Vec<Row>, objective: Objective, pad: u32) -> Self {
        let mut hasher = blake3::Hasher::new();
        for row in &rows {
            hasher.update(&(row.tokens.len() as u64).to_le_bytes());
            hasher
                .update(bytemuck::cast_slice(&row.tokens))
                .update(bytemuck::cast_slice(row.targets.as_slice()));
            hasher.update(bytemuck::cast_slice(row.types.as_deref().unwrap_or_default()));
            hasher.update(row.mask.as_deref().unwrap_or_default());
            match &row.targets {
                Targets::Value(value) => _ = hasher.update(&value.to_le_bytes()),
                Targets::Labels(values) => _ = hasher.update(bytemuck::cast_slice(values)),
                Targets::Tokens(_) | Targets::Label(_) => {}
            }
        }
        let hash = hasher.finalize().to_hex().to_string();
        let (prefix, suffix) = (Vec::new(), Vec::new());
        let file_hashes = vec![hash.clone()];
        let (source, notices) = (Source::Rows(rows), Vec::new());
        Self {
            source,
            objective,
            masking: None,
            prefix,
            suffix,
            pad,
            spread: (0, 1),
            hash,
            file_hashes,
            notices,
        }
    }

    fn build(
        model: &Model,
        tokenizer: &Tokenizer,
        options: &DataOptions,
        source: impl FnOnce(bool, usize) -> Result<(Source, Vec<String>, Vec<String>)>,
    ) -> Result<Self> {
        check_length(model, options.sequence_length)?;
        let objective = model.spec.objective;
        // A causal stream carries its special tokens; the others frame each sequence.
        let in_stream = objective == Objective::CausalLm && !model.spec.begins_windows;
        let frame = |tokens: &[u32]| if in_stream { Vec::new() } else { tokens.to_vec() };
        let (prefix, suffix) = (frame(tokenizer.prefix()), frame(tokenizer.suffix()));
        let room = options.sequence_length.saturating_sub(prefix.len() + suffix.len());
        if room < 2 {
            return Err(Error::does_not_fit(format!(
                "sequence length {} leaves no room for text: expected at least {}",
                options.sequence_length,
                options.sequence_length - room + 2
            )));
        }
        let (source, file_hashes, passed_over) = source(in_stream, room)?;
        // Rows are framed already.
        let (prefix, suffix) =
            if let Source::Rows(_) = source { (Vec::new(), Vec::new()) } else { (prefix, suffix) };
        // What a tokenizer frames a text with need not be in its vocabulary, and a cache may be damaged.
        let largest = prefix.iter().chain(&suffix).copied().chain(source.largest_token()).max().unwrap_or(0);
        if largest as usize >= model.spec.vocab_size {
            let text = tokenizer.token(largest).map(|t| format!(" ({t:?})")).unwrap_or_default();
            return Err(Error::data(format!(
                "the data has the token {largest}{text}, but the model's vocabulary ends at {}: the tokenizer is not the model's, \
                 the text holds a token that was added without resizing the model, or the token cache is damaged (delete it)",
                model.spec.vocab_size - 1
            )));
        }
        let mut notices = tokenizer.notices().to_vec();
        notices.extend(passed_over);
        notices.extend(
            tokenizer.unknown().and_then(|unknown| many_unknown(tokenizer, source.share_of(unknown))),
        );
        let hash = tokens::joint_hash(&file_hashes);
        let masking = match objective {
            Objective::MaskedLm => Some(Masking::new(tokenizer, model.spec.vocab_size, options.seed)?),
            _ => None,
        };
        let pad = tokenizer.pad().filter(|&pad| (pad as usize) < model.spec.vocab_size).unwrap_or(0);
        Ok(Self {
            source,
            objective,
            masking,
            prefix,
            suffix,
            pad,
            spread: (0, 1),
            hash,
            file_hashes,
            notices,
        })
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Windows(_, Windows::Even { count, .. }) => *count,
            Source::Windows(_, Windows::Ragged(windows)) => windows.len(),
            Source::Rows(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts the first `count` sequences into an order in which every run of neighbours is spread evenly over
    /// them: a few of them then stand for all, whatever the text is about in one place. (Steps of the golden
    /// section; nothing is stored.)
    pub fn spread_over(&mut self, count: usize) {
        let gcd = |mut a: usize, mut b: usize| {
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let near = (count as f64 * 0.618_033_988_749_895) as usize;
        let step = (near.max(1)..=count).find(|&step| gcd(step, count) == 1).unwrap_or(1);
        self.spread = (count, step);
    }

    /// Where a sequence is in the data.
    fn place(&self, index: usize) -> usize {
        let (count, step) = self.spread;
        if index < count { (index as u128 * step as u128 % count as u128) as usize } else { index }
    }

    /// The token ids of a sequence, special tokens included.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn tokens(&self, index: usize) -> Vec<u32> {
        let index = self.place(index);
        let body: Vec<u32> = match &self.source {
            Source::Windows(store, Windows::Even { length, .. }) => store.slice(index * length, *length),
            Source::Windows(store, Windows::Ragged(windows)) => {
                let (start, length) = windows[index];
                store.slice(start as usize, length as usize)
            }
            Source::Rows(rows) => rows[index].tokens.clone(),
        };
        [&self.prefix[..], &body, &self.suffix].concat()
    }

    /// Sequences `indices` as one batch, padded to the longest.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn batch(&self, indices: &[usize], pass: Pass) -> Batch {
        let rows: Vec<Row> = indices.iter().map(|&i| self.row(i, pass)).collect();
        Batch::from_rows(&rows, self.pad)
    }

    /// One sequence with its targets; masks its tokens for a masked language model.
    fn row(&self, index: usize, pass: Pass) -> Row {
        let mut tokens = match &self.source {
            Source::Rows(rows) => return rows[self.place(index)].clone(),
            _ => self.tokens(index),
        };
        let index = self.place(index);
        match &self.masking {
            Some(masking) => {
                let targets = Targets::Tokens(masking.apply(&mut tokens, index, pass));
                Row { tokens, mask: None, types: None, targets }
            }
            None if self.objective == Objective::Encoder => Row::every(tokens, None),
            None => Row::causal(tokens, None, None),
        }
    }

    /// Cuts the sequences into training, calibration and held-out parts: the last tenth is held out (unless
    /// `eval` is given), a tenth of the data, at most `calibration` sequences, serves for scoring.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if there are not enough sequences for one in each part.
    pub fn split(&self, calibration: usize, eval: Option<&Self>) -> Result<Split> {
        let count = self.len();
        let needed = if eval.is_some() { 2 } else { 3 };
        if count < needed {
            return Err(Error::data(format!(
                "the data gives {count} sequences, but training, calibration and measurement need one each: \
                 give more text or a shorter sequence_length"
            )));
        }
        let tenth = (count / 10).max(1);
        let held_out = match eval {
            Some(eval) => 0..eval.len(),
            None => count - tenth..count,
        };
        let rest = if eval.is_some() { count } else { count - tenth };
        let calibration = rest - tenth.min(calibration).max(1)..rest;
        Ok(Split { train: 0..calibration.start, calibration, held_out, separate_eval_data: eval.is_some() })
    }
}

fn windows(
    store: TokenStore,
    options: &DataOptions,
    room: usize,
) -> Result<(Source, Vec<String>, Vec<String>)> {
    let windows = Windows::over(&store, options.read.documents, room)?;
    let hashes = store.file_hashes.clone();
    let notices = store.skipped.notices();
    Ok((Source::Windows(store, windows), hashes, notices))
}

/// Says so if many of `all` tokens are those for what the vocabulary does not have.
pub fn many_unknown(tokenizer: &Tokenizer, (all, unknown): (usize, usize)) -> Option<String> {
    let share = unknown as f64 / all.max(1) as f64;
    let token = tokenizer.token(tokenizer.unknown()?)?;
    (share > MANY_UNKNOWN).then(|| {
        format!("{:.1} % of the tokens are {token}: text that the vocabulary does not have", 100.0 * share)
    })
}

impl Windows {
    fn over(store: &TokenStore, documents: Documents, room: usize) -> Result<Self> {
        let too_short = |have: usize| {
            Error::data(format!(
                "the data has {have} tokens, less than one window of {room}: give more text or a shorter sequence_length"
            ))
        };
        match documents {
            Documents::Packed => {
                let count = store.len() / room;
                if count == 0 { Err(too_short(store.len())) } else { Ok(Self::Even { length: room, count }) }
            }
            Documents::Separate => {
                let mut windows = Vec::new();
                for document in store.documents() {
                    for start in document.clone().step_by(room) {
                        let length = room.min(document.end - start);
                        // One token predicts nothing.
                        if length > 1 {
                            windows.push((start as u64, length as u32));
                        }
                    }
                }
                if windows.is_empty() { Err(too_short(store.len())) } else { Ok(Self::Ragged(windows)) }
            }
        }
    }
}

/// Checks a length of sequences.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] if the model does not take so many tokens, and for fewer than two, which
/// predict nothing.
pub fn check_length(model: &Model, length: usize) -> Result<()> {
    let limit = model.spec.max_positions;
    if length > limit || length < 2 {
        return Err(Error::does_not_fit(format!(
            "sequence length is {length}: the model takes 2 to {limit}"
        )));
    }
    Ok(())
}
