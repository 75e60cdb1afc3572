//! Labelled examples for classifiers, from TSV with a header line or from JSONL.

use std::path::{Path, PathBuf};

use super::text::{TEXT_FIELDS, extension, for_each_line, text_of};
use super::{DataOptions, Row, Targets, tokens};
use crate::model::Model;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What a line holds.
struct Example<'a> {
    text: &'a str,
    pair: Option<&'a str>,
    label: &'a str,
}

/// Reads all examples, framed and cut to the sequence length, and the hashes of the files.
pub(super) fn read(
    files: &[PathBuf],
    model: &Model,
    tokenizer: &Tokenizer,
    options: &DataOptions,
    labels: usize,
) -> Result<(Vec<Row>, Vec<String>)> {
    let mut rows = Vec::new();
    for path in files {
        let before = rows.len();
        let mut add = |number: usize, example: Example<'_>| {
            let bad = |message: String| Error::bad_file(path, format!("line {number}: {message}"));
            let targets = if labels == 1 { value_of(example.label) } else { class_of(example.label, model, labels) };
            let targets = targets.map_err(bad)?;
            let (tokens, types) = tokenizer.sequence(example.text, example.pair, options.sequence_length)?;
            if tokens.is_empty() {
                return Err(bad("the text is empty".to_owned()));
            }
            let row = Row { tokens, mask: None, types, targets };
            row.check(&model.spec, rows.len()).map_err(|e| bad(e.to_string()))?;
            rows.push(row);
            Ok(())
        };
        match extension(path, &["tsv", "jsonl"])?.as_str() {
            "tsv" => tab_separated(path, options, &mut add)?,
            _ => json_lines(path, options, &mut add)?,
        }
        if rows.len() == before {
            return Err(Error::bad_file(path, "holds no examples"));
        }
    }
    Ok((rows, tokens::hash_files(files)?))
}

fn value_of(label: &str) -> std::result::Result<Targets, String> {
    let value = label.parse::<f32>().ok().filter(|v| v.is_finite());
    value.map(Targets::Value).ok_or_else(|| format!("label {label:?} is no number, which this model predicts (regression)"))
}

/// A class by number, or by its name in the config's `label2id`.
fn class_of(label: &str, model: &Model, labels: usize) -> std::result::Result<Targets, String> {
    let by_name = model.config["label2id"][label].as_i64();
    let class = by_name.or_else(|| label.parse().ok());
    class.filter(|c| (0..labels as i64).contains(c)).map(Targets::Label).ok_or_else(|| {
        format!(
            "label {label:?} is none of the model's classes: expected 0 to {} or a name from label2id in config.json",
            labels - 1
        )
    })
}

type Add<'a> = dyn FnMut(usize, Example<'_>) -> Result<()> + 'a;

fn tab_separated(path: &Path, options: &DataOptions, add: &mut Add<'_>) -> Result<()> {
    let mut columns = None;
    for_each_line(path, |number, line| {
        let cells: Vec<&str> = line.trim_end_matches(['\r', '\n']).split('\t').collect();
        let Some((text, pair, label)) = columns else {
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
            let pair = options.text_pair_field.as_deref();
            let pair = pair.map(|f| find(f).ok_or_else(|| missing("second text", "--text-pair-field"))).transpose()?;
            let label = find(&options.label_field).ok_or_else(|| missing("label", "--label-field"))?;
            columns = Some((text, pair, label));
            return Ok(());
        };
        match (cells.get(text), pair.map(|p| cells.get(p)), cells.get(label)) {
            (Some(text), None, Some(label)) => add(number, Example { text, pair: None, label: label.trim() }),
            (Some(text), Some(Some(pair)), Some(label)) => add(number, Example { text, pair: Some(pair), label: label.trim() }),
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
        let second = |field: &String| {
            let message = || format!("has no text in field {field:?}: name the right one with --text-pair-field");
            record[field].as_str().ok_or_else(|| bad(message()))
        };
        let pair = options.text_pair_field.as_ref().map(second).transpose()?;
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
        add(number, Example { text, pair, label: &label })
    })
}
