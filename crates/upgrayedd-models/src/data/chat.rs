//! Conversations, written out by the model's chat template as transformers does.

use std::ops::Range;
use std::path::PathBuf;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::{Map, Value};
use upgrayedd_nn::ops::IGNORE;

use super::options::{ChatLoss, DataOptions};
use super::rows::Row;
use super::text::{extension, for_each_line};
use crate::foreign::foreign;
use crate::model::{Companions, Model};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The field with the turns of a conversation.
const MESSAGES: &str = "messages";
/// Steps of a template: far more than a conversation takes, and an end to one that does not end.
const FUEL: u64 = 50_000_000;

/// Sequences, and what was passed over.
pub(super) struct Conversations {
    pub(super) rows: Vec<Row>,
    pub(super) notices: Vec<String>,
}

/// Whether these files hold conversations: JSONL whose first record has turns, and no text field is asked for.
pub(super) fn are_conversations(files: &[PathBuf], options: &DataOptions) -> Result<bool> {
    let Some(path) = files.first().filter(|_| options.read.text_field.is_none()) else { return Ok(false) };
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl")) {
        return Ok(false);
    }
    let mut found = None;
    let stopped = for_each_line(path, |_, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        found = Some(serde_json::from_str::<Value>(line).is_ok_and(|record| record[MESSAGES].is_array()));
        // The first record is enough.
        Err(Error::Interrupted)
    });
    match found {
        Some(found) => Ok(found),
        None => stopped.map(|()| false),
    }
}

/// Reads every conversation as a sequence of its own, cut to the sequence length.
pub(super) fn read(
    files: &[PathBuf],
    model: &Model,
    tokenizer: &Tokenizer,
    options: &DataOptions,
) -> Result<Conversations> {
    let template = Template::of(model, tokenizer)?;
    let (mut rows, mut unlearned) = (Vec::new(), 0);
    for path in files {
        extension(path, &["jsonl"])?;
        for_each_line(path, |number, line| {
            if line.trim().is_empty() {
                return Ok(());
            }
            let bad = |message: String| Error::bad_file(path, format!("line {number}: {message}"));
            let record: Value =
                serde_json::from_str(line).map_err(|e| bad(format!("is not valid JSON: {e}")))?;
            let Some(messages) = record[MESSAGES].as_array() else {
                return Err(bad(format!(
                    "has no {MESSAGES}, as the first line of the data has: expected a list of turns, each with role and content"
                )));
            };
            let messages = &as_transformers_passes(messages);
            let (text, learned) = template.write_out(messages, options.read.chat_loss).map_err(bad)?;
            let (mut tokens, places) = tokenizer.encode_with_places(&text)?;
            let is_learned = |place: &Range<usize>| learned.iter().any(|l| l.contains(&place.start));
            let labels = tokens.iter().zip(&places);
            let mut labels: Vec<i64> = labels
                .map(|(&token, place)| if is_learned(place) { i64::from(token) } else { IGNORE })
                .collect();
            tokens.truncate(options.sequence_length);
            labels.truncate(options.sequence_length);
            if labels.iter().skip(1).all(|label| *label == IGNORE) {
                unlearned += 1;
                return Ok(());
            }
            let row = Row::causal(tokens, None, Some(&labels));
            row.check(&model.spec, rows.len()).map_err(|e| bad(e.to_string()))?;
            rows.push(row);
            Ok(())
        })?;
    }
    if rows.is_empty() {
        return Err(Error::data("the conversations have nothing to learn from"));
    }
    let notice = (unlearned > 0).then(|| {
        format!(
            "not read, for want of anything to learn within {} tokens: {unlearned} conversations",
            options.sequence_length
        )
    });
    let dated = template.dated.then(|| {
        "the chat template writes the day: 26 July 2024 stands in its place, so that a run can be made again".to_owned()
    });
    Ok(Conversations { rows, notices: notice.into_iter().chain(dated).collect() })
}

/// Turns without fields that are null, and what was thought under every name that templates have for it.
fn as_transformers_passes(messages: &[Value]) -> Vec<Value> {
    let pass = |message: &Value| {
        let Some(fields) = message.as_object() else { return message.clone() };
        let mut fields: Map<String, Value> = fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let thought =
            ["reasoning_content", "thinking", "reasoning"].iter().find_map(|name| fields.get(*name));
        if let Some(thought) = thought.cloned() {
            let thinking = fields.shift_remove("thinking").unwrap_or_else(|| thought.clone());
            fields.shift_insert(0, "thinking".to_owned(), thinking);
            fields.insert("reasoning_content".to_owned(), thought);
        }
        Value::Object(fields)
    };
    messages.iter().map(pass).collect()
}

