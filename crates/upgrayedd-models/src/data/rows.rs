//! Sequences that a caller has tokenised, checked against the model before anything is computed with them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::ops::IGNORE;

use crate::model::Batch;
use crate::spec::{ModelSpec, Objective};
use crate::{Error, Result};

/// What to predict from a sequence; [`IGNORE`] does not count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Targets {
    /// Something at each position (for causal models the token after it).
    Tokens(Vec<i64>),
    /// One class.
    Label(i64),
    /// One number, for regression.
    Value(f32),
    /// For several labels: a number each, usually 1 where it is there and 0 where it is not.
    Labels(Vec<f32>),
}

impl Targets {
    /// All of them; 0 stands for numbers.
    pub fn as_slice(&self) -> &[i64] {
        match self {
            Self::Tokens(targets) => targets,
            Self::Label(label) => std::slice::from_ref(label),
            Self::Value(_) | Self::Labels(_) => &[0],
        }
    }
}

/// One sequence and what to predict from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// 0 marks padding, which is anywhere; `None` where there is none.
    pub mask: Option<Vec<u8>>,
    /// Token types (segments); `None` where all are 0.
    pub types: Option<Vec<u32>>,
    /// What to predict.
    pub targets: Targets,
}

impl Row {
    /// A sequence to learn the next token from: each real token predicts the real token after it. With
    /// `labels` (not shifted, one a token) each position predicts the label after it, whatever the mask says,
    /// as in transformers.
    pub fn causal(tokens: Vec<u32>, mask: Option<Vec<u8>>, labels: Option<&[i64]>) -> Self {
        let real = |i: usize| mask.as_ref().is_none_or(|m| m[i] != 0);
        let target = |i: usize| match labels {
            _ if i >= tokens.len() => IGNORE,
            Some(labels) => labels[i],
            None if !real(i - 1) || !real(i) => IGNORE,
            None => i64::from(tokens[i]),
        };
        let targets = Targets::Tokens((1..=tokens.len()).map(target).collect());
        Self { tokens, mask, types: None, targets }
    }

    /// A sequence for a plain encoder: every real position counts.
    pub fn every(tokens: Vec<u32>, mask: Option<Vec<u8>>) -> Self {
        let target = |i: usize| if mask.as_ref().is_none_or(|m| m[i] != 0) { 0 } else { IGNORE };
        let targets = Targets::Tokens((0..tokens.len()).map(target).collect());
        Self { tokens, mask, types: None, targets }
    }

