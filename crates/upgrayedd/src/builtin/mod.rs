//! The model and text that are built in: a small Llama that this project trained, and stories to learn from.

mod story;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokenizers::PreTokenizer as _;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString};

use crate::data::{DataOptions, Dataset, DatasetBatches};
use crate::family;
use crate::files::{DType, write_file};
use crate::learner::Learner;
use crate::load::LoadOptions;
use crate::model::{Companions, Model};
use crate::reduce::Alone;
use crate::tokenizer::Tokenizer;
use crate::train::{self, LrSchedule, Place, StepReport, TrainOptions};
use crate::units::Selection;
use crate::{Error, Result, export};

const CONFIG: &str = include_str!("config.json");
const TOKENIZER: &str = include_str!("tokenizer.json");
const WEIGHTS: &[u8] = include_bytes!("model.safetensors");
/// Files that go with the model.
const COMPANIONS: &[(&str, &str)] = &[
    ("tokenizer.json", TOKENIZER),
    (
        "tokenizer_config.json",
        "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"bos_token\": \"<s>\",\n  \"eos_token\": \"</s>\",\n  \"unk_token\": \"<unk>\"\n}\n",
    ),
];

/// Stories that a run learns from and is measured on, none of them seen when the model was trained.
const RUN_STORIES: u64 = 1700;
const RUN_SEED: u64 = 2;
/// The recipe of the built-in weights.
const RECIPE_SEED: u64 = 1;
const RECIPE_STORIES: u64 = 60_000;
const RECIPE_STEPS: u64 = 3000;

/// The built-in model: 4 layers of 8 heads.
///
/// # Errors
/// Returns [`Error::Io`] if the files cannot be written out, and [`Error::Interrupted`] if the work is
/// stopped.
pub fn model() -> Result<Model> {
    // One loader for all models: the files are written out, read, and removed.
    let dir = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "write in"))?;
    for (name, bytes) in [("config.json", CONFIG.as_bytes()), ("model.safetensors", WEIGHTS)] {
        write_file(&dir.path().join(name), bytes)?;
    }
    let mut model = Model::load(dir.path(), &LoadOptions::default())?;
    model.companions = Companions::Memory(COMPANIONS);
    Ok(model)
}

/// The built-in model's tokenizer: a token per word of the grammar.
///
/// # Errors
/// None is expected: the text is built in, and a test reads it. The type is that of [`Tokenizer::from_json`].
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_json(TOKENIZER, &Value::Null)
}

/// Fresh stories for a run with the built-in model.
pub(crate) fn training_data(model: &Model, tokenizer: &Tokenizer, options: &DataOptions) -> Result<Dataset> {
    Dataset::from_documents((0..RUN_STORIES).map(|n| story::story(RUN_SEED, n)), model, tokenizer, options)
}

/// Stories as text, one a line: what the built-in model is about.
pub fn stories(seed: u64, count: u64) -> impl Iterator<Item = String> {
    (0..count).map(move |n| story::story(seed, n))
}

/// Trains the built-in model from nothing and writes its three files. The same processor gives the same bits.
///
/// # Errors
/// Returns [`Error::File`] if `out` exists, [`Error::Io`] if it cannot be written, [`Error::NotFinite`] if
/// learning diverges or a weight is too large for its type in the file, and [`Error::Interrupted`] if the
/// work is stopped.
pub fn make(out: &Path, mut on_step: impl FnMut(StepReport)) -> Result<PathBuf> {
    let tokenizer_json = make_tokenizer();
    let tokenizer = Tokenizer::from_json(&tokenizer_json, &Value::Null)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2
    });
    let (family, spec, _) = family::recognise(&config, &[], None)?;
    let model = Model::initialised(family, spec, config, RECIPE_SEED)?;
    let options = DataOptions { sequence_length: 256, seed: RECIPE_SEED, ..DataOptions::default() };
    let data = Dataset::from_documents(stories(RECIPE_SEED, RECIPE_STORIES), &model, &tokenizer, &options)?;
    let train = TrainOptions {
        epochs: 100,
        max_steps: Some(RECIPE_STEPS),
        learning_rate: 3e-3,
        gradient_accumulation: 1,
        lr_schedule: LrSchedule::Cosine,
        warmup_steps: 100,
        weight_decay: 0.1,
        max_gradient_norm: 1.0,
        gate_warmup: 0.0,
        gradient_checkpointing: false,
    };
    let mut learner = Learner::new(model, train.weight_decay);
    let range = 0..data.len();
    let mut source = DatasetBatches { data: Arc::new(data), range, batch_size: 8, seed: RECIPE_SEED };
    train::learn(
        &mut learner,
        &mut source,
        &train,
        (&mut Place::default(), &Selection::new()),
        None,
        &Alone,
        |_, _, report| {
            on_step(report);
            Ok(ControlFlow::Continue(()))
        },
    )?;
    export::export(&learner.model, &export::HF, Some(DType::F16), out)?;
    write_file(&out.join("tokenizer.json"), tokenizer_json.as_bytes())?;
    Ok(out.to_owned())
}

/// A word-level tokenizer over everything that the grammar can say, with byte-level spaces so that decoding
/// is exact.
fn make_tokenizer() -> String {
    let mut words = BTreeSet::new();
    for text in stories(RECIPE_SEED, 20_000) {
        let mut pieces = PreTokenizedString::from(text);
        if ByteLevel::default().add_prefix_space(false).pre_tokenize(&mut pieces).is_ok() {
            words.extend(
                pieces
                    .get_splits(OffsetReferential::Normalized, OffsetType::Byte)
                    .into_iter()
                    .map(|(word, ..)| word.to_owned()),
            );
        }
    }
    let special = ["<unk>", "<s>", "</s>"];
    let all = special.iter().map(|s| (*s).to_owned()).chain(words);
    let vocabulary: serde_json::Map<String, Value> =
        all.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }))
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } }
        },
        "decoder": byte_level,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" }
    });
    format!("{tokenizer:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokenizer_knows_every_word_and_decodes_exactly() {
        let tokenizer = tokenizer().expect("built in");
        assert_eq!(make_tokenizer(), TOKENIZER, "tokenizer.json is not what the recipe makes");
        for text in stories(99, 2000) {
            let ids = tokenizer.encode(&text).expect("text");
            assert!(!ids.contains(&0), "unknown word in: {text}");
            assert_eq!(tokenizer.decode(&ids).expect("ids"), text);
        }
    }
}
