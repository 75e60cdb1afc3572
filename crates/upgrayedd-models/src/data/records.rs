//! Records of files that have fields: JSONL, TSV, CSV, Parquet.

use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;
use upgrayedd_nn::interrupt;

use super::record::{Label, Record, Wanted};
use super::table;
use super::text::{extension, for_each_line, read_all};
use crate::foreign::foreign;
use crate::{Error, Result};

/// Files that hold records.
pub(super) const KINDS: [&str; 4] = ["jsonl", "parquet", "tsv", "csv"];

/// Calls `f` with every record of the file in order.
pub(super) fn for_each_record(
    path: &Path,
    wanted: &Wanted<'_>,
    f: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<()> {
    let kind = extension(path, &KINDS)?;
    let f: &mut dyn FnMut(Record) -> Result<()> = &mut |record| {
        interrupt::check()?;
        f(record)
    };
    let of_tables = [
        ("delimiter", wanted.options.read.delimiter.is_some()),
        ("columns", wanted.options.read.columns.is_some()),
    ];
    match kind.as_str() {
        "tsv" | "csv" => return table::for_each_row(path, &read_all(path)?, kind == "csv", wanted, f),
        _ => {}
    }
    if let Some((option, _)) = of_tables.into_iter().find(|(_, given)| *given) {
        return Err(Error::data(format!(
            "{option} is for .tsv and .csv files: {} has fields by name",
            path.display()
        )));
    }
    if kind == "jsonl" { json_lines(path, wanted, f) } else { parquet_rows(path, wanted, f) }
}

fn json_lines(path: &Path, wanted: &Wanted<'_>, f: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
    // The first record says which field has the text of all.
    let mut options = wanted.options.clone();
    for_each_line(path, |number, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        let bad = |message: String| Error::bad_file(path, format!("line {number} {message}"));
        let record = parse_line(line).map_err(|e| bad(format!("is not valid JSON: {e}")))?;
        let Some(fields) = record.as_object() else {
            return Err(bad("is no object: expected one record a line, as in {\"text\": \"…\"}".to_owned()));
        };
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let places = Wanted { options: &options, ..*wanted }.places(&names, "").map_err(bad)?;
        options.read.text_field.get_or_insert_with(|| names[places.text].to_owned());
        let value = |at: usize| &fields[names[at]];
        let text = |at: usize| match value(at) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            _ => Err(bad(format!("field {:?} is not a string", names[at]))),
        };
        let label = |at: usize| {
            let wrong = || {
                let (field, value) = (names[at], value(at));
                bad(format!(
                    "field {field:?} is {value}: expected a label, a number or a name, or a list of them"
                ))
            };
            json_label(value(at)).map(Some).ok_or_else(wrong)
        };
        let (pair, label) = (places.pair.map_or(Ok(None), text)?, places.label.map_or(Ok(None), label)?);
        let read = Record { number, text: text(places.text)?, pair, label, has_more: false };
        f(read)
    })
}

/// A label, or a list of them.
fn json_label(value: &Value) -> Option<Label> {
    Some(match value {
        Value::String(label) => Label::Text(label.clone()),
        Value::Bool(label) => Label::Number(f64::from(*label)),
        Value::Number(label) => Label::Number(label.as_f64()?),
        Value::Array(labels) => Label::List(
            labels
                .iter()
                .map(|label| match label {
                    Value::Array(_) => None,
                    Value::Bool(mark) => Some(Label::Mark(f64::from(*mark))),
                    Value::Number(mark) if mark.is_f64() => mark.as_f64().map(Label::Mark),
                    label => json_label(label),
                })
                .collect::<Option<_>>()?,
        ),
        Value::Null | Value::Object(_) => return None,
    })
}

/// Parses a line as Python's `json` does: NaN and the infinities are numbers. Here they are nothing, which no
/// field that is read may be.
fn parse_line(line: &str) -> serde_json::Result<Value> {
    serde_json::from_str(line).or_else(|error| match without_nan(line) {
        Some(line) => serde_json::from_str(&line),
        None => Err(error),
    })
}

/// The line with `null` in the place of NaN, Infinity and -Infinity outside of strings; `None` if there are
/// none.
fn without_nan(line: &str) -> Option<String> {
    let (mut out, mut rest, mut found) = (String::with_capacity(line.len()), line, false);
    while let Some(first) = rest.chars().next() {
        if let Some(word) = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word)) {
            (rest, found) = (&rest[word.len()..], true);
            out.push_str("null");
            continue;
        }
        let end = if first == '"' { string_end(rest) } else { first.len_utf8() };
        out.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    found.then_some(out)
}

