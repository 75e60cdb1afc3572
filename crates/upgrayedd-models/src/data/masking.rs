//! Masked-token prediction: which tokens are hidden, drawn from the run's seed (Devlin et al. 2019).

use rand::RngExt;
use upgrayedd_nn::ops::IGNORE;

use super::options::Pass;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, rng};

/// 15 % of the tokens are predicted: 80 % of them hidden, 10 % replaced, 10 % left.
const PREDICTED: f64 = 0.15;
const HIDDEN: f64 = 0.8;
const REPLACED: f64 = 0.1;

#[derive(Debug)]
pub(super) struct Masking {
    mask: u32,
    special: Vec<u32>,
    vocabulary: u32,
    seed: u64,
}

impl Masking {
    /// Masks with the tokenizer's own token; `vocabulary` is the model's.
    pub(super) fn new(tokenizer: &Tokenizer, vocabulary: usize, seed: u64) -> Result<Self> {
        let mask = tokenizer.mask().filter(|&mask| (mask as usize) < vocabulary).ok_or_else(|| {
            Error::does_not_fit("the tokenizer has no mask token, which a masked language model learns with")
        })?;
        let vocabulary = tokenizer.vocab_size().min(vocabulary) as u32;
        Ok(Self { mask, special: tokenizer.special_ids(), vocabulary, seed })
    }

    /// Hides tokens of `sequence` and returns what to predict.
    pub(super) fn apply(&self, sequence: &mut [u32], index: usize, pass: Pass) -> Vec<i64> {
        let purpose = match pass {
            Pass::Train(epoch) => format!("mask epoch {epoch} sequence {index}"),
            Pass::Fixed => format!("mask sequence {index}"),
        };
        let mut random = rng::stream(self.seed, &purpose);
        let candidates: Vec<usize> =
            (0..sequence.len()).filter(|&i| !self.special.contains(&sequence[i])).collect();
        let mut chosen: Vec<usize> =
            candidates.iter().copied().filter(|_| random.random::<f64>() < PREDICTED).collect();
        if chosen.is_empty() && !candidates.is_empty() {
            chosen.push(candidates[random.random_range(0..candidates.len())]);
        }
        let mut targets = vec![IGNORE; sequence.len()];
        for i in chosen {
            targets[i] = i64::from(sequence[i]);
            let draw = random.random::<f64>();
            if draw < HIDDEN {
                sequence[i] = self.mask;
            } else if draw < HIDDEN + REPLACED {
                sequence[i] = random.random_range(0..self.vocabulary);
            }
        }
        targets
    }
}
