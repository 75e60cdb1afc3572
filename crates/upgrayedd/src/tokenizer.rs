//! Tokenizers as Hugging Face folders have them: `tokenizer.json`, else `vocab.json` with `merges.txt`, else BERT's `vocab.txt`.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};
use tokenizers::{AddedToken, PostProcessor, Tokenizer as HfTokenizer};

use crate::foreign::foreign;
use crate::model::{check_link, read_json, read_text};
use crate::{Error, Result};

/// Text ↔ token ids.
#[derive(Clone)]
pub struct Tokenizer {
    inner: HfTokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    eos: Option<u32>,
    mask: Option<u32>,
    pad: Option<u32>,
    fingerprint: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.inner.get_vocab_size(true)).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let has = |name: &str| dir.join(name).is_file();
        let inner = if has("tokenizer.json") {
            let path = dir.join("tokenizer.json");
            from_json(&read_text(&path)?).map_err(|message| Error::bad_file(path, message))?
        } else if has("vocab.json") && has("merges.txt") {
            byte_level_bpe(dir)?
        } else if has("vocab.txt") {
            word_piece(dir)?
        } else {
            return Err(Error::bad_file(
                dir,
                "has no tokenizer: expected tokenizer.json, or vocab.json with merges.txt, or vocab.txt",
            ));
        };
        let configs = [read_optional(&dir.join("tokenizer_config.json"))?, read_optional(&dir.join("special_tokens_map.json"))?];
        Self::new(inner, &configs, &read_optional(&dir.join("config.json"))?)
    }

    /// A tokenizer from the text of a tokenizer.json.
    pub fn from_json(json: &str, model_config: &Value) -> Result<Self> {
        let inner = from_json(json).map_err(|message| Error::invalid(format!("tokenizer.json {message}")))?;
        Self::new(inner, &[], model_config)
    }

    fn new(mut inner: HfTokenizer, configs: &[Value], model_config: &Value) -> Result<Self> {
        // Limits stored for some other use must not cut the user's text.
        inner.with_truncation(None).map_err(|e| Error::invalid(format!("tokenizer: {e}")))?;
        inner.with_padding(None);
        let special = |key: &str, common: &[&str]| {
            let named = configs.iter().find_map(|c| c[key].as_str().or_else(|| c[key]["content"].as_str()));
            // Configs name ids that their tokenizer never had (a copied 50256, say): those mean nothing.
            let by_config = || {
                model_config[format!("{key}_id")]
                    .as_u64()
                    .and_then(|id| u32::try_from(id).ok())
                    .filter(|id| inner.id_to_token(*id).is_some())
            };
            let by_name = || common.iter().find_map(|name| inner.token_to_id(name));
            named.and_then(|name| inner.token_to_id(name)).or_else(by_config).or_else(by_name)
        };
        let eos = special("eos_token", &["</s>", "<|endoftext|>", "[SEP]"]);
        let (mask, pad) = (special("mask_token", &["[MASK]", "<mask>"]), special("pad_token", &["[PAD]", "<pad>"]));
        let bad = |e: String| Error::invalid(format!("tokenizer: {e}"));
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest >= LARGEST_ID {
            return Err(bad(format!("has the token id {largest}: expected ids below {LARGEST_ID}")));
        }
        let encode = |special: bool| foreign(|| inner.encode("a", special).map(|e| e.get_ids().to_vec())).map_err(bad);
        let (bare, wrapped) = (encode(false)?, encode(true)?);
        let at = wrapped.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
        let (prefix, suffix) = match bare.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => (wrapped[..at].to_vec(), wrapped[at + bare.len()..].to_vec()),
        };
        let json = foreign(|| inner.to_string(false)).map_err(bad)?;
        let recipe = format!("{json} {prefix:?} {suffix:?} {eos:?} {mask:?} {pad:?}");
        let fingerprint = blake3::hash(recipe.as_bytes()).to_hex().to_string();
        Ok(Self { inner, prefix, suffix, eos, mask, pad, fingerprint })
    }

    /// Tokens of a text, without the special tokens that frame a sequence.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = foreign(|| self.inner.encode_fast(text, false))
            .map_err(|e| Error::invalid(format!("cannot tokenise the text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A text, or a pair of texts, as the model reads it: special tokens included, cut to `limit` tokens (of a pair the longer
    /// text is), with the token types if they are not all 0. No tokens if a text has none.
    pub fn sequence(&self, text: &str, pair: Option<&str>, limit: usize) -> Result<(Vec<u32>, Option<Vec<u32>>)> {
        let Some(pair) = pair else {
            let mut tokens = self.encode(text)?;
            tokens.truncate(limit.saturating_sub(self.prefix.len() + self.suffix.len()));
            let whole = if tokens.is_empty() { tokens } else { [&self.prefix[..], &tokens, &self.suffix].concat() };
            return Ok((whole, None));
        };
        let bad = |e: String| Error::invalid(format!("cannot tokenise the pair of texts: {e}"));
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(true));
        let room = limit.saturating_sub(added);
        if room < 2 {
            return Err(bad(format!("sequence length {limit} leaves no room for it beside {added} special tokens")));
        }
        let encode = |text: &str| foreign(|| self.inner.encode_fast(text, false)).map_err(bad);
        let (first, second) = (encode(text)?, encode(pair)?);
        if first.is_empty() || second.is_empty() {
            return Ok((Vec::new(), None));
        }
        let longest_first = TruncationParams { max_length: room, ..TruncationParams::default() };
        let whole = foreign(|| {
            let (first, second) = truncate_encodings(first, Some(second), &longest_first)?;
            self.inner.post_process(first, second, true)
        });
        let whole = whole.map_err(bad)?;
        let types = whole.get_type_ids().to_vec();
        Ok((whole.get_ids().to_vec(), types.iter().any(|t| *t > 0).then_some(types)))
    }

    /// Text of tokens; special tokens are left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        foreign(|| self.inner.decode(tokens, true)).map_err(|e| Error::invalid(format!("cannot decode tokens: {e}")))
    }

    /// The text of a tokenizer.json that makes the same tokenizer.
    pub fn to_json(&self) -> Result<String> {
        foreign(|| self.inner.to_string(false)).map_err(|e| Error::invalid(format!("tokenizer: {e}")))
    }

    /// Special tokens before a sequence (`<s>`, `[CLS]`).
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Special tokens after a sequence (`[SEP]`).
    pub fn suffix(&self) -> &[u32] {
        &self.suffix
    }

    /// End of text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// What stands for a masked token.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// What fills short sequences.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// A hash of everything that decides how text becomes tokens.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Ids of special tokens, which masking leaves alone.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let mut ids: Vec<u32> = added.into_iter().filter(|(_, t)| t.special).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

/// A JSON file's contents; null if there is no such file.
fn read_optional(path: &Path) -> Result<Value> {
    if path.is_file() { read_json(path) } else { Ok(Value::Null) }
}

fn from_json(json: &str) -> std::result::Result<HfTokenizer, String> {
    let value: Value = serde_json::from_str(json).map_err(|e| format!("is not valid JSON: {e}"))?;
    if growth(&value["normalizer"]).saturating_mul(growth(&value["pre_tokenizer"])) > MOST_GROWTH {
        return Err(format!("makes more than {MOST_GROWTH} bytes of one: its replacements would fill the memory"));
    }
    foreign(|| json.parse()).map_err(|e| format!("is not a valid tokenizer: {e}"))
}

/// Ids lie below this: the library walks through all ids up to the largest.
const LARGEST_ID: u32 = 1 << 24;

/// Bytes that a tokenizer's steps may make of one byte; those in use stay below ten.
const MOST_GROWTH: usize = 1 << 12;

/// Bytes that the replacements in a step, or in the steps within it, make of one byte at most.
fn growth(step: &Value) -> usize {
    let within: Vec<&Value> = match step {
        Value::Array(steps) => steps.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => return 1,
    };
    let own = match step["type"].as_str() {
        // The empty pattern matches between any two characters.
        Some("Replace") => step["content"].as_str().map_or(1, |content| content.len() + 1),
        // A compiled map of strings, which it may put in the place of any character.
        Some("Precompiled") => step["precompiled_charsmap"].as_str().map_or(1, longest_replacement),
        _ => 1,
    };
    within.into_iter().map(growth).fold(own, usize::saturating_mul)
}

/// The longest string in SentencePiece's compiled map: the length of a trie, the trie, and strings that end with a zero.
fn longest_replacement(map: &str) -> usize {
    let Ok(bytes) = BASE64_STANDARD.decode(map) else { return 1 };
    let trie = bytes.first_chunk().map_or(0, |size| u32::from_le_bytes(*size) as usize);
    let strings = bytes.get(trie.saturating_add(4)..).unwrap_or_default();
    strings.split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(1).max(1)
}

fn byte_level_bpe(dir: &Path) -> Result<HfTokenizer> {
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    check_link(&vocab)?;
    check_link(&merges)?;
    let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
        .build()
        .map_err(|e| Error::bad_file(dir, format!("vocab.json and merges.txt are not a valid BPE: {e}")))?;
    let mut tokenizer = HfTokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    if tokenizer.token_to_id("<|endoftext|>").is_some() {
        tokenizer
            .add_special_tokens([AddedToken::from("<|endoftext|>", true)])
            .map_err(|e| Error::bad_file(dir, e.to_string()))?;
    }
    Ok(tokenizer)
}

fn word_piece(dir: &Path) -> Result<HfTokenizer> {
    let path = dir.join("vocab.txt");
    check_link(&path)?;
    let model = WordPiece::from_file(&path.to_string_lossy())
        .unk_token("[UNK]".into())
        .build()
        .map_err(|e| Error::bad_file(&path, format!("is not a valid WordPiece vocabulary: {e}")))?;
    let lower = read_optional(&dir.join("tokenizer_config.json"))?["do_lower_case"].as_bool().unwrap_or(true);
    let mut tokenizer = HfTokenizer::new(model);
    let normalizer = BertNormalizer::new(true, true, None, lower);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|e| Error::bad_file(&path, e.to_string()))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let present: Vec<_> =
        special.into_iter().filter(|t| tokenizer.token_to_id(t).is_some()).map(|t| AddedToken::from(t, true)).collect();
    tokenizer.add_special_tokens(present).map_err(|e| Error::bad_file(&path, e.to_string()))?;
    let frame = |name: &str| Some((name.to_owned(), tokenizer.token_to_id(name)?));
    if let (Some(sep), Some(cls)) = (frame("[SEP]"), frame("[CLS]")) {
        tokenizer.with_post_processor(Some(BertProcessing::new(sep, cls)));
    }
    Ok(tokenizer)
}
