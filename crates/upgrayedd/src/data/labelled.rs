//! Labelled examples for classifiers, from TSV with a header line or from JSONL.

use std::path::{Path, PathBuf};

use super::text::{TEXT_FIELDS, extension, for_each_line, text_of};
use super::{DataOptions, tokens};
use crate::model::Model;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A text and its class.
#[derive(Debug, Clone)]
pub(super) struct Example {
    /// Without special tokens, cut to the sequence length.
    pub(super) tokens: Vec<u32>,
    pub(super) label: i64,
}

/// Reads all examples and the hashes of the files.
pub(super) fn read(
    files: &[PathBuf],
    model: &Model,
    tokenizer: &Tokenizer,
    options: &DataOptions,
    labels: usize,
    room: usize,
) -> Result<(Vec<Example>, Vec<String>)> {
    let mut examples = Vec::new();
    for path in files {
        let before = examples.len();
        let mut add = |number: usize, text: &str, label: &str| {
            let bad = |message: String| Error::bad_file(path, format!("line {number}: {message}"));
            let label = class_of(label, model, labels).map_err(bad)?;
            let mut tokens = tokenizer.encode(text)?;
            tokens.truncate(room);
            if tokens.is_empty() {
                return Err(bad("the text is empty".to_owned()));
            }
            examples.push(Example { tokens, label });
            Ok(())
        };
        match extension(path, &["tsv", "jsonl"])?.as_str() {
            "tsv" => tab_separated(path, options, &mut add)?,
            _ => json_lines(path, options, &mut add)?,
        }
        if examples.len() == before {
            return Err(Error::bad_file(path, "holds no examples"));
        }
    }
    Ok((examples, tokens::hash_files(files)?))
}

/// A class by number, or by its name in the config's `label2id`.
fn class_of(label: &str, model: &Model, labels: usize) -> std::result::Result<i64, String> {
    let by_name = model.config["label2id"][label].as_i64();
    let class = by_name.or_else(|| label.parse().ok());
    class.filter(|c| (0..labels as i64).contains(c)).ok_or_else(|| {
        format!(
            "label {label:?} is none of the model's classes: expected 0 to {} or a name from label2id in config.json",
            labels - 1
        )
    })
}

type Add<'a> = dyn FnMut(usize, &str, &str) -> Result<()> + 'a;

fn tab_separated(path: &Path, options: &DataOptions, add: &mut Add<'_>) -> Result<()> {
    let mut columns = None;
    for_each_line(path, |number, line| {
        let cells: Vec<&str> = line.trim_end_matches(['\r', '\n']).split('\t').collect();
        let Some((text, label)) = columns else {
            let find = |name: &str| cells.iter().position(|c| *c == name);
            let text = match &options.text_field {
                Some(field) => find(field),
                None => TEXT_FIELDS.iter().find_map(|f| find(f)),
            };
            let missing = |what: &str, flag: &str| {
                Error::bad_file(
                    path,
                    format!("the header line names no {what} column (it has {}): name it with {flag}", cells.join(", ")),
                )
            };
            let text = text.ok_or_else(|| missing("text", "--text-field"))?;
            let label = find(&options.label_field).ok_or_else(|| missing("label", "--label-field"))?;
            columns = Some((text, label));
            return Ok(());
        };
        match (cells.get(text), cells.get(label)) {
            (Some(text), Some(label)) => add(number, text, label.trim()),
            _ => Err(Error::bad_file(path, format!("line {number} has {} columns, fewer than the header", cells.len()))),
        }
    })
}

fn json_lines(path: &Path, options: &DataOptions, add: &mut Add<'_>) -> Result<()> {
    for_each_line(path, |number, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        let bad = |message: String| Error::bad_file(path, format!("line {number} {message}"));
        let record: serde_json::Value = serde_json::from_str(line).map_err(|e| bad(format!("is not valid JSON: {e}")))?;
        let text = text_of(&record, options.text_field.as_deref()).map_err(bad)?;
        let label = match &record[&options.label_field] {
            serde_json::Value::String(label) => label.clone(),
            serde_json::Value::Number(label) => label.to_string(),
            _ => {
                return Err(bad(format!(
                    "has no label in field {:?}: name the right one with --label-field",
                    options.label_field
                )));
            }
        };
        add(number, text, &label)
    })
}
