//! A tokenizer as llama.cpp has it.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::file::Entry;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const ADDED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What stands for a space in SentencePiece's tokens.
const SPACE: &str = "\u{2581}";

/// How text is cut into words before pairs of bytes are merged: the pattern, and what llama.cpp calls it.
const PATTERNS: [(&str, &str); 3] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "gpt-4o",
    ),
];

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("format gguf: llama.cpp has no tokenizer like this one: {what}"))
}

/// What is written of a tokenizer, for a model of so many tokens.
///
/// # Errors
/// Returns [`Error::Unsupported`] for a tokenizer that llama.cpp does not have, [`Error::DoesNotFit`] for one that has
/// more tokens than the model, and [`Error::Malformed`] if it cannot be written as JSON.
pub(super) fn entries(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<(String, Entry)>> {
    let json = tokenizer.to_json()?;
    let json: Value =
        serde_json::from_str(&json).map_err(|e| Error::malformed(format!("tokenizer.json: {e}")))?;
    let tokens = tokens(tokenizer, &json, vocab_size)?;
    let kind = Kind::of(&json)?;
    let mut entries = vec![("model", Entry::Text(kind.model().to_owned()))];
    match &kind {
        Kind::Bytes { pattern } => {
            entries.push(("pre", Entry::Text((*pattern).to_owned())));
            let merges = merges(&json)?.into_iter().map(|(a, b)| format!("{a} {b}")).collect();
            entries.push(("merges", Entry::Texts(merges)));
        }
        Kind::Pieces { space_first } => {
            entries.push(("pre", Entry::Text("default".to_owned())));
            entries.push(("scores", Entry::F32s(scores(&json, &tokens)?)));
            entries.push(("add_space_prefix", Entry::Bool(*space_first)));
        }
        Kind::Words { continues } => {
            entries.push(("pre", Entry::Text("default".to_owned())));
            let words = tokens.iter().map(|token| token.as_word(continues)).collect();
            entries.push(("tokens", Entry::Texts(words)));
        }
    }
    if !matches!(kind, Kind::Words { .. }) {
        entries.push(("tokens", Entry::Texts(tokens.iter().map(|token| token.text.clone()).collect())));
    }
    entries.push(("token_type", Entry::I32s(tokens.iter().map(|token| token.kind).collect())));
    entries.extend(special(tokenizer, &kind)?);
    Ok(entries.into_iter().map(|(key, entry)| (format!("tokenizer.ggml.{key}"), entry)).collect())
}

/// Special tokens by meaning, and which of them frame a text.
fn special(tokenizer: &Tokenizer, kind: &Kind) -> Result<Vec<(&'static str, Entry)>> {
    let id = |name: &str| {
        let (_, text) = tokenizer.meanings().iter().find(|(key, _)| key == name)?;
        tokenizer.id(text)
    };
    let words = matches!(kind, Kind::Words { .. });
    let (prefix, suffix) = (tokenizer.prefix(), tokenizer.suffix());
    let first =
        prefix.first().copied().or_else(|| id("bos_token")).or_else(|| id("cls_token").filter(|_| words));
    let end = tokenizer.eos();
    let framed = match (prefix, suffix) {
        ([] | [_], []) => true,
        ([] | [_], [last]) => words || Some(*last) == end,
        _ => false,
    };
    if !framed {
        return Err(refuse(format!("it puts the tokens {prefix:?} before and {suffix:?} after a text")));
    }
    let numbers = [
        ("bos_token_id", first),
        ("eos_token_id", end),
        ("unknown_token_id", tokenizer.unknown()),
        ("padding_token_id", tokenizer.pad()),
        ("mask_token_id", tokenizer.mask()),
        ("seperator_token_id", id("sep_token")),
    ];
    let mut entries: Vec<(&'static str, Entry)> =
        numbers.into_iter().filter_map(|(key, id)| Some((key, Entry::U32(id?)))).collect();
    entries.push(("add_bos_token", Entry::Bool(!prefix.is_empty())));
    if words {
        entries.push(("add_sep_token", Entry::Bool(!suffix.is_empty())));
    } else {
        entries.push(("add_eos_token", Entry::Bool(!suffix.is_empty())));
    }
    Ok(entries)
}

/// Kinds of tokenizers that llama.cpp has.
enum Kind {
    /// Pairs of bytes, within words that a pattern cuts.
    Bytes { pattern: &'static str },
    /// SentencePiece's pairs of characters, and bytes for what has no token.
    Pieces { space_first: bool },
    /// WordPiece.
    Words { continues: String },
}

impl Kind {
    fn of(json: &Value) -> Result<Self> {
        let model = &json["model"];
        match model["type"].as_str() {
            Some("BPE") if model["byte_fallback"] == true => {
                Ok(Self::Pieces { space_first: space_first(json)? })
            }
            Some("BPE") => Ok(Self::Bytes { pattern: pattern(json)? }),
            Some("WordPiece") => {
                check_words(json)?;
                let continues = model["continuing_subword_prefix"].as_str().unwrap_or("##").to_owned();
                Ok(Self::Words { continues })
            }
            other => Err(refuse(format!("its vocabulary is of kind {}", other.unwrap_or("unknown")))),
        }
    }

    fn model(&self) -> &'static str {
        match self {
            Self::Bytes { .. } => "gpt2",
            Self::Pieces { .. } => "llama",
            Self::Words { .. } => "bert",
        }
    }
}

/// Refuses steps before WordPiece other than those that llama.cpp takes: texts are lowered, without accents.
fn check_words(json: &Value) -> Result<()> {
    let before = &json["normalizer"];
    let usual = before["type"] == "BertNormalizer"
        && before["lowercase"] == true
        && before["strip_accents"] != false
        && before["clean_text"] != false
        && before["handle_chinese_chars"] != false;
    match &json["pre_tokenizer"]["type"] {
        _ if !usual => {
            Err(refuse(format!("texts become {before} first, and there they are lowered without accents")))
        }
        kind if kind == "BertPreTokenizer" => Ok(()),
        _ => Err(refuse(format!("texts are cut by {}", json["pre_tokenizer"]))),
    }
}

/// The steps of a part that may be one or several.
fn steps<'j>(part: &'j Value, list: &str) -> Vec<&'j Value> {
    match part[list].as_array() {
        Some(steps) => steps.iter().collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

/// What llama.cpp calls the way in which text is cut into words.
fn pattern(json: &Value) -> Result<&'static str> {
    // Text is taken to be composed already, as llama.cpp's own converter does.
    let normalizers = steps(&json["normalizer"], "normalizers");
    if let Some(other) = normalizers.iter().find(|step| step["type"] != "NFC") {
        return Err(refuse(format!("it changes texts first, by {other}")));
    }
    let cuts = steps(&json["pre_tokenizer"], "pretokenizers");
    let unknown = || refuse(format!("texts are cut by {}", json["pre_tokenizer"]));
    let Some((bytes, before)) = cuts.split_last() else { return Err(unknown()) };
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] == true {
        return Err(unknown());
    }
    let by_itself = bytes["use_regex"] != false;
    match before {
        _ if json["model"]["ignore_merges"] == true
            && !matches!(before, [split] if is_cut_as(split, "llama-bpe")) =>
        {
            Err(refuse(
                "words that are tokens are taken whole (ignore_merges), which it does after Llama 3's pattern only",
            ))
        }
        [] if by_itself => Ok("gpt-2"),
        [digits] if by_itself && digits["type"] == "Digits" && digits["individual_digits"] == true => {
            Ok("smollm")
        }
        [split]
            if !by_itself
                && split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] != true =>
        {
            match PATTERNS.iter().find(|(_, name)| is_cut_as(split, name)) {
                // The same pattern without taking words whole.
                Some((_, "llama-bpe")) if json["model"]["ignore_merges"] != true => Ok("smaug-bpe"),
                found => found.map(|(_, name)| *name).ok_or_else(unknown),
            }
        }
        _ => Err(unknown()),
    }
}

