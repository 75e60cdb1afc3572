//! Texts that both models continue, for people to read.

use crate::config::MeasureOptions;
use crate::data::Part;
use crate::model::{GenerateOptions, Model};
use crate::record::Sample;
use crate::spec::Objective;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Tokens of a held-out text that are continued, and tokens that are added, at most.
const OPENING: usize = 16;
const CONTINUATION: usize = 48;

/// Refuses samples of a model that generates none, and prompts that it cannot take.
pub(super) fn check(wanted: &MeasureOptions, model: &Model) -> Result<()> {
    if wanted.prompt.is_empty() && wanted.samples == 0 {
        return Ok(());
    }
    if model.spec().objective != Objective::CausalLm {
        return Err(Error::does_not_fit(format!(
            "prompt and samples: a {} model continues no text",
            model.spec().objective.name()
        )));
    }
    let (tokenizer, most) = (model.tokenizer()?, model.spec().max_positions - 1);
    for text in &wanted.prompt {
        let tokens = written(&tokenizer, text)?.len();
        if tokens == 0 || tokens > most {
            let begins: String = text.chars().take(24).collect();
            return Err(Error::does_not_fit(format!(
                "the prompt that begins with {begins:?} has {tokens} tokens: expected 1 to {most}"
            )));
        }
    }
    Ok(())
}

/// What both models make of the prompts that are asked for, and of the beginnings of held-out texts, taking the likeliest
/// token each time.
pub(super) fn samples(
    wanted: &MeasureOptions,
    held_out: &Part,
    before: &Model,
    after: &Model,
) -> Result<Vec<Sample>> {
    if wanted.prompt.is_empty() && wanted.samples == 0 {
        return Ok(Vec::new());
    }
    let tokenizer = after.tokenizer()?;
    let mut prompts =
        wanted.prompt.iter().map(|text| written(&tokenizer, text)).collect::<Result<Vec<_>>>()?;
    let Part { data, range } = held_out;
    let count = wanted.samples.min(range.len());
    for index in 0..count {
        let mut tokens = data.tokens(range.start + index * range.len() / count);
        tokens.truncate(OPENING.min(after.spec().max_positions - 1).min(tokens.len().div_ceil(2)));
        prompts.push(tokens);
    }
    let end_tokens = after.end_tokens(&tokenizer)?;
    let continued = |model: &Model, prompt: &[u32]| -> Result<String> {
        let max_new_tokens = CONTINUATION.min(model.spec().max_positions - prompt.len());
        let options = GenerateOptions {
            max_new_tokens,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            end_tokens: end_tokens.clone(),
        };
        let new = model.generate(prompt, &options, |_| true)?.tokens;
        let (asked, whole) = (tokenizer.decode(prompt)?, tokenizer.decode(&[prompt, &new].concat())?);
        whole.strip_prefix(&asked).map_or_else(|| tokenizer.decode(&new), |rest| Ok(rest.to_owned()))
    };
    let sample = |prompt: Vec<u32>| {
        Ok(Sample {
            before: continued(before, &prompt)?,
            after: continued(after, &prompt)?,
            prompt: tokenizer.decode(&prompt)?,
        })
    };
    prompts.into_iter().filter(|prompt| !prompt.is_empty()).map(sample).collect()
}

fn written(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok([tokenizer.prefix(), &tokenizer.encode(text)?].concat())
}