    /// Checks that the model can take it; `number` is the row's, for the message.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for a length, a token, a token type, a mask or a target that the model cannot
    /// take.
    pub fn check(&self, spec: &ModelSpec, number: usize) -> Result<()> {
        let refuse = |message: String| Err(Error::data(format!("sequence {number} of the data: {message}")));
        let length = self.tokens.len();
        if length == 0 || length > spec.max_positions {
            return refuse(format!("has {length} tokens: the model takes 1 to {}", spec.max_positions));
        }
        if let Some(token) = self.tokens.iter().find(|&&t| t as usize >= spec.vocab_size) {
            return refuse(format!(
                "token {token} is not below the model's vocabulary size {}",
                spec.vocab_size
            ));
        }
        if self.mask.as_ref().is_some_and(|m| m.len() != length) {
            return refuse("has an attention mask of another length".to_owned());
        }
        if let Some(types) = &self.types {
            if types.len() != length {
                return refuse("has token types of another length".to_owned());
            }
            if let Some(kind) = types.iter().find(|&&t| t as usize >= spec.type_vocab_size.max(1)) {
                return refuse(match spec.type_vocab_size {
                    0 => format!("token type {kind}: the model has no token types, so leave them out"),
                    types => format!("token type {kind} is not one of 0 to {}", types - 1),
                });
            }
        }
        let limit = match (spec.objective, &self.targets) {
            (Objective::Classifier { labels: 1 }, Targets::Value(value)) => {
                return if value.is_finite() {
                    Ok(())
                } else {
                    refuse(format!("the number to predict is {value}"))
                };
            }
            (Objective::MultiLabel { labels }, Targets::Labels(values)) => {
                let numbers = values.len() == labels && values.iter().all(|v| (0.0..=1.0).contains(v));
                return if numbers {
                    Ok(())
                } else {
                    refuse(format!("has the labels {values:?}: expected {labels} numbers from 0 to 1"))
                };
            }
            (Objective::Classifier { labels: 1 } | Objective::MultiLabel { .. }, Targets::Label(IGNORE)) => {
                return Ok(());
            }
            (Objective::MultiLabel { labels }, _) => {
                return refuse(format!("has another label than {labels} numbers from 0 to 1"));
            }
            (_, Targets::Labels(_)) => {
                return refuse("has several labels: the model takes one".to_owned());
            }
            (Objective::Classifier { labels }, Targets::Label(_)) if labels > 1 => labels,
            (Objective::Classifier { labels: 1 }, _) => {
                return refuse("has labels: regression takes one number".to_owned());
            }
            (_, Targets::Value(_)) => {
                return refuse("has a number for a label: the model takes classes or tokens".to_owned());
            }
            (Objective::CausalLm | Objective::MaskedLm | Objective::Encoder, Targets::Tokens(t))
                if t.len() == length =>
            {
                spec.vocab_size
            }
            (Objective::Classifier { .. }, _) => {
                return refuse("has a label per token: a classifier takes one".to_owned());
            }
            _ => return refuse(format!("has {} labels for {length} tokens", self.targets.as_slice().len())),
        };
        match self.targets.as_slice().iter().find(|&&t| t != IGNORE && !(0..limit as i64).contains(&t)) {
            Some(label) => refuse(format!(
                "label {label} is not one of 0 to {} (or {IGNORE}, which does not count)",
                limit - 1
            )),
            None => Ok(()),
        }
    }
}

impl Batch {
    /// Rows side by side, padded with `pad` to the longest.
    pub fn from_rows(rows: &[Row], pad: u32) -> Self {
        let len = rows.iter().map(|r| r.tokens.len()).max().unwrap_or(0);
        let (mut tokens, mut mask, mut targets) =
            (Vec::with_capacity(rows.len() * len), Vec::new(), Vec::new());
        let (mut types, mut values) = (Vec::new(), Vec::new());
        let typed = rows.iter().any(|r| r.types.is_some());
        let numbers = rows
            .iter()
            .map(|r| match &r.targets {
                Targets::Value(_) => 1,
                Targets::Labels(values) => values.len(),
                Targets::Tokens(_) | Targets::Label(_) => 0,
            })
            .max()
            .unwrap_or(0);
        let padded =
            rows.iter().any(|r| r.tokens.len() < len || r.mask.as_ref().is_some_and(|m| m.contains(&0)));
        for row in rows {
            let end = tokens.len() + len;
            tokens.extend_from_slice(&row.tokens);
            tokens.resize(end, pad);
            if padded {
                match &row.mask {
                    Some(own) => mask.extend_from_slice(own),
                    None => mask.resize(mask.len() + row.tokens.len(), 1),
                }
                mask.resize(end, 0);
            }
            if typed {
                types.extend_from_slice(row.types.as_deref().unwrap_or_default());
                types.resize(end, 0);
            }
            match &row.targets {
                Targets::Value(value) => values.push(*value),
                Targets::Labels(labels) => values.extend_from_slice(labels),
                // Does not count.
                Targets::Tokens(_) | Targets::Label(_) => values.resize(values.len() + numbers, 0.0),
            }
            targets.extend_from_slice(row.targets.as_slice());
            if matches!(row.targets, Targets::Tokens(_)) {
                targets.resize(end, IGNORE);
            }
        }
        Self {
            tokens: Arc::new(tokens),
            batch: rows.len(),
            len,
            mask: padded.then_some(mask),
            types: typed.then(|| Arc::new(types)),
            targets,
            values,
        }
    }
}