/// Whether a step cuts by the pattern of that name.
fn is_cut_as(split: &Value, name: &str) -> bool {
    PATTERNS.iter().any(|(pattern, known)| *known == name && split["pattern"]["Regex"] == **pattern)
}

/// What llama.cpp does otherwise, beside the text that most tokenizers are given, a sentence each.
pub(super) fn remarks(tokenizer: &Tokenizer) -> Vec<String> {
    let json: Value =
        tokenizer.to_json().ok().and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    let added = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |key: &str| {
        let flagged = added.iter().filter(|token| token[key] == true);
        flagged.filter_map(|token| token["content"].as_str()).take(3).collect::<Vec<_>>().join(" ")
    };
    let mut remarks = Vec::new();
    for (key, does) in [
        ("lstrip", "takes the spaces before it"),
        ("rstrip", "takes the spaces after it"),
        ("single_word", "is found between words only"),
    ] {
        let tokens = named(key);
        if !tokens.is_empty() {
            remarks.push(format!("In the model's tokenizer {tokens} {does}, and not in llama.cpp"));
        }
    }
    let first = |step: &Value| step["type"] == "Metaspace" && step["prepend_scheme"] == "first";
    if steps(&json["pre_tokenizer"], "pretokenizers").into_iter().any(first) {
        remarks.push("llama.cpp puts a space before the text after a special token, too".to_owned());
    }
    remarks
}

