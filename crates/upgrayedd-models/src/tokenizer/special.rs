//! Special and added tokens: from everywhere that they may be written, in the order in which transformers 5
//! takes them.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::class::Traits;
use crate::{Error, Result};

/// The special tokens with a meaning, in the order in which transformers adds them.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Special tokens without a meaning, as a list, or with meanings of the model's own, as an object.
const EXTRA: &str = "extra_special_tokens";
/// What the list was called before transformers 5.
const ADDITIONAL: &str = "additional_special_tokens";
/// The object once more.
const OF_THE_MODEL: &str = "model_specific_special_tokens";
/// Where tokens are listed with their ids.
const DECODER: &str = "added_tokens_decoder";

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
    named: Vec<(String, AddedToken)>,
    /// Everything that is to be added, in order.
    pub(super) all: Vec<AddedToken>,
    /// Special tokens without a meaning.
    extra: Vec<String>,
}

/// The keys that speak of tokens, while they are gathered.
struct Keys {
    values: Map<String, Value>,
    /// Which of them stand in special_tokens_map.json.
    from_map: HashSet<String>,
    /// Tokens with meanings of the model's own.
    of_the_model: Map<String, Value>,
}

impl Special {
    /// The text of a named token.
    pub(super) fn named(&self, key: &str) -> Option<&str> {
        self.named.iter().find(|(name, _)| name == key).map(|(_, token)| token.content.as_str())
    }

    /// Every special token, without the flags that it may have elsewhere.
    pub(super) fn plain(&self) -> Vec<AddedToken> {
        let named = self.named.iter().map(|(_, token)| &token.content);
        named.chain(&self.extra).map(|text| AddedToken::from(text.clone(), true)).collect()
    }

    /// Every named token with its key.
    pub(super) fn meanings(&self) -> Vec<(String, String)> {
        self.named.iter().map(|(key, token)| (key.clone(), token.content.clone())).collect()
    }

    pub(super) fn gather(sources: &Sources<'_>, traits: &Traits) -> Result<Self> {
        let mut keys = Keys::of(sources.config);
        if keys.values.get(EXTRA).is_none_or(Value::is_null) && !traits.extra.is_empty() {
            keys.values.insert(EXTRA.to_owned(), traits.extra.into());
        }
        let listed = sources.config.get(DECODER).filter(|v| !v.is_null());
        let by_id = match listed {
            Some(listed) => from_decoder(listed)?,
            // What newer files have in one place stands in two files and in tokenizer.json.
            None => {
                keys.merge(sources.map)?;
                from_files(sources, &keys)?
            }
        };
        let mut special = Self { all: by_id.into_values().collect(), ..Self::default() };
        special.name(&keys, traits)?;
        let in_json =
            sources.json["added_tokens"].as_array().filter(|_| sources.as_it_is).into_iter().flatten();
        let mut known: HashSet<String> = in_json.filter_map(content).collect();
        known.extend(special.all.iter().map(|t| t.content.clone()));
        // Named tokens that are not there, then those without a meaning; the last word on a token's flags
        // counts.
        let mut more: Vec<AddedToken> = Vec::new();
        let extra = keys.extra()?;
        special.extra = extra.iter().map(|token| token.content.clone()).collect();
        let named = special.named.iter().map(|(_, token)| token.clone());
        for token in named.chain(extra) {
            if !known.contains(&token.content) && !more.iter().any(|other| same(other, &token)) {
                more.push(token);
            }
        }
        special.all.extend(more);
        for token in &mut special.all {
            token.special |= special.named.iter().any(|(_, named)| named.content == token.content);
        }
        Ok(special)
    }

