//! One sequence of a caller's batch → a row of the core.

use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use upgrayedd::data::{Row, Targets};
use upgrayedd::family::Family;
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::spec::{ModelSpec, Objective};
use upgrayedd::{Error, Result};

/// What is wrong with a sequence is said without its number.
type Refusal<T> = std::result::Result<T, String>;

/// Token ids, attention mask, token types.
type Inputs<'a> = (&'a [i64], Option<&'a [i64]>, Option<&'a [i64]>);

/// What a caller's labels are.
enum Labels<'a> {
    None,
    Classes(&'a [i64]),
    Numbers(&'a [f64]),
}

impl Labels<'_> {
    /// As numbers, if there are any.
    fn numbers(&self) -> Option<Vec<f32>> {
        match self {
            Self::None => None,
            Self::Classes(classes) => Some(classes.iter().map(|&v| v as f32).collect()),
            Self::Numbers(numbers) => Some(numbers.iter().map(|&v| v as f32).collect()),
        }
    }
}

/// How rows are read for a model.
pub struct Reader<'a> {
    pub family: &'static Family,
    pub spec: &'a ModelSpec,
    pub labelled: bool,
}

impl Reader<'_> {
    /// `(tokens, mask or None, labels or None, token types or None)`, each an int64 array; labels may be
    /// float64.
    pub fn row(&self, item: &Bound<'_, PyAny>, number: usize) -> PyResult<Result<Row>> {
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
        let mask = mask.map(|mask| read_mask(mask, ids.len())).transpose().map_err(refuse)?;
        let types = types.map(|types| self.types(types)).transpose().map_err(refuse)?.flatten();
        let mut row = self.with_labels(ids, mask, labels).map_err(refuse)?;
        row.types = types;
        row.check(self.spec, number)?;
        Ok(row)
    }

    /// Token types, if any says something.
    fn types(&self, types: &[i64]) -> Refusal<Option<Vec<u32>>> {
        if self.family.types_are_tokens {
            return Err(format!(
                "has token_type_ids, which transformers adds to a {} model's tokens through their embedding: leave them out",
                self.family.model_type
            ));
        }
        let types: Option<Vec<u32>> = types.iter().map(|&t| u32::try_from(t).ok()).collect();
        let types = types.ok_or("has a negative token type")?;
        Ok(Some(types).filter(|types| types.iter().any(|t| *t > 0)))
    }

    fn with_labels(&self, ids: Vec<u32>, mask: Option<Vec<u8>>, labels: Labels<'_>) -> Refusal<Row> {
        let objective = self.spec.objective;
        let regresses = objective.is_regression();
        if let (Objective::MultiLabel { .. }, Some(marks)) = (objective, labels.numbers()) {
            return Ok(Row { targets: Targets::Labels(marks), tokens: ids, mask, types: None });
        }
        let row = |targets, ids, mask| Row { targets, tokens: ids, mask, types: None };
        if objective == Objective::Encoder {
            // Labels that come along are for something else.
            return Ok(Row::every(ids, mask));
        }
        let whole;
        let labels = match labels {
            Labels::None => None,
            Labels::Classes(classes) if regresses => {
                // Whole numbers, which may mean classes elsewhere.
                let values: Vec<f64> = classes.iter().map(|&v| v as f64).collect();
                return Ok(row(Targets::Value(one_value(&values)?), ids, mask));
            }
            Labels::Numbers(values) if regresses => {
                return Ok(row(Targets::Value(one_value(values)?), ids, mask));
            }
            Labels::Classes(classes) => Some(classes),
            Labels::Numbers(numbers) if numbers.iter().all(|v| v.fract() == 0.0 && v.abs() < 1e15) => {
                whole = numbers.iter().map(|&v| v as i64).collect::<Vec<_>>();
                Some(&whole[..])
            }
            Labels::Numbers(_) => return Err("has labels that are not integers".to_owned()),
        };
        let per_token = |labels: &[i64]| {
            let message = || format!("has {} labels for {} tokens", labels.len(), ids.len());
            if labels.len() == ids.len() { Ok(()) } else { Err(message()) }
        };
        match (objective, labels) {
            (Objective::CausalLm, None) => Ok(Row::causal(ids, mask, None)),
            (Objective::CausalLm, Some(labels)) => {
                per_token(labels)?;
                check_causal(labels, &ids, mask.as_deref())?;
                Ok(Row::causal(ids, mask, Some(labels)))
            }
            (Objective::MaskedLm, Some(labels)) => {
                per_token(labels)?;
                Ok(row(Targets::Tokens(labels.to_vec()), ids, mask))
            }
            (Objective::Classifier { .. }, Some(&[label])) => Ok(row(Targets::Label(label), ids, mask)),
            (Objective::Classifier { .. }, Some(labels)) => {
                Err(format!("has {} labels: a classifier takes one a sequence", labels.len()))
            }
            (Objective::Classifier { .. } | Objective::MultiLabel { .. }, None) if !self.labelled => {
                Ok(row(Targets::Label(IGNORE), ids, mask))
            }
            (_, None) if !self.labelled => Ok(row(Targets::Tokens(vec![IGNORE; ids.len()]), ids, mask)),
            (objective, _) => Err(format!(
                "has no labels, which a {} model learns from: give batches with labels, or texts",
                objective.name()
            )),
        }
    }
}

fn read_mask(mask: &[i64], tokens: usize) -> Refusal<Vec<u8>> {
    if mask.len() != tokens {
        return Err("attention_mask and input_ids differ in length".to_owned());
    }
    if let Some(value) = mask.iter().find(|v| !(0..=1).contains(*v)) {
        return Err(format!(
            "attention_mask holds {value}: expected 1 for tokens and 0 for padding (numbers of packed documents are not supported)"
        ));
    }
    Ok(mask.iter().map(|&v| u8::from(v != 0)).collect())
}

fn one_value(values: &[f64]) -> Refusal<f32> {
    match values {
        [value] => Ok(*value as f32),
        _ => Err(format!("has {} labels: regression takes one a sequence", values.len())),
    }
}

/// Refuses labels of a causal model that transformers would predict from nothing, and those that are a mask.
fn check_causal(labels: &[i64], tokens: &[u32], mask: Option<&[u8]>) -> Refusal<()> {
    let begins = mask.map_or(0, |m| m.iter().position(|v| *v != 0).unwrap_or(m.len()));
    if let Some(at) = (1..=begins.min(labels.len().saturating_sub(1))).find(|&i| labels[i] != IGNORE) {
        return Err(format!(
            "the label at position {at} would be predicted from padding alone: set it to {IGNORE}, pad at the end, or leave labels out"
        ));
    }
    if !labels.iter().copied().eq(tokens.iter().map(|&t| i64::from(t)))
        && tokens.iter().any(|t| *t > 1)
        && labels.iter().all(|l| (0..=1).contains(l))
    {
        return Err("has labels of 0 and 1 only, which look like an attention mask: in a tuple the second is labels, \
                    so give dictionaries, or (input_ids, attention_mask, labels)"
            .to_owned());
    }
    Ok(())
}

/// Identifies a sequence whatever batch it comes in, however its tokens are masked this time, and however far
/// it is padded.
pub fn row_key(row: &Row, objective: Objective) -> u64 {
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
        (Targets::Labels(values), _) => {
            add(&tokens(&|i| i64::from(row.tokens[i])));
            add(&values.iter().map(|value| i64::from(value.to_bits())).collect::<Vec<_>>());
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

pub fn batch_key(rows: &[Row], objective: Objective) -> u64 {
    rows.iter().fold(0, |key, row| key.rotate_left(7) ^ row_key(row, objective))
}
