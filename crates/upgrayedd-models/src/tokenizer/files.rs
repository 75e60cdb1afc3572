//! The files of a tokenizer → one tokenizer, as `AutoTokenizer` of transformers 5 makes it.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer as HfTokenizer};

use super::class::{Class, Frame};
use super::limits::check_growth;
use super::parts::{flag, parts};
use super::special::{Sources, Special};
use crate::files::{read_json, read_optional_json, read_text};
use crate::foreign::foreign;
use crate::{Error, Result, keys};

/// A tokenizer, its special tokens, and what is to be said about it.
pub(super) struct Made {
    pub(super) inner: HfTokenizer,
    pub(super) special: Special,
    /// What it makes of text that it does not know.
    pub(super) unknown: Option<String>,
    /// Whether a model gets token types from it.
    pub(super) types: bool,
    /// Whether texts that are too long lose their beginning.
    pub(super) cuts_left: bool,
    pub(super) notices: Vec<String>,
}

/// Where a vocabulary was found.
enum Vocabulary {
    /// A whole tokenizer.json.
    Json(Value),
    /// The `model` part of one, made of a vocabulary's own files.
    Model(Value, Class),
}

/// Makes the tokenizer of a folder whose model has this config.json.
pub(super) fn make(dir: &Path, model_config: &Value) -> Result<Made> {
    let config = read_optional_json(&dir.join("tokenizer_config.json"))?;
    let map = read_optional_json(&dir.join("special_tokens_map.json"))?;
    let added = read_optional_json(&dir.join("added_tokens.json"))?;
    let in_folder = |error: Error| error.of_file(dir);
    let named = class_name(&config, model_config).map_err(in_folder)?;
    let vocabulary = match read_optional_json(&dir.join("tokenizer.json"))? {
        Value::Null => vocabulary(dir, named, model_config)?,
        json => Vocabulary::Json(json),
    };
    build(vocabulary, [&config, &map, &added], (named, model_config)).map_err(in_folder)
}

/// Makes the tokenizer of a tokenizer.json alone.
pub(super) fn from_json(json: &str) -> Result<Made> {
    let value = serde_json::from_str(json)
        .map_err(|e| Error::malformed(format!("tokenizer.json is not valid JSON: {e}")))?;
    build(Vocabulary::Json(value), [&Value::Null; 3], (None, &Value::Null))
}

/// The class that the files name.
fn class_name<'v>(config: &'v Value, model_config: &'v Value) -> Result<Option<&'v str>> {
    let named = [config, model_config].into_iter().map(|v| &v["tokenizer_class"]).find(|v| !v.is_null());
    match named {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(other) => Err(Error::out_of_range("tokenizer_class", other, "the name of a class")),
    }
}

/// The vocabulary of a folder without tokenizer.json, from the files of the class that transformers would
/// take.
fn vocabulary(dir: &Path, named: Option<&str>, model_config: &Value) -> Result<Vocabulary> {
    let has = |name: &&str| dir.join(name).is_file();
    let class = Class::choose(named, model_config["model_type"].as_str(), false)
        .map_err(|e| Error::bad_file(dir, e.to_string()))?;
    let readable = [Class::Gpt2, Class::Bert].into_iter().find(|class| class.traits().files.iter().all(has));
    let files = class.traits().files;
    let class = match (class, readable) {
        // Nothing says which class it is but the files.
        (Class::Backend, Some(readable)) => readable,
        (class, _) if !files.is_empty() && files.iter().all(has) => class,
        (class, Some(readable)) => {
            return Err(Error::bad_file(
                dir,
                format!(
                    "has {} but no tokenizer.json, and a {} reads neither: expected tokenizer_class {} in tokenizer_config.json if that is what it is",
                    readable.traits().files.join(" and "),
                    class.traits().name,
                    readable.traits().name
                ),
            ));
        }
        (_, None) => return Err(no_tokenizer(dir)),
    };
    if class.traits().kind == Some("WordPiece") {
        let lines = read_text(&dir.join("vocab.txt"))?;
        let vocab: Map<String, Value> =
            lines.lines().enumerate().map(|(id, line)| (line.trim_end().to_owned(), json!(id))).collect();
        return Ok(Vocabulary::Model(json!({ "vocab": vocab }), class));
    }
    let merges = merges(&read_text(&dir.join("merges.txt"))?)
        .map_err(|e| Error::bad_file(dir.join("merges.txt"), e))?;
    let path = dir.join("vocab.json");
    let vocab = read_json(&path)?;
    match vocab
        .as_object()
        .map(|v| v.iter().find(|(_, id)| id.as_u64().is_none_or(|id| id > u64::from(u32::MAX))))
    {
        Some(None) => Ok(Vocabulary::Model(json!({ "vocab": vocab, "merges": merges }), class)),
        Some(Some((token, id))) => Err(Error::bad_file(
            path,
            format!("gives the token {token:?} the id {id}: expected a whole number"),
        )),
        None => Err(Error::bad_file(path, "is not a vocabulary: expected an object of ids by token")),
    }
}

