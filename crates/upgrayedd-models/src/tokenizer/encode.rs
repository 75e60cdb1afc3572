//! Text ↔ token ids.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, truncate_encodings};
use tokenizers::{Encoding, PostProcessor, Token, Tokenizer as HfTokenizer};

use super::files::{self, Made};
use super::limits::LARGEST_ID;
use super::reach::Reach;
use crate::foreign::foreign;
use crate::{Error, Result};

/// Text ↔ token ids.
///
/// ```no_run
/// use upgrayedd_models::Tokenizer;
///
/// let tokenizer = Tokenizer::load("SmolLM2-135M".as_ref(), &serde_json::Value::Null)?;
/// let ids = tokenizer.encode("Once upon a time")?;
/// assert_eq!(tokenizer.decode(&ids)?, "Once upon a time");
/// # Ok::<(), upgrayedd_models::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: HfTokenizer,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    eos: Option<u32>,
    mask: Option<u32>,
    pad: Option<u32>,
    unknown: Option<u32>,
    types: bool,
    cuts_left: bool,
    /// Special tokens by their meaning.
    named: Vec<(String, String)>,
    notices: Vec<String>,
    fingerprint: String,
    reach: Reach,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.inner.get_vocab_size(true))
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a folder whose model has this config.json, as transformers' `AutoTokenizer` makes it.
    ///
    /// # Errors
    /// Returns [`Error::File`] if there are no files of a tokenizer or one cannot be used, [`Error::Io`] if
    /// the system cannot read one, and [`Error::Malformed`] for ids that are too large and for a frame around
    /// a text that is not supported.
    pub fn load(dir: &Path, model_config: &Value) -> Result<Self> {
        Self::new(files::make(dir, model_config)?, model_config)
    }

    /// A tokenizer from the text of a tokenizer.json.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] if the text is no tokenizer, or one that could fill the memory, that has
    /// ids that are too large, or that puts a frame around a text that is not supported.
    pub fn from_json(json: &str, model_config: &Value) -> Result<Self> {
        Self::new(files::from_json(json)?, model_config)
    }

    fn new(made: Made, model_config: &Value) -> Result<Self> {
        let Made { inner, special, unknown, types, cuts_left, notices } = made;
        let bad = |e: String| Error::malformed(format!("tokenizer: {e}"));
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        if largest >= LARGEST_ID {
            return Err(bad(format!("has the token id {largest}: expected ids below {LARGEST_ID}")));
        }
        // A class's default may stand for a token that the model never had, and configs name ids that their
        // tokenizer never had (a copied 50256, say): those mean nothing.
        let vocabulary = model_config["vocab_size"].as_u64().unwrap_or(u64::MAX);
        let known = |id: &u32| u64::from(*id) < vocabulary && inner.id_to_token(*id).is_some();
        let token = |key: &str, common: &[&str]| {
            let named = special.named(key).and_then(|text| inner.token_to_id(text)).filter(known);
            // Whoever needs it says what is wrong with it.
            let by_config =
                || end_tokens(&model_config[format!("{key}_id")]).unwrap_or_default().into_iter().find(known);
            let by_name = || common.iter().find_map(|name| inner.token_to_id(name));
            named.or_else(by_config).or_else(by_name)
        };
        let eos = token("eos_token", &["</s>", "<|endoftext|>", "[SEP]"]);
        let (mask, pad) =
            (token("mask_token", &["[MASK]", "<mask>"]), token("pad_token", &["[PAD]", "<pad>"]));
        let unknown = unknown.and_then(|text| inner.token_to_id(&text));
        let (prefix, suffix) = frame_of(&inner, types).map_err(bad)?;
        let json = foreign(|| inner.to_string(false)).map_err(bad)?;
        let recipe = format!(
            "{json} {prefix:?} {suffix:?} {eos:?} {mask:?} {pad:?} {types} {cuts_left} {}",
            inner.get_encode_special_tokens()
        );
        let fingerprint = blake3::hash(recipe.as_bytes()).to_hex().to_string();
        let (named, reach) = (special.meanings(), Reach::of(&inner));
        Ok(Self {
            inner,
            prefix,
            suffix,
            eos,
            mask,
            pad,
            unknown,
            types,
            cuts_left,
            named,
            notices,
            fingerprint,
            reach,
        })
    }

    /// Tokens of a text, without the special tokens that frame a sequence.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if the tokenizer cannot take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = foreign(|| self.inner.encode_fast(text, false))
            .map_err(|e| Error::data(format!("cannot tokenise the text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids without any special tokens around the text, and where in it each stands, in bytes.
    pub(crate) fn encode_with_places(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = foreign(|| self.inner.encode(text, false))
            .map_err(|e| Error::data(format!("cannot tokenise the text: {e}")))?;
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok((encoding.get_ids().to_vec(), places))
    }

    /// Special tokens by their names, as `bos_token`.
    pub(crate) fn meanings(&self) -> &[(String, String)] {
        &self.named
    }

    /// Every special token.
    pub(crate) fn special_texts(&self) -> Vec<String> {
        let tokens: BTreeMap<_, _> = self.inner.get_added_tokens_decoder().into_iter().collect();
        tokens.into_values().filter(|token| token.special).map(|token| token.content).collect()
    }

    /// A text, or a pair of texts, as the model reads it: special tokens included, cut to `limit` tokens (of
    /// a pair the longer text is) where the tokenizer's files say, with the token types if a model gets them
    /// and they are not all 0. No tokens if a text has none.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if the tokenizer cannot take a text, or `limit` leaves no room for a pair.
    pub fn sequence(
        &self,
        text: &str,
        pair: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<u32>, Option<Vec<u32>>)> {
        let Some(pair) = pair else {
            let mut tokens = self.encode(text)?;
            let excess =
                tokens.len().saturating_sub(limit.saturating_sub(self.prefix.len() + self.suffix.len()));
            if self.cuts_left {
                tokens.drain(..excess);
            } else {
                tokens.truncate(tokens.len() - excess);
            }
            let whole =
                if tokens.is_empty() { tokens } else { [&self.prefix[..], &tokens, &self.suffix].concat() };
            return Ok((whole, None));
        };
        let bad = |e: String| Error::data(format!("cannot tokenise the pair of texts: {e}"));
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(true));
        let room = limit.saturating_sub(added);
        if room < 2 {
            return Err(bad(format!(
                "sequence length {limit} leaves no room for it beside {added} special tokens"
            )));
        }
        let encode = |text: &str| foreign(|| self.inner.encode_fast(text, false)).map_err(bad);
        let (first, second) = (encode(text)?, encode(pair)?);
        if first.is_empty() || second.is_empty() {
            return Ok((Vec::new(), None));
        }
        let direction = if self.cuts_left { TruncationDirection::Left } else { TruncationDirection::Right };
        let longest_first = TruncationParams { max_length: room, direction, ..TruncationParams::default() };
        let whole = foreign(|| {
            let (first, second) = truncate_encodings(first, Some(second), &longest_first)?;
            self.inner.post_process(first, second, true)
        });
        let whole = whole.map_err(bad)?;
        let types = whole.get_type_ids().to_vec();
        Ok((whole.get_ids().to_vec(), types.iter().any(|t| self.types && *t > 0).then_some(types)))
    }

    /// Text of tokens; special tokens are left out.
    ///
    /// # Errors
    /// Returns [`Error::Data`] if the tokenizer cannot make text of the tokens.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        foreign(|| self.inner.decode(tokens, true))
            .map_err(|e| Error::data(format!("cannot decode tokens: {e}")))
    }

    /// The text of a tokenizer.json that makes the same tokenizer.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] if the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String> {
        foreign(|| self.inner.to_string(false)).map_err(|e| Error::malformed(format!("tokenizer: {e}")))
    }

    /// A tokenizer_config.json that goes with [`Self::to_json`]: the tokenizer is what that file says, in
    /// whatever model's folder.
    pub fn to_config(&self) -> Value {
        let mut inputs = vec!["input_ids", "attention_mask"];
        inputs.extend(self.types.then_some("token_type_ids"));
        let side = if self.cuts_left { "left" } else { "right" };
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs, "truncation_side": side });
        let tokens = [
            ("eos_token", self.eos),
            ("mask_token", self.mask),
            ("pad_token", self.pad),
            ("unk_token", self.unknown),
        ];
        for (key, text) in &self.named {
            config[key] = text.as_str().into();
        }
        for (key, id) in tokens {
            if let Some(text) = id.and_then(|id| self.inner.id_to_token(id)) {
                config[key] = text.into();
            }
        }
        config
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

    /// What stands for text that the vocabulary does not have.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The text of one token, as the vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The number of a token, if there is one of this text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// What was passed over or taken otherwise than a file says, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// A hash of everything that decides how text becomes tokens.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// How much of a text decides about a token.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Ids of special tokens, which masking leaves alone.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let mut ids: Vec<u32> = added.into_iter().filter(|(_, t)| t.special).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }
}

