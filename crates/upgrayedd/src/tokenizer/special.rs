//! Special and added tokens: from everywhere that they may be written, in the order in which transformers 5 takes them.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{Error, Result};

/// The special tokens with a meaning, in the order in which transformers adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files that tell of tokens; null where there is none.
pub(super) struct Sources<'a> {
    pub(super) config: &'a Map<String, Value>,
    /// special_tokens_map.json
    pub(super) map: &'a Value,
    /// added_tokens.json
    pub(super) added: &'a Value,
    /// tokenizer.json
    pub(super) json: &'a Value,
    /// Whether the tokenizer is that of tokenizer.json and has its tokens already.
    pub(super) as_it_is: bool,
}

/// Tokens that a tokenizer has beside its vocabulary.
#[derive(Default)]
pub(super) struct Special {
    /// `bos_token` and its like, with what they are; a class's own defaults are among them.
    pub(super) named: Vec<(String, AddedToken)>,
    /// Everything that is to be added, in order.
    pub(super) all: Vec<AddedToken>,
}

impl Special {
    /// The text of a named token.
    pub(super) fn named(&self, key: &str) -> Option<&str> {
        self.named.iter().find(|(name, _)| name == key).map(|(_, token)| token.content.as_str())
    }

    pub(super) fn gather(sources: &Sources<'_>, defaults: &[(&str, &str)]) -> Result<Self> {
        let mut keys = sources.config.clone();
        let truthy = |v: &Value| v.as_array().map_or(!v.is_null(), |list| !list.is_empty());
        if !keys.get(EXTRA).is_some_and(truthy)
            && let Some(old) = keys.remove(ADDITIONAL)
        {
            keys.insert(EXTRA.to_owned(), old);
        }
        let mut by_id: BTreeMap<u64, AddedToken> = BTreeMap::new();
        if let Some(listed) = keys.remove("added_tokens_decoder").filter(|v| !v.is_null()) {
            for (id, token) in object(&listed, "tokenizer_config.json: added_tokens_decoder")? {
                let id = id.parse().map_err(|_| bad("tokenizer_config.json: added_tokens_decoder", &Value::from(id.as_str())))?;
                by_id.insert(id, described(token, None, "tokenizer_config.json: added_tokens_decoder")?);
            }
        } else {
            // What newer files have in added_tokens_decoder stands in two files and in tokenizer.json.
            for (key, value) in sources.map.as_object().into_iter().flatten() {
                match (key.as_str(), keys.get_mut(key), value) {
                    (EXTRA, Some(Value::Array(tokens)), Value::Array(more)) => {
                        let new: Vec<Value> = more.iter().filter(|token| !tokens.contains(token)).cloned().collect();
                        tokens.extend(new);
                    }
                    _ => {
                        keys.insert(key.clone(), value.clone());
                    }
                }
            }
            let named: Vec<String> = NAMED.iter().filter_map(|key| keys.get(*key)).filter_map(content).collect();
            let extra = extra_tokens(&keys)?;
            for (text, id) in sources.added.as_object().into_iter().flatten() {
                let id = id.as_u64().ok_or_else(|| bad("added_tokens.json", id))?;
                let special = named.contains(text) || extra.iter().any(|t| t.content == *text);
                by_id.insert(id, AddedToken::from(text.clone(), special));
            }
            for token in sources.json["added_tokens"].as_array().into_iter().flatten() {
                let id = token["id"].as_u64().ok_or_else(|| bad("tokenizer.json: added_tokens", token))?;
                by_id.insert(id, described(token, None, "tokenizer.json: added_tokens")?);
            }
        }
        let mut special = Self { all: by_id.into_values().collect(), ..Self::default() };
        special.name(&keys, defaults)?;
        // Named tokens that are not listed, then those without a meaning.
        let named: Vec<AddedToken> = special.named.iter().map(|(_, token)| token.clone()).collect();
        let extra = extra_tokens(&keys)?;
        let in_json = sources.json["added_tokens"].as_array().filter(|_| sources.as_it_is).into_iter().flatten();
        let mut there: HashSet<String> = in_json.filter_map(content).collect();
        there.extend(special.all.iter().map(|t| t.content.clone()));
        for token in named.iter().chain(&extra) {
            if there.insert(token.content.clone()) {
                special.all.push(token.clone());
            }
        }
        for token in &mut special.all {
            token.special |= named.iter().any(|n| n.content == token.content);
        }
        Ok(special)
    }

    /// Finds the tokens with a meaning: seven, and any other key that ends like theirs.
    fn name(&mut self, keys: &Map<String, Value>, defaults: &[(&str, &str)]) -> Result<()> {
        let listed: HashMap<&str, &AddedToken> = self.all.iter().map(|t| (t.content.as_str(), t)).collect();
        let mut named = Vec::new();
        for key in NAMED {
            let default = defaults.iter().find(|(name, _)| *name == key).map(|(_, text)| *text);
            let token = match keys.get(key) {
                // The class's own default, unless the file says that there is none.
                None => default.map(|text| AddedToken::from(text, true)),
                Some(Value::Null) => None,
                Some(value) => Some(described(value, Some(true), key)?),
            };
            if let Some(token) = token {
                let token = listed.get(token.content.as_str()).map_or(token, |known| (*known).clone());
                named.push((key.to_owned(), token));
            }
        }
        let models_own = [EXTRA, "model_specific_special_tokens"].into_iter().filter_map(|key| keys.get(key)?.as_object());
        let others = keys
            .iter()
            .filter(|(key, value)| key.ends_with("_token") && !NAMED.contains(&key.as_str()) && content(value).is_some());
        for (key, value) in others.chain(models_own.flatten()) {
            named.push((key.clone(), described(value, Some(true), key)?));
        }
        self.named = named;
        Ok(())
    }
}

const EXTRA: &str = "extra_special_tokens";
/// What the same key was called before transformers 5.
const ADDITIONAL: &str = "additional_special_tokens";

/// Special tokens without a meaning of their own.
fn extra_tokens(keys: &Map<String, Value>) -> Result<Vec<AddedToken>> {
    let (key, value) = match (keys.get(EXTRA), keys.get(ADDITIONAL)) {
        (Some(value), _) => (EXTRA, value),
        (None, Some(value)) => (ADDITIONAL, value),
        (None, None) => return Ok(Vec::new()),
    };
    match value {
        // By name: those have a meaning.
        Value::Null | Value::Object(_) => Ok(Vec::new()),
        Value::Array(tokens) => tokens.iter().map(|token| described(token, Some(true), key)).collect(),
        other => Err(bad(key, other)),
    }
}

/// The text of a token, plain or described.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// A token as text, or described by an object; `special` where the place says that it is.
fn described(value: &Value, special: Option<bool>, place: &str) -> Result<AddedToken> {
    let text = content(value).ok_or_else(|| bad(place, value))?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = special.or_else(|| flag("special")).unwrap_or(false);
    let mut token = AddedToken::from(text, special);
    token.single_word = flag("single_word").unwrap_or(false);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(token.normalized);
    Ok(token)
}

fn object<'v>(value: &'v Value, place: &str) -> Result<&'v Map<String, Value>> {
    value.as_object().ok_or_else(|| bad(place, value))
}

fn bad(place: &str, value: &Value) -> Error {
    Error::invalid(format!("{place}: {value} describes no token"))
}