fn no_tokenizer(dir: &Path) -> Error {
    let models = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
    let hint = models.into_iter().find(|name| dir.join(name).is_file()).map(|name| {
        format!(
            ": {name} (SentencePiece) is not read, so write a tokenizer.json once with python -c \"import sys; \
             from transformers import AutoTokenizer as T; T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])\" FOLDER"
        )
    });
    let expected = "expected tokenizer.json, or vocab.json with merges.txt, or vocab.txt";
    Error::bad_file(dir, format!("has no tokenizer: {expected}{}", hint.unwrap_or_default()))
}

/// The pairs of a merges.txt, most important first.
fn merges(text: &str) -> std::result::Result<Vec<Value>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    lines
        .map(|(number, line)| match line.split(' ').collect::<Vec<_>>()[..] {
            [first, second] => Ok(json!([first, second])),
            _ => Err(format!("line {}: expected two tokens with a space between them", number + 1)),
        })
        .collect()
}

/// Where the vocabulary is, what of tokenizer.json it is, and the class that reads it: as transformers
/// decides.
fn place(
    vocabulary: Vocabulary,
    config: &Value,
    (named, model_config): (Option<&str>, &Value),
    options: &mut Map<String, Value>,
    notices: &mut Vec<String>,
) -> Result<(Value, Value, Class)> {
    Ok(match vocabulary {
        Vocabulary::Json(json) if !json.is_object() => {
            return Err(Error::out_of_range("tokenizer.json", json, "an object"));
        }
        Vocabulary::Json(json) => {
            let named_llama = named.is_some_and(|name| name.starts_with("LlamaTokenizer"));
            // Code of the folder's own keeps transformers from looking.
            let byte_level = named_llama && !has_code(config) && json.to_string().contains("\"ByteLevel\"");
            let mut class = Class::choose(named, model_config["model_type"].as_str(), byte_level)?;
            let kind = kind_of(&json["model"]);
            if class.traits().kind.is_some_and(|wanted| wanted != kind) {
                if let Some(named) = named {
                    return Err(Error::malformed(format!(
                        "tokenizer_config.json: tokenizer_class {named} takes a {} vocabulary, but tokenizer.json has a {kind}: \
                         expected PreTrainedTokenizerFast, which takes tokenizer.json as it is",
                        class.traits().kind.unwrap_or_default()
                    )));
                }
                notices.push(format!(
                    "tokenizer.json has a {kind} vocabulary, which transformers would read as a {}'s unless tokenizer_config.json \
                     says tokenizer_class PreTrainedTokenizerFast: it is taken as it is",
                    class.traits().name
                ));
                class = Class::Backend;
            }
            // transformers 5 believes the file.
            options.shift_remove("add_bos_token");
            options.shift_remove("add_eos_token");
            // Padding that is stored there names the token for it.
            let padding = json["padding"]["pad_token"]
                .as_str()
                .filter(|_| matches!(class, Class::Backend | Class::Llama));
            if let Some(token) = padding.filter(|_| !options.contains_key("pad_token")) {
                options.insert("pad_token".to_owned(), token.into());
            }
            let model = json["model"].clone();
            (json, model, class)
        }
        Vocabulary::Model(model, class) => {
            if Class::choose(named, model_config["model_type"].as_str(), false)? == Class::Backend {
                notices.push(format!(
                    "there is no tokenizer.json, and no tokenizer_class says what {} are, so that transformers reads no tokenizer: they are \
                     read as a {}'s",
                    class.traits().files.join(" and "),
                    class.traits().name
                ));
            }
            (Value::Null, model, class)
        }
    })
}

