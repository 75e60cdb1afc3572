//! Text files → text: UTF-8 without its byte order mark, and `\n` wherever a line ends (`\r\n` and `\r` too,
//! nothing else).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use upgrayedd_nn::interrupt;

use crate::{Error, Result};

/// Text is read in blocks of about this size.
pub(super) const BLOCK_BYTES: usize = 1 << 20;

/// The longest line that is held in memory, where lines are what is read.
const LONGEST_LINE: u64 = 16 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

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
    Err(Error::bad_file(
        path,
        format!("unknown kind of data: expected a file ending in {}", known.join(", ")),
    ))
}

/// Opens a file behind its byte order mark; returns how many bytes that has. Refuses UTF-16, which begins
/// with one of its own.
fn open(path: &Path) -> Result<(BufReader<File>, usize)> {
    let mut reader =
        BufReader::with_capacity(BLOCK_BYTES, File::open(path).map_err(Error::io(path, "read"))?);
    let start = reader.fill_buf().map_err(Error::io(path, "read"))?;
    if start.starts_with(b"\xFF\xFE") || start.starts_with(b"\xFE\xFF") {
        return Err(Error::bad_file(
            path,
            "is UTF-16: convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8",
        ));
    }
    let mark = if start.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    reader.consume(mark);
    Ok((reader, mark))
}

fn not_utf8(path: &Path, at: usize) -> Error {
    Error::bad_file(
        path,
        format!("byte {}: not valid UTF-8; convert the file, for example with iconv", at + 1),
    )
}

/// A whole file with its own line ends.
pub(super) fn read_all(path: &Path) -> Result<String> {
    let (mut reader, mark) = open(path)?;
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    String::from_utf8(bytes).map_err(|e| not_utf8(path, mark + e.utf8_error().valid_up_to()))
}

/// Calls `f` with the file's text, block by block.
pub(super) fn for_each_block(path: &Path, f: &mut dyn FnMut(String) -> Result<()>) -> Result<()> {
    let (mut reader, mut offset) = open(path)?;
    // Bytes that have been read but not handed on: half a character, or half a line end.
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        interrupt::check()?;
        let count = reader
            .by_ref()
            .take(BLOCK_BYTES as u64)
            .read_to_end(&mut bytes)
            .map_err(Error::io(path, "read"))?;
        let last = count == 0;
        if last && bytes.is_empty() {
            return Ok(());
        }
        let valid = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(e) if e.error_len().is_none() && !last => e.valid_up_to(),
            Err(e) => return Err(not_utf8(path, offset + e.valid_up_to())),
        };
        let end = if !last && bytes[..valid].ends_with(b"\r") { valid - 1 } else { valid };
        let rest = bytes.split_off(end);
        offset += end;
        let text =
            String::from_utf8(std::mem::replace(&mut bytes, rest)).map_err(|_| not_utf8(path, offset))?;
        if !text.is_empty() {
            f(universal_newlines(text))?;
        }
        if last {
            return Ok(());
        }
    }
}

fn universal_newlines(text: String) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text }
}

/// Calls `f` with the number (from 1) and text of every line, without its end.
pub(super) fn for_each_line(path: &Path, mut f: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let (mut reader, _) = open(path)?;
    let (mut bytes, mut number) = (Vec::new(), 0);
    loop {
        interrupt::check()?;
        bytes.clear();
        if reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
            .map_err(Error::io(path, "read"))?
            == 0
        {
            return Ok(());
        }
        if bytes.len() as u64 == LONGEST_LINE {
            let message = format!(
                "line {} is longer than {} MiB: split it into shorter documents",
                number + 1,
                LONGEST_LINE >> 20
            );
            return Err(Error::bad_file(path, message));
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let (line, at) = (number + 1, e.valid_up_to() + 1);
            Error::bad_file(
                path,
                format!("line {line}, byte {at}: not valid UTF-8; convert the file, for example with iconv"),
            )
        })?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        for line in text.strip_suffix('\r').unwrap_or(text).split('\r') {
            number += 1;
            f(number, line)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        let mut lines = Vec::new();
        for_each_line(file.path(), |number, line| {
            assert_eq!(number, lines.len() + 1);
            lines.push(line.to_owned());
            Ok(())
        })
        .expect("text");
        let mut whole = String::new();
        for_each_block(file.path(), &mut |block| {
            whole.push_str(&block);
            Ok(())
        })
        .expect("text");
        assert_eq!(whole.strip_suffix('\n').unwrap_or(&whole), lines.join("\n"));
        assert_eq!(universal_newlines(read_all(file.path()).expect("text")), whole);
        lines
    }

    #[test]
    fn lines_end_alike_everywhere() {
        assert_eq!(lines(b"\xEF\xBB\xBFone\ntwo\r\nthree\rfour"), ["one", "two", "three", "four"]);
        assert_eq!(lines(b"one\r\n\r\n\rtwo\n"), ["one", "", "", "two"]);
        // Separators that Python's splitlines knows end no line of a file.
        assert_eq!(lines("a\u{2028}b\u{85}c\u{b}d".as_bytes()), ["a\u{2028}b\u{85}c\u{b}d"]);
        assert_eq!(lines("\u{feff}x\u{feff}y".as_bytes()), ["x\u{feff}y"]);
    }

    #[test]
    fn blocks_are_cut_between_characters_and_line_ends() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        for shift in 0..4 {
            let text = format!("{}{}", "x".repeat(shift), "é\r\n".repeat(BLOCK_BYTES / 2));
            std::fs::write(file.path(), &text).expect("written");
            let mut blocks = 0;
            let mut whole = String::new();
            for_each_block(file.path(), &mut |block| {
                blocks += 1;
                whole.push_str(&block);
                Ok(())
            })
            .expect("text");
            assert!(blocks > 1);
            assert_eq!(whole, text.replace("\r\n", "\n"));
        }
    }
}
