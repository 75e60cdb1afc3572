//! Documents from text files, streamed piece by piece so that memory does not grow with the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::{DataOptions, Documents};
use crate::foreign::foreign;
use crate::{Error, Result};

/// Text is handed on in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;

/// The longest line that is held in memory.
const LONGEST_LINE: u64 = 16 << 20;

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Whether it is the document's first part.
    pub(super) starts: bool,
    /// Whether it is the last.
    pub(super) ends: bool,
}

impl Piece {
    pub(super) fn whole(text: String) -> Self {
        Self { text, starts: true, ends: true }
    }
}

/// Fields that hold the text when the user names none.
pub(super) const TEXT_FIELDS: [&str; 2] = ["text", "sentence"];

/// The file's kind by its extension.
pub(super) fn extension(path: &Path, expected: &[&str]) -> Result<String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !path.exists() {
        return Err(Error::bad_file(path, "no such file"));
    }
    if !path.is_file() {
        return Err(Error::bad_file(path, "is not a file"));
    }
    if expected.contains(&extension.as_str()) {
        return Ok(extension);
    }
    let known: Vec<String> = expected.iter().map(|e| format!(".{e}")).collect();
    Err(Error::bad_file(path, format!("unknown kind of data: expected a file ending in {}", known.join(", "))))
}

/// Calls `f` with every piece of the file in order.
pub(super) fn for_each_piece(path: &Path, options: &DataOptions, f: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
    match extension(path, &["txt", "jsonl", "parquet"])?.as_str() {
        "jsonl" => json_lines(path, options, f),
        "parquet" => parquet_rows(path, options, f),
        _ => match options.documents {
            Documents::Packed => whole_text(path, f),
            Documents::Separate => for_each_line(path, |_, line| {
                let line = line.trim_end_matches(['\r', '\n']);
                if line.is_empty() { Ok(()) } else { f(Piece::whole(line.to_owned())) }
            }),
        },
    }
}

/// Calls `f` with the number (from 1) and text of every line, line end included.
pub(super) fn for_each_line(path: &Path, mut f: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io(path, "read"))?);
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes).map_err(Error::io(path, "read"))? == 0 {
            break;
        }
        if bytes.len() as u64 == LONGEST_LINE {
            let message = format!("line {number} is longer than {} MiB: split it into shorter documents", LONGEST_LINE >> 20);
            return Err(Error::bad_file(path, message));
        }
        let line = std::str::from_utf8(&bytes).map_err(|e| {
            Error::bad_file(
                path,
                format!("line {number}, byte {}: not valid UTF-8; convert the file, for example with iconv", e.valid_up_to() + 1),
            )
        })?;
        f(number, line)?;
    }
    Ok(())
}

/// One document in pieces that end at a line, or at a space where lines are longer than a piece.
fn whole_text(path: &Path, f: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    // What has been read but not yet handed on; the last piece is kept back, since only it ends the document.
    let (mut bytes, mut offset, mut held, mut starts) = (Vec::new(), 0usize, None::<String>, true);
    loop {
        let wanted = (PIECE_BYTES - bytes.len()) as u64;
        let count = file.by_ref().take(wanted).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        if bytes.is_empty() {
            break;
        }
        let end = if count < wanted as usize { bytes.len() } else { cut(&bytes) };
        let rest = bytes.split_off(end);
        let text = String::from_utf8(std::mem::replace(&mut bytes, rest))
            .map_err(|e| not_utf8(path, offset + e.utf8_error().valid_up_to()))?;
        offset += end;
        if let Some(text) = held.replace(text) {
            f(Piece { text, starts, ends: false })?;
            starts = false;
        }
    }
    held.map_or(Ok(()), |text| f(Piece { text, starts, ends: true }))
}

/// Where to cut a full block: after the last line end, else after the last space, else between two characters.
fn cut(bytes: &[u8]) -> usize {
    let after = |byte: u8| bytes.iter().rposition(|b| *b == byte).map(|i| i + 1);
    let boundary = || (1..=bytes.len().min(4)).map(|back| bytes.len() - back).find(|&i| i > 0 && bytes[i] & 0xC0 != 0x80);
    after(b'\n').or_else(|| after(b' ')).or_else(boundary).unwrap_or(bytes.len())
}

fn not_utf8(path: &Path, at: usize) -> Error {
    Error::bad_file(path, format!("byte {}: not valid UTF-8; convert the file, for example with iconv", at + 1))
}

/// The text of a JSON record.
pub(super) fn text_of<'a>(record: &'a serde_json::Value, field: Option<&str>) -> std::result::Result<&'a str, String> {
    let found = match field {
        Some(field) => record.get(field),
        None => TEXT_FIELDS.iter().find_map(|f| record.get(f)),
    };
    let name = field.unwrap_or(TEXT_FIELDS[0]);
    match found {
        Some(value) => value.as_str().ok_or_else(|| format!("field {name:?} is not a string")),
        None => {
            let keys: Vec<&str> = record.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default();
            Err(format!("has no field {name:?} (it has {}): name the right one with --text-field", keys.join(", ")))
        }
    }
}

fn json_lines(path: &Path, options: &DataOptions, f: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
    for_each_line(path, |number, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        let record: serde_json::Value =
            serde_json::from_str(line).map_err(|e| Error::bad_file(path, format!("line {number} is not valid JSON: {e}")))?;
        let text =
            text_of(&record, options.text_field.as_deref()).map_err(|e| Error::bad_file(path, format!("line {number} {e}")))?;
        f(Piece::whole(text.to_owned()))
    })
}

fn parquet_rows(path: &Path, options: &DataOptions, f: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
    let bad = |e: String| Error::bad_file(path, format!("is not a valid Parquet file: {e}"));
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let reader = foreign(|| SerializedFileReader::new(file)).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    let wanted = match &options.text_field {
        Some(field) => names.iter().position(|n| n == field),
        None => TEXT_FIELDS.iter().find_map(|f| names.iter().position(|n| n == f)),
    };
    let Some(column) = wanted else {
        let name = options.text_field.as_deref().unwrap_or(TEXT_FIELDS[0]);
        return Err(Error::bad_file(
            path,
            format!("has no column {name:?} (it has {}): name the right one with --text-field", names.join(", ")),
        ));
    };
    let projection = parquet::schema::types::Type::group_type_builder(schema.name())
        .with_fields(vec![schema.get_fields()[column].clone()])
        .build()
        .map_err(|e| bad(e.to_string()))?;
    let mut rows = foreign(|| reader.get_row_iter(Some(projection))).map_err(bad)?;
    for number in 1.. {
        let Some(row) = foreign(|| rows.next().transpose()).map_err(bad)? else { break };
        match row.get_column_iter().next().map(|(_, field)| field) {
            Some(Field::Str(text)) => f(Piece::whole(text.clone()))?,
            Some(Field::Null) | None => {}
            Some(_) => return Err(Error::bad_file(path, format!("row {number}: column {:?} is not text", names[column]))),
        }
    }
    Ok(())
}