    /// Finds the tokens with a meaning: seven, and those of the model's own.
    fn name(&mut self, keys: &Keys, traits: &Traits) -> Result<()> {
        let listed: HashMap<&str, &AddedToken> = self.all.iter().map(|t| (t.content.as_str(), t)).collect();
        let mut named: Vec<(String, AddedToken)> = Vec::new();
        for key in NAMED {
            let default = traits.tokens.iter().find(|(name, _)| *name == key).map(|(_, text)| *text);
            let token = match keys.values.get(key) {
                // The class's own default, unless the file says that there is none.
                None => default.map(|text| AddedToken::from(text, true)),
                Some(Value::Null) => None,
                Some(value) => Some(described(keys.checked(key, value)?, true, key)?),
            };
            if let Some(mut token) = token {
                let is_text = keys.values.get(key).is_none_or(Value::is_string);
                token.lstrip |= key == "mask_token" && traits.mask_takes_space && is_text;
                let token = listed.get(token.content.as_str()).map_or(token, |known| (*known).clone());
                named.push((key.to_owned(), token));
            }
        }
        // Those that are described come first, then those that are text; a name that is there already gets
        // another token.
        let described_ones = keys.values.iter().filter(|(key, value)| {
            let in_map = keys.from_map.contains(*key);
            is_own(key) && (in_map && content(value).is_some() || is_described(value))
        });
        for (key, value) in described_ones.chain(&keys.of_the_model) {
            let token = described(value, true, key)?;
            match named.iter_mut().find(|(name, _)| name == key) {
                Some((_, place)) => *place = token,
                None => named.push((key.clone(), token)),
            }
        }
        // The seven keep their places, wherever they were found.
        named.sort_by_key(|(key, _)| NAMED.iter().position(|name| name == key).unwrap_or(NAMED.len()));
        self.named = named;
        Ok(())
    }
}

impl Keys {
    fn of(config: &Map<String, Value>) -> Self {
        let mut values = config.clone();
        // As Python sees it: what is empty is not there.
        let has_tokens = |v: &Value| match v {
            Value::Array(list) => !list.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            other => !other.is_null(),
        };
        if !values.get(EXTRA).is_some_and(has_tokens)
            && let Some(old) = values.shift_remove(ADDITIONAL)
        {
            values.insert(EXTRA.to_owned(), old);
        }
        let own = values.iter().filter(|(key, value)| is_own(key) && value.is_string());
        let mut of_the_model: Map<String, Value> =
            own.map(|(key, value)| (key.clone(), value.clone())).collect();
        for key in of_the_model.keys() {
            values.shift_remove(key);
        }
        if values.get(EXTRA).is_some_and(Value::is_object)
            && let Some(Value::Object(named)) = values.shift_remove(EXTRA)
        {
            of_the_model.extend(named);
        }
        if let Some(Value::Object(named)) = values.shift_remove(OF_THE_MODEL)
            && of_the_model.is_empty()
        {
            of_the_model = named;
        }
        Self { values, from_map: HashSet::new(), of_the_model }
    }

    /// Takes over what special_tokens_map.json says.
    fn merge(&mut self, map: &Value) -> Result<()> {
        for (key, value) in map.as_object().into_iter().flatten() {
            if let Some(token) = value
                .as_array()
                .into_iter()
                .flatten()
                .find(|token| is_described(token) || token.get("special").is_some())
            {
                return Err(Error::malformed(format!(
                    "special_tokens_map.json: {key}: {token} is no token: expected text, or an object without __type and special"
                )));
            }
            match (key.as_str(), self.values.get_mut(key), value) {
                (EXTRA, Some(Value::Array(tokens)), Value::Array(more)) => {
                    let new: Vec<Value> =
                        more.iter().filter(|token| !tokens.contains(token)).cloned().collect();
                    tokens.extend(new);
                    self.from_map.insert(key.clone());
                }
                (EXTRA, _, Value::Object(named)) => self.of_the_model.extend(named.clone()),
                _ => {
                    self.values.insert(key.clone(), value.clone());
                    self.from_map.insert(key.clone());
                }
            }
        }
        Ok(())
    }

