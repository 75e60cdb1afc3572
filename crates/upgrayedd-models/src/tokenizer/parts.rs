//! The parts of a tokenizer.json that a class of transformers builds on a vocabulary.

use serde_json::{Map, Value, json};

use super::class::Class;
use crate::{Error, Result};

/// What qwen2 takes for words.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a class builds: normalizer, pre-tokenizer, decoder and model, as `options` (tokenizer_config.json) say.
/// `json` is tokenizer.json, of which a class may take more than the vocabulary.
pub(super) fn parts(
    class: Class,
    model: &Value,
    json: &Value,
    options: &Map<String, Value>,
    unk_token: Option<&str>,
) -> Result<Map<String, Value>> {
    let parts = match class {
        Class::Backend => json!({}),
        Class::Bert | Class::DistilBert | Class::MpNet => word_pieces(model, options, unk_token)?,
        Class::Gpt2 | Class::Roberta => bytes(model, options)?,
        Class::GptNeoX => {
            let mut parts = bytes(model, options)?;
            parts["normalizer"] = json!({ "type": "NFC" });
            parts
        }
        Class::Qwen2 => bytes_of_words(model, options)?,
        Class::Llama => spaces(model, options)?,
        Class::Gemma => json!({
            "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            "pre_tokenizer": {
                "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
            },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
            ] },
            "model": with_unknown(bpe(model, true), unk_token),
        }),
        Class::XlmRoberta => likeliest(model, json, options, 3)?,
        Class::Camembert => {
            let is_unknown = |piece: &Value| piece[0].as_str().is_some_and(|text| Some(text) == unk_token);
            let unknown = model["vocab"].as_array().and_then(|pieces| pieces.iter().position(is_unknown));
            likeliest(model, json, options, unknown.unwrap_or(0))?
        }
    };
    match parts {
        Value::Object(parts) => Ok(parts),
        _ => Ok(Map::new()),
    }
}

fn word_pieces(model: &Value, options: &Map<String, Value>, unk_token: Option<&str>) -> Result<Value> {
    Ok(json!({
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": flag(options, "tokenize_chinese_chars", true)?,
            "strip_accents": optional_flag(options, "strip_accents")?,
            "lowercase": flag(options, "do_lower_case", true)?,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            // What Python makes of no token at all.
            "unk_token": unk_token.unwrap_or("None"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": model["vocab"],
        },
    }))
}

fn bytes(model: &Value, options: &Map<String, Value>) -> Result<Value> {
    let space = flag(options, "add_prefix_space", false)?;
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": bpe(model, false),
    }))
}

fn bytes_of_words(model: &Value, options: &Map<String, Value>) -> Result<Value> {
    let space = optional_flag(options, "add_prefix_space")?.unwrap_or(false);
    let words = json!({ "type": "Split", "pattern": { "Regex": QWEN2_WORDS }, "behavior": "Isolated", "invert": false });
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": false });
    Ok(json!({
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [words, bytes] },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": bpe(model, false),
    }))
}

fn spaces(model: &Value, options: &Map<String, Value>) -> Result<Value> {
    let space = optional_flag(options, "add_prefix_space")?.unwrap_or(true);
    let scheme = match (space, flag(options, "legacy", false)?) {
        (false, _) => "never",
        (true, false) => "first",
        (true, true) => "always",
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false },
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": bpe(model, true),
    }))
}

fn likeliest(model: &Value, json: &Value, options: &Map<String, Value>, unknown: usize) -> Result<Value> {
    // null is false here.
    let default = !options.contains_key("add_prefix_space");
    let scheme = if flag(options, "add_prefix_space", default)? { "always" } else { "never" };
    let spaces = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true });
    // Of the normalizer only the table of characters is kept.
    let normalizer = &json["normalizer"];
    let several =
        normalizer["normalizers"].as_array().map_or(std::slice::from_ref(normalizer), Vec::as_slice);
    let table =
        several.iter().find(|one| one["type"] == "Precompiled" && one.get("precompiled_charsmap").is_some());
    Ok(json!({
        "normalizer": table,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, spaces] },
        "decoder": spaces,
        "model": { "type": "Unigram", "unk_id": unknown, "vocab": model["vocab"], "byte_fallback": false },
    }))
}

fn bpe(model: &Value, text: bool) -> Value {
    let merges = model.get("merges").cloned().unwrap_or_else(|| json!([]));
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": if text { Value::Null } else { json!("") },
        "end_of_word_suffix": if text { Value::Null } else { json!("") },
        "fuse_unk": text,
        "byte_fallback": text,
        "ignore_merges": false,
        "vocab": model["vocab"],
        "merges": merges,
    })
}

/// A model that says what text it does not know is.
fn with_unknown(mut model: Value, unk_token: Option<&str>) -> Value {
    // What Python makes of no token at all.
    model["unk_token"] = unk_token.unwrap_or("None").into();
    model
}

fn optional_flag(options: &Map<String, Value>, key: &str) -> Result<Option<bool>> {
    match options.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(value) => {
            Err(Error::out_of_range(format!("tokenizer_config.json: {key}"), value, "true or false"))
        }
    }
}

/// An option that is true or false; `default` stands in for a missing one.
pub(super) fn flag(options: &Map<String, Value>, key: &str, default: bool) -> Result<bool> {
    Ok(optional_flag(options, key)?.unwrap_or(default))
}