/// One token or several, as config.json and generation_config.json have them; negative numbers stand for
/// none.
///
/// # Errors
/// Returns the reason, as the end of a sentence about `value`, for what is neither.
pub fn end_tokens(value: &Value) -> std::result::Result<Vec<u32>, String> {
    let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    match ids.iter().find(|id| !id.is_null() && !id.is_i64() && !id.is_u64()) {
        Some(other) => Err(format!("is {other}: expected the number of a token, or a list of them")),
        None => Ok(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()),
    }
}

/// What the post-processor puts before and after a text.
fn frame_of(inner: &HfTokenizer, types: bool) -> std::result::Result<(Vec<u32>, Vec<u32>), String> {
    // Stands for the text: no vocabulary has this id.
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, "a".to_owned(), (0, 1))], 0);
    let framed = foreign(|| inner.post_process(text, None, true))?;
    if types && framed.get_type_ids().iter().any(|t| *t > 0) {
        return Err("its post-processor gives a text alone token types other than 0, which is not supported"
            .to_owned());
    }
    let mut parts = framed.get_ids().split(|id| *id == TEXT);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(prefix), Some(suffix), None) => Ok((prefix.to_vec(), suffix.to_vec())),
        _ => Err("its post-processor does not put the text into its frame just once".to_owned()),
    }
}