    /// A token as it may be written where it stands: only special_tokens_map.json describes tokens without
    /// saying that it does.
    fn checked<'v>(&self, key: &str, value: &'v Value) -> Result<&'v Value> {
        if value.is_object() && !is_described(value) && !self.from_map.contains(key) {
            return Err(Error::malformed(format!(
                "tokenizer_config.json: {key}: {value} is no token: expected text, or an object with \"__type\": \"AddedToken\""
            )));
        }
        Ok(value)
    }

    /// Special tokens without a meaning.
    fn extra(&self) -> Result<Vec<AddedToken>> {
        let (key, value) = match (self.values.get(EXTRA), self.values.get(ADDITIONAL)) {
            (Some(value), _) => (EXTRA, value),
            (None, Some(value)) => (ADDITIONAL, value),
            (None, None) => return Ok(Vec::new()),
        };
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Array(tokens) => {
                let token = |token| described(self.checked(key, token)?, !is_described(token), key);
                tokens.iter().map(token).collect()
            }
            other => Err(bad(key, other)),
        }
    }

    /// The texts that added_tokens.json is compared with.
    fn special_texts(&self) -> HashSet<String> {
        let named = NAMED.iter().filter_map(|key| {
            let value = self.values.get(*key)?;
            if self.from_map.contains(*key) { content(value) } else { value.as_str().map(str::to_owned) }
        });
        let extra = self.values.get(EXTRA).and_then(Value::as_array).into_iter().flatten();
        named.chain(extra.filter_map(Value::as_str).map(str::to_owned)).collect()
    }
}

fn from_decoder(listed: &Value) -> Result<BTreeMap<u64, AddedToken>> {
    const PLACE: &str = "tokenizer_config.json: added_tokens_decoder";
    let listed = listed.as_object().ok_or_else(|| bad(PLACE, listed))?;
    let token = |(id, token): (&String, &Value)| {
        let id = id.parse().map_err(|_| bad(PLACE, &Value::from(id.as_str())))?;
        Ok((id, described(token, false, PLACE)?))
    };
    listed.iter().map(token).collect()
}

fn from_files(sources: &Sources<'_>, keys: &Keys) -> Result<BTreeMap<u64, AddedToken>> {
    let mut by_id = BTreeMap::new();
    let special = keys.special_texts();
    for (text, id) in sources.added.as_object().into_iter().flatten() {
        let id = id.as_u64().ok_or_else(|| bad("added_tokens.json", id))?;
        by_id.insert(id, AddedToken::from(text.clone(), special.contains(text)));
    }
    for token in sources.json["added_tokens"].as_array().into_iter().flatten() {
        let id = token["id"].as_u64().ok_or_else(|| bad("tokenizer.json: added_tokens", token))?;
        by_id.insert(id, described(token, false, "tokenizer.json: added_tokens")?);
    }
    Ok(by_id)
}

/// A special token that is none of the seven.
fn is_own(key: &str) -> bool {
    key.ends_with("_token") && !NAMED.contains(&key)
}

/// Whether a value is a token with flags, as transformers writes it into tokenizer_config.json.
fn is_described(value: &Value) -> bool {
    value["__type"] == "AddedToken"
}

/// The text of a token, plain or described.
fn content(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// A token as text, which is special, or described by an object; `special` where the place says that it is.
fn described(value: &Value, special: bool, place: &str) -> Result<AddedToken> {
    let text = content(value).ok_or_else(|| bad(place, value))?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let mut token = AddedToken::from(text, special || value.is_string() || flag("special").unwrap_or(false));
    token.single_word = flag("single_word").unwrap_or(false);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(token.normalized);
    Ok(token)
}

/// Whether two tokens are the same in every flag.
fn same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && flags(a) == flags(b)
}

fn bad(place: &str, value: &Value) -> Error {
    let place = if place.contains(".json") {
        place.to_owned()
    } else {
        format!("tokenizer_config.json or special_tokens_map.json: {place}")
    };
    Error::malformed(format!("{place}: {value} is no token: expected text, or an object with its content"))
}