/// A template whose marks around what an assistant says, which transformers alone knows, do nothing.
fn without_marks(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inside = tag.trim_start_matches("{%").trim_end_matches("%}");
        let word = inside.trim_matches(['-', '+']).trim();
        let instead = match word {
            "generation" => inside.replace(word, " if true "),
            "endgeneration" => inside.replace(word, " endif "),
            _ => inside.to_owned(),
        };
        match word {
            "generation" | "endgeneration" => out.push_str(&format!("{{%{instead}%}}")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The day that stands for today, as Python's `strftime` writes it.
fn date(format: String) -> std::result::Result<String, minijinja::Error> {
    let (mut out, mut rest) = (String::new(), format.chars());
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out.push_str(match rest.next() {
            Some('d') => "26",
            Some('m') => "07",
            Some('b') => "Jul",
            Some('B') => "July",
            Some('Y') => "2024",
            Some('y') => "24",
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('H' | 'M' | 'S') => "00",
            Some('%') => "%",
            other => {
                let what = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: %{what} is not known");
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// A model's chat template.
struct Template {
    environment: Environment<'static>,
    /// Special tokens by their names.
    special: Map<String, Value>,
    /// All of them.
    special_texts: Vec<String>,
    /// Whether it writes the day.
    dated: bool,
}

impl Template {
    fn of(model: &Model, tokenizer: &Tokenizer) -> Result<Self> {
        let source = source_of(model)?;
        let dated = source.contains("strftime_now");
        let source = without_marks(&source);
        let wrong =
            |e: String| Error::unsupported(format!("the model's chat template is not understood: {e}"));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| wrong(e.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("strftime_now", date);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        foreign(|| environment.add_template_owned("chat", source)).map_err(wrong)?;
        let special =
            tokenizer.meanings().iter().map(|(name, token)| (name.clone(), token.clone().into())).collect();
        Ok(Self { environment, special, special_texts: tokenizer.special_texts(), dated })
    }

    fn render(&self, messages: &[Value], prompt: bool) -> std::result::Result<String, String> {
        let template = self.environment.get_template("chat").map_err(|e| e.to_string())?;
        let special = minijinja::Value::from(Serde(&self.special));
        let values = context! { messages => Serde(messages), add_generation_prompt => prompt, tools => (), documents => (), ..special };
        foreign(|| template.render(values)).map_err(|e| format!("the model's chat template refuses it: {e}"))
    }

    /// The text of a conversation, and which parts of it are learned.
    fn write_out(
        &self,
        messages: &[Value],
        loss: ChatLoss,
    ) -> std::result::Result<(String, Vec<Range<usize>>), String> {
        let text = self.render(messages, false)?;
        if loss == ChatLoss::All {
            let all = 0..text.len();
            return Ok((text, vec![all]));
        }
        let mut learned = Vec::new();
        for (turn, message) in messages.iter().enumerate().filter(|(_, m)| m["role"] == "assistant") {
            // What stands before is what the model is given to answer.
            let before = self.render(&messages[..turn], true)?;
            // A template may write a turn otherwise once others follow, so that what stands up to it is no beginning.
            let with = self.render(&messages[..=turn], false)?;
            let end = match text.strip_prefix(&before) {
                Some(_) if text.starts_with(&with) && with.len() > before.len() => with.trim_end().len(),
                rest => rest.and_then(|rest| self.end_of_turn(rest, message)).map(|end| before.len() + end).ok_or_else(|| {
                    format!(
                        "the model's chat template does not write turn {} after the turns before it: chat_loss all learns from all",
                        turn + 1
                    )
                })?,
            };
            learned.push(before.len()..end);
        }
        Ok((text, learned))
    }

    /// Where a turn ends that `rest` begins with: after its content, and the special token that closes it.
    fn end_of_turn(&self, rest: &str, message: &Value) -> Option<usize> {
        let content = message["content"].as_str()?.trim();
        let end = rest.find(content)? + content.len();
        let after = rest[end..].trim_start();
        let closing =
            self.special_texts.iter().filter(|token| after.starts_with(*token)).map(String::len).max();
        Some(closing.map_or(end, |length| rest.len() - after.len() + length))
    }
}

/// The text of the template.
fn source_of(model: &Model) -> Result<String> {
    let Companions::Folder(dir) = &model.companions else {
        return Err(Error::does_not_fit(
            "conversations need the chat template of a model's folder: this model has none",
        ));
    };
    model.chat_template()?.ok_or_else(|| {
        Error::does_not_fit(format!(
            "{} has no chat template, which conversations need: expected chat_template.jinja, or chat_template in tokenizer_config.json; or name a text_field",
            dir.display()
        ))
    })
}

/// JSON as Python writes it.
fn to_json(
    value: minijinja::Value,
    options: minijinja::value::Kwargs,
) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    if ascii == Some(true) {
        return Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            "tojson: ensure_ascii is not supported",
        ));
    }
    options.assert_all_used()?;
    let wrong = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut text = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
                .map_err(wrong)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)).map_err(wrong)?
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A space after every comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W) -> std::io::Result<()> {
        to.write_all(b": ")
    }
}