/// Whether a space goes before every text, in a tokenizer of SentencePiece's kind.
fn space_first(json: &Value) -> Result<bool> {
    let mut first = false;
    let mut spaces = false;
    for step in steps(&json["normalizer"], "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == SPACE => first = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => spaces = true,
            _ => return Err(refuse(format!("it changes texts first, by {step}"))),
        }
    }
    for step in steps(&json["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            Some("Metaspace") if step["replacement"] == SPACE && step["split"] == false => {
                spaces = true;
                first |= step["prepend_scheme"] != "never";
            }
            // Of SentencePiece's way through transformers: there are no spaces left that it could find.
            Some("Split") if spaces && step["pattern"]["String"] == " " => {}
            _ => return Err(refuse(format!("texts are cut by {step}"))),
        }
    }
    if spaces { Ok(first) } else { Err(refuse("spaces are no part of its tokens")) }
}

struct Token {
    text: String,
    kind: i32,
}

impl Token {
    /// As vocabularies of WordPiece are written: what begins a word is marked, and not what goes on.
    fn as_word(&self, continues: &str) -> String {
        match self.text.strip_prefix(continues) {
            _ if self.kind != NORMAL => self.text.clone(),
            Some(rest) if !rest.is_empty() => rest.to_owned(),
            _ => format!("{SPACE}{}", self.text),
        }
    }
}

/// All tokens in the order of their numbers; those that only the model has are unused.
fn tokens(tokenizer: &Tokenizer, json: &Value, vocab_size: usize) -> Result<Vec<Token>> {
    if tokenizer.vocab_size() > vocab_size {
        return Err(Error::does_not_fit(format!(
            "format gguf: the tokenizer has {} tokens, the model only {vocab_size}",
            tokenizer.vocab_size()
        )));
    }
    let fallback = json["model"]["byte_fallback"] == true;
    let mut tokens: Vec<Token> = (0..vocab_size as u32)
        .map(|id| match tokenizer.token(id) {
            Some(text) => {
                let byte = fallback && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
                let unknown = tokenizer.unknown() == Some(id);
                Token {
                    text,
                    kind: if byte {
                        BYTE
                    } else if unknown {
                        UNKNOWN
                    } else {
                        NORMAL
                    },
                }
            }
            None => Token { text: format!("[PAD{id}]"), kind: UNUSED },
        })
        .collect();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let Some(token) = added["id"].as_u64().and_then(|id| tokens.get_mut(id as usize)) else { continue };
        // What is in the vocabulary as a byte is one, whatever else it is.
        if token.kind == NORMAL {
            token.kind = if added["special"] == true { CONTROL } else { ADDED };
        }
    }
    Ok(tokens)
}

/// Pairs, those that are merged first before the others.
fn merges(json: &Value) -> Result<Vec<(&str, &str)>> {
    let pairs = json["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let no_pair = |merge: &Value| Error::malformed(format!("tokenizer.json: the merge {merge} is no pair"));
    pairs
        .iter()
        .map(|merge| match (merge.get(0).and_then(Value::as_str), merge.get(1).and_then(Value::as_str)) {
            (Some(first), Some(second)) => Ok((first, second)),
            _ => merge.as_str().and_then(|text| text.split_once(' ')).ok_or_else(|| no_pair(merge)),
        })
        .collect()
}

/// What decides which pieces are put together first: the higher the sooner. Pieces that lie side by side are put
/// together if there is a token for the two, so that each way to make a token has to be among the merges.
fn scores(json: &Value, tokens: &[Token]) -> Result<Vec<f32>> {
    let merges = merges(json)?;
    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    let mut last = String::new();
    for (rank, (first, second)) in merges.iter().enumerate() {
        let made = format!("{first}{second}");
        // A token has one score, so that all ways to make it come one after the other.
        if made != last && ranks.contains_key(&made) {
            return Err(refuse(format!("{made:?} is made by merges that do not follow each other")));
        }
        ranks.entry(made.clone()).or_insert(rank);
        last = made;
    }
    let pairs: HashSet<(&str, &str)> = merges.iter().copied().collect();
    let known: HashSet<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
    for made in ranks.keys() {
        let ways = made.char_indices().skip(1).map(|(at, _)| made.split_at(at));
        let missing = ways
            .filter(|(first, second)| known.contains(first) && known.contains(second))
            .find(|pair| !pairs.contains(pair));
        if let Some((first, second)) = missing {
            return Err(refuse(format!(
                "{first:?} and {second:?} are not merged, but there is a token for the two"
            )));
        }
    }
    let score = |token: &Token| ranks.get(&token.text).map_or(0.0, |rank| -(*rank as f32) - 1.0);
    Ok(tokens.iter().map(score).collect())
}