fn build(
    vocabulary: Vocabulary,
    [config, map, added]: [&Value; 3],
    (named, model_config): (Option<&str>, &Value),
) -> Result<Made> {
    let mut options = match config {
        Value::Null => Map::new(),
        Value::Object(options) => options.clone(),
        other => return Err(Error::out_of_range("tokenizer_config.json", other, "an object")),
    };
    let special_token = |key: &str| key.ends_with("_token");
    let mut notices = keys::check("tokenizer_config.json", config, &[keys::TOKENIZER], special_token)?;
    notices.extend(keys::check("special_tokens_map.json", map, &[keys::TOKENIZER], special_token)?);
    let (json, model, class) = place(vocabulary, config, (named, model_config), &mut options, &mut notices)?;
    let traits = class.traits();
    let sources = Sources { config: &options, map, added, json: &json, as_it_is: class == Class::Backend };
    let special = Special::gather(&sources, &traits)?;
    let mut whole = match (class, &json) {
        (Class::Backend, _) => json.clone(),
        _ => {
            let mut parts = parts(class, &model, &json, &options, special.named("unk_token"))?;
            notices.extend(differences(&parts, &json, class));
            parts.insert("version".to_owned(), json!("1.0"));
            parts.insert("added_tokens".to_owned(), json!([]));
            parts.insert("post_processor".to_owned(), json["post_processor"].clone());
            Value::Object(parts)
        }
    };
    let types = gives_types(&options, class)?;
    let cuts_left = match (options.get("truncation_side"), json["truncation"]["direction"].as_str()) {
        (None | Some(Value::Null), stored) => stored == Some("Left"),
        (Some(side), _) if side == "left" || side == "right" => side == "left",
        (Some(side), _) => {
            return Err(Error::out_of_range("tokenizer_config.json: truncation_side", side, "left or right"));
        }
    };
    // Limits stored for some other use must not cut the user's text.
    for key in ["truncation", "padding"] {
        whole[key] = Value::Null;
    }
    check_growth(&whole)?;
    let unknown = unknown_of(&whole["model"]);
    let unknown = unknown.or_else(|| special.named("unk_token").map(str::to_owned));
    let text = whole.to_string();
    let mut inner: HfTokenizer = foreign(|| text.parse()).map_err(|e| {
        let what = if json.is_null() { "the vocabulary's files are" } else { "tokenizer.json is" };
        Error::malformed(format!("{what} not a valid tokenizer: {e}"))
    })?;
    inner.set_encode_special_tokens(flag(&options, "split_special_tokens", false)?);
    let tokens = special.all.clone();
    foreign(|| inner.add_tokens(tokens)).map_err(|e| Error::malformed(format!("added tokens: {e}")))?;
    if class == Class::Qwen2 {
        // It adds them once more as they are by themselves.
        let again = special.plain();
        foreign(|| inner.add_tokens(again)).map_err(|e| Error::malformed(format!("special tokens: {e}")))?;
    }
    frame(&mut inner, class, &options, &special)?;
    Ok(Made { inner, special, unknown, types, cuts_left, notices })
}

