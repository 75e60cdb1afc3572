//! Text generation with a KV cache: greedy, or sampled by temperature and nucleus (Holtzman et al. 2020).

use std::sync::Arc;

use rand::RngExt;

use super::batch::{Batch, Hooks, KvCache};
use super::state::Model;
use crate::spec::Objective;
use crate::{Error, Result, rng};

/// How to continue a prompt.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Tokens to add at most.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token; higher flattens the distribution.
    pub temperature: f32,
    /// Samples among the likeliest tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// For sampling.
    pub seed: u64,
    /// Stops here.
    pub end_tokens: Vec<u32>,
}

/// A continuation and how long it took.
#[derive(Debug, Clone)]
pub struct Generation {
    /// New tokens, without the prompt.
    pub tokens: Vec<u32>,
    /// Seconds for the prompt.
    pub prefill_seconds: f64,
    /// Seconds for the tokens after the first.
    pub decode_seconds: f64,
}

impl Model {
    /// Continues `prompt`. `on_token` sees each new token as it comes and may stop by returning `false`.
    ///
    /// # Errors
    /// Returns [`Error::Unsupported`] for a model that is no causal language model; [`Error::DoesNotFit`] for
    /// a prompt that is empty, has a token that the model does not have, or is too long with what is to be
    /// added; [`Error::OutOfRange`] for a `temperature` or `top_p` that has no meaning; and
    /// [`Error::Interrupted`] if the work is stopped.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_token: impl FnMut(u32) -> bool,
    ) -> Result<Generation> {
        self.check_generation(prompt, options)?;
        let mut cache = KvCache::new(self, prompt.len() + options.max_new_tokens);
        let mut random = rng::stream(options.seed, "generate");
        let mut generation = Generation { tokens: Vec::new(), prefill_seconds: 0.0, decode_seconds: 0.0 };
        let mut input = prompt.to_vec();
        while generation.tokens.len() < options.max_new_tokens {
            let start = std::time::Instant::now();
            if self.turns_otherwise(cache.len(), cache.len() + input.len()) {
                // Keys that were rotated otherwise are made anew, as in transformers.
                cache = KvCache::new(self, prompt.len() + options.max_new_tokens);
                input = [prompt, &generation.tokens].concat();
            }
            let batch = Batch { len: input.len(), tokens: Arc::new(input), batch: 1, ..Batch::default() };
            let logits =
                self.last_logits(&batch, &mut Hooks { cache: Some(&mut cache), ..Hooks::default() })?;
            let token = choose(logits.data(), options, &mut random);
            let seconds = start.elapsed().as_secs_f64();
            *(if generation.tokens.is_empty() {
                &mut generation.prefill_seconds
            } else {
                &mut generation.decode_seconds
            }) += seconds;
            generation.tokens.push(token);
            if options.end_tokens.contains(&token) || !on_token(token) {
                break;
            }
            input = vec![token];
        }
        Ok(generation)
    }

    /// Whether a sequence that grows from one length to another changes its rotations.
    fn turns_otherwise(&self, from: usize, to: usize) -> bool {
        let borders = self.spec.ropes.iter().filter_map(|rope| rope.long.as_ref());
        from > 0 && borders.into_iter().any(|(beyond, _)| from <= *beyond && to > *beyond)
    }

    fn check_generation(&self, prompt: &[u32], options: &GenerateOptions) -> Result<()> {
        if self.spec.objective != Objective::CausalLm {
            return Err(Error::unsupported(format!(
                "a {} model does not generate text: expected a causal language model",
                self.spec.objective.name()
            )));
        }
        if prompt.is_empty() {
            return Err(Error::does_not_fit(
                "the prompt is empty and the tokenizer adds no start token: give at least one token",
            ));
        }
        if let Some(token) = prompt.iter().find(|&&t| t as usize >= self.spec.vocab_size) {
            return Err(Error::does_not_fit(format!(
                "token {token} is not below the vocabulary size {}",
                self.spec.vocab_size
            )));
        }
        if !(options.temperature >= 0.0 && options.temperature.is_finite()) {
            return Err(Error::out_of_range("temperature", options.temperature, "0 or more"));
        }
        if !(options.top_p > 0.0 && options.top_p <= 1.0) {
            return Err(Error::out_of_range("top_p", options.top_p, "more than 0 and at most 1"));
        }
        if prompt.len().saturating_add(options.max_new_tokens) > self.spec.max_positions {
            return Err(Error::does_not_fit(format!(
                "{} prompt tokens and {} new ones exceed the model's {} positions: lower max-new-tokens",
                prompt.len(),
                options.max_new_tokens,
                self.spec.max_positions
            )));
        }
        Ok(())
    }
}

fn choose(logits: &[f32], options: &GenerateOptions, random: &mut rng::Stream) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if options.temperature == 0.0 {
        return order.into_iter().min_by(by_logit).unwrap_or_default();
    }
    order.sort_unstable_by(by_logit);
    let top = logits[order[0] as usize];
    let weights: Vec<f64> = order
        .iter()
        .map(|&t| (f64::from(logits[t as usize] - top) / f64::from(options.temperature)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let nucleus = weights.iter().take_while(|w| {
        let before = kept;
        kept += **w / total;
        before < f64::from(options.top_p)
    });
    let nucleus: Vec<f64> = nucleus.copied().collect();
    let mut at = random.random::<f64>() * nucleus.iter().sum::<f64>();
    for (weight, &token) in nucleus.iter().zip(&order) {
        at -= weight;
        if at <= 0.0 {
            return token;
        }
    }
    order[nucleus.len() - 1]
}