/// Where a JSON string ends that `text` begins with.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A label, or a list of them.
fn parquet_label(field: &Field) -> Option<Label> {
    Some(match field {
        Field::Str(label) => Label::Text(label.clone()),
        Field::Bool(label) => Label::Number(f64::from(*label)),
        Field::Byte(label) => Label::Number(f64::from(*label)),
        Field::Short(label) => Label::Number(f64::from(*label)),
        Field::Int(label) => Label::Number(f64::from(*label)),
        Field::Long(label) => Label::Number(*label as f64),
        Field::UByte(label) => Label::Number(f64::from(*label)),
        Field::UShort(label) => Label::Number(f64::from(*label)),
        Field::UInt(label) => Label::Number(f64::from(*label)),
        Field::ULong(label) => Label::Number(*label as f64),
        Field::Float16(label) => Label::Number(f64::from(*label)),
        Field::Float(label) => Label::Number(f64::from(*label)),
        Field::Double(label) => Label::Number(*label),
        Field::ListInternal(labels) => Label::List(
            labels
                .elements()
                .iter()
                .map(|label| match label {
                    Field::ListInternal(_) => None,
                    Field::Bool(mark) => Some(Label::Mark(f64::from(*mark))),
                    Field::Float(mark) => Some(Label::Mark(f64::from(*mark))),
                    Field::Double(mark) => Some(Label::Mark(*mark)),
                    label => parquet_label(label),
                })
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

fn parquet_rows(path: &Path, wanted: &Wanted<'_>, f: &mut dyn FnMut(Record) -> Result<()>) -> Result<()> {
    let bad = |e: String| Error::bad_file(path, format!("is not a valid Parquet file: {e}"));
    let file = std::fs::File::open(path).map_err(Error::io(path, "read"))?;
    let reader = foreign(|| SerializedFileReader::new(file)).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    let places = wanted.places(&names, "").map_err(|e| Error::bad_file(path, e))?;
    // The reader keeps the order of the file's columns.
    let mut columns: Vec<usize> =
        [Some(places.text), places.pair, places.label].into_iter().flatten().collect();
    columns.sort_unstable();
    columns.dedup();
    let projection = parquet::schema::types::Type::group_type_builder(schema.name())
        .with_fields(columns.iter().map(|&at| schema.get_fields()[at].clone()).collect())
        .build()
        .map_err(|e| bad(e.to_string()))?;
    let mut rows = foreign(|| reader.get_row_iter(Some(projection))).map_err(bad)?;
    for number in 1.. {
        let Some(row) = foreign(|| rows.next().transpose()).map_err(bad)? else { break };
        let fields: Vec<&Field> = row.get_column_iter().map(|(_, field)| field).collect();
        let field = |at: usize| {
            columns.iter().position(|c| *c == at).and_then(|i| fields.get(i).copied()).unwrap_or(&Field::Null)
        };
        let wrong = |at: usize, what: &str| {
            Error::bad_file(path, format!("row {number}: column {:?} is not {what}", names[at]))
        };
        let text = |at: usize| match field(at) {
            Field::Null => Ok(None),
            Field::Str(text) => Ok(Some(text.clone())),
            // Some programs write text without saying that it is.
            Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec())
                .map(Some)
                .map_err(|_| wrong(at, "text, nor bytes in UTF-8")),
            _ => Err(wrong(at, "text")),
        };
        let label = |at: usize| {
            let label = parquet_label(field(at));
            label
                .map(Some)
                .ok_or_else(|| wrong(at, "a label: expected a number or a name, or a list of them"))
        };
        f(Record {
            number,
            text: text(places.text)?,
            pair: places.pair.map_or(Ok(None), text)?,
            label: places.label.map_or(Ok(None), label)?,
            has_more: false,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::options::{DataOptions, ReadOptions};
    use super::*;

    #[test]
    fn numbers_that_are_none_are_nothing_outside_of_strings() {
        let line = r#"{"a": NaN, "b": [-Infinity, 1], "NaN": "NaN \" NaN", "c": Infinity}"#;
        let read = parse_line(line).expect("JSON");
        assert_eq!(read.to_string(), r#"{"a":null,"b":[null,1],"NaN":"NaN \" NaN","c":null}"#);
        assert!(parse_line("{oops").is_err() && parse_line("{NaN").is_err() && parse_line("\"NaN").is_err());
    }

    #[test]
    fn tables_have_the_rows_that_pandas_reads() {
        let all = include_str!("../../../../tests/golden/reading/tables.json");
        let dir = tempfile::tempdir().expect("a folder");
        for case in serde_json::from_str::<Vec<Value>>(all).expect("JSON") {
            let name = case["name"].as_str().expect("a name");
            let path =
                dir.path().join("table").with_extension(case["extension"].as_str().expect("an extension"));
            std::fs::write(&path, case["text"].as_str().expect("text")).expect("written");
            let delimiter = case["options"]["delimiter"].as_str().and_then(|d| d.chars().next());
            let columns = serde_json::from_value(case["options"]["columns"].clone()).expect("names");
            let read = ReadOptions { delimiter, columns, ..ReadOptions::default() };
            let options = DataOptions { read, ..DataOptions::default() };
            let mut rows = Vec::new();
            for_each_record(&path, &Wanted { options: &options, labelled: true }, &mut |record| {
                let Some(Label::Cell(label)) = record.label else { panic!("{name}: no cell") };
                rows.push(serde_json::json!([record.text, label.parse::<i64>().expect("a class")]));
                Ok(())
            })
            .expect(name);
            assert_eq!(Value::Array(rows), case["rows"], "{name}");
        }
    }
}