/// Sets what frames a text, where that is not as tokenizer.json has it.
fn frame(
    inner: &mut HfTokenizer,
    class: Class,
    options: &Map<String, Value>,
    special: &Special,
) -> Result<()> {
    let id = |token: &str| inner.token_to_id(token);
    let template = |single: String, pair: String, tokens: Vec<(&str, u32)>| {
        let special: Map<String, Value> = tokens
            .iter()
            .map(|(text, id)| ((*text).to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] })))
            .collect();
        let pieces = |text: &str| -> Vec<Value> { serde_json::from_str(text).unwrap_or_default() };
        json!({ "type": "TemplateProcessing", "single": pieces(&single), "pair": pieces(&pair), "special_tokens": special })
    };
    let piece =
        |token: &str, kind: u8| json!({ "SpecialToken": { "id": token, "type_id": kind } }).to_string();
    let (a, b) = (r#"{"Sequence":{"id":"A","type_id":0}}"#, r#"{"Sequence":{"id":"B","type_id":1}}"#);
    let list = |parts: &[&str]| {
        format!("[{}]", parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(","))
    };
    let processor = if class.traits().frame == Frame::Bert {
        let (cls, sep) = (special.named("cls_token"), special.named("sep_token"));
        let (Some(cls), Some(sep)) = (cls, sep) else {
            return Err(Error::malformed(
                "tokenizer_config.json: cls_token or sep_token is null: a BertTokenizer frames texts with them",
            ));
        };
        if let Some(token) = [cls, sep].into_iter().find(|token| token.contains(' ')) {
            return Err(Error::malformed(format!(
                "tokenizer_config.json: cls_token or sep_token is {token:?}: a BertTokenizer cannot frame texts with several words"
            )));
        }
        let tokens = vec![(cls, id(cls).unwrap_or(2)), (sep, id(sep).unwrap_or(3))];
        let (first, end, second) = (piece(cls, 0), piece(sep, 0), piece(sep, 1));
        template(list(&[&first, a, &end]), list(&[&first, a, &end, b, &second]), tokens)
    } else if matches!(class.traits().frame, Frame::Roberta | Frame::Sentences) {
        sentences(inner, class, options, special)?
    } else if options.contains_key("add_bos_token")
        || options.contains_key("add_eos_token")
        || class.traits().frame == Frame::Asked
        || inner.get_post_processor().is_none()
    {
        let asked = |key: &str, token: &str| -> Result<Option<String>> {
            Ok(special.named(token).filter(|_| flag(options, key, false).unwrap_or(false)).map(str::to_owned))
        };
        flag(options, "add_bos_token", false)?;
        flag(options, "add_eos_token", false)?;
        let (bos, eos) = (asked("add_bos_token", "bos_token")?, asked("add_eos_token", "eos_token")?);
        let at =
            |token: &Option<String>, kind: u8| token.as_deref().map(|t| piece(t, kind)).unwrap_or_default();
        let tokens = bos.iter().chain(&eos).map(|t| (t.as_str(), id(t).unwrap_or_default())).collect();
        let single = list(&[&at(&bos, 0), a, &at(&eos, 0)]);
        let pair = list(&[&at(&bos, 0), a, &at(&eos, 0), &at(&bos, 1), b, &at(&eos, 1)]);
        template(single, pair, tokens)
    } else {
        return Ok(());
    };
    let processor: tokenizers::PostProcessorWrapper = serde_json::from_value(processor)
        .map_err(|e| Error::malformed(format!("the tokens that frame a text: {e}")))?;
    inner.with_post_processor(Some(processor));
    Ok(())
}

/// RoBERTa's frame, in which all tokens have one type.
fn sentences(
    inner: &HfTokenizer,
    class: Class,
    options: &Map<String, Value>,
    special: &Special,
) -> Result<Value> {
    let traits = class.traits();
    let keys =
        if traits.frame == Frame::Roberta { ["cls_token", "sep_token"] } else { ["bos_token", "eos_token"] };
    let token = |key: &str, otherwise: u32| {
        let named = special.named(key).ok_or_else(|| {
            Error::malformed(format!(
                "tokenizer_config.json: {key} is null: a {} frames texts with it",
                traits.name
            ))
        })?;
        Ok::<_, Error>((named, inner.token_to_id(named).unwrap_or(otherwise)))
    };
    let (first, end) = (token(keys[0], 0)?, token(keys[1], 2)?);
    if traits.frame == Frame::Roberta {
        // MPNet's has no such option.
        let space = class == Class::Roberta && flag(options, "add_prefix_space", false)?;
        return Ok(json!({
            "type": "RobertaProcessing", "sep": end, "cls": first, "trim_offsets": true, "add_prefix_space": space,
        }));
    }
    let piece = |(token, _): (&str, u32)| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let [first_piece, end_piece] = [first, end].map(piece);
    let ids = [first, end]
        .map(|(token, id)| (token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] })));
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [first_piece, text("A"), end_piece],
        "pair": [first_piece, text("A"), end_piece, end_piece, text("B"), end_piece],
        "special_tokens": ids.into_iter().collect::<Map<_, _>>(),
    }))
}

/// Whether tokenizer_config.json names code of the folder's own.
fn has_code(config: &Value) -> bool {
    match &config["auto_map"] {
        Value::Array(_) => true,
        other => !other["AutoTokenizer"].is_null(),
    }
}

/// Whether a model gets token types: as the files say, or as is usual for the class.
fn gives_types(options: &Map<String, Value>, class: Class) -> Result<bool> {
    match options.get("model_input_names") {
        None => Ok(class.gives_types()),
        Some(Value::Array(names)) => Ok(names.iter().any(|name| name == "token_type_ids")),
        Some(other) => {
            Err(Error::out_of_range("tokenizer_config.json: model_input_names", other, "a list of names"))
        }
    }
}

/// The kind of a tokenizer's model; old files do not name it.
fn kind_of(model: &Value) -> &str {
    match model["type"].as_str() {
        Some(kind) => kind,
        None if model.get("merges").is_some() => "BPE",
        None if model["vocab"].is_array() => "Unigram",
        None if model.get("max_input_chars_per_word").is_some() => "WordPiece",
        None => "WordLevel",
    }
}

/// The token for what a model does not know.
fn unknown_of(model: &Value) -> Option<String> {
    let by_id = || model["vocab"].get(usize::try_from(model["unk_id"].as_u64()?).ok()?)?.get(0)?.as_str();
    model["unk_token"].as_str().or_else(by_id).map(str::to_owned)
}

/// Says where a class puts its own steps in the place of tokenizer.json's.
fn differences(parts: &Map<String, Value>, json: &Value, class: Class) -> Option<String> {
    // With what is left out filled in.
    fn whole<T: serde::Serialize + serde::de::DeserializeOwned>(value: &Value) -> Option<Value> {
        serde_json::to_value(serde_json::from_value::<Option<T>>(value.clone()).ok()?).ok()
    }
    if json.is_null() {
        return None;
    }
    let normalizer = |v: &Value| whole::<NormalizerWrapper>(&v["normalizer"]);
    let pre_tokenizer = |v: &Value| whole::<PreTokenizerWrapper>(&v["pre_tokenizer"]);
    let ours = Value::Object(parts.clone());
    let other: Vec<&str> = [
        ("normalizer", normalizer(&ours) != normalizer(json)),
        ("pre_tokenizer", pre_tokenizer(&ours) != pre_tokenizer(json)),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect();
    (!other.is_empty()).then(|| {
        format!(
            "tokenizer.json has another {} than a {} makes of tokenizer_config.json, and as in transformers the options count",
            other.join(" and "),
            class.traits().name
        )
    })
}
