//! Tables: TSV and CSV as pandas, csv and datasets write them.

use std::borrow::Cow;
use std::path::Path;

use super::records::{Label, Record, Wanted};
use crate::{Error, Result};

/// Calls `f` with every row. A .csv file may be separated by tabs, too.
pub(super) fn for_each_row(
    path: &Path,
    text: &str,
    is_csv: bool,
    wanted: &Wanted<'_>,
    f: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<()> {
    let options = wanted.options;
    let first_line = text.lines().next().unwrap_or_default();
    let delimiter = match options.delimiter {
        Some(delimiter) => delimiter,
        None if is_csv && !first_line.contains('\t') => ',',
        None => '\t',
    };
    let mut rows = Rows { rest: text, line: 1, delimiter, columns: options.columns.as_ref().map(Vec::len) };
    let header = match &options.columns {
        Some(columns) => columns.iter().map(|c| Cow::Borrowed(c.as_str())).collect(),
        None => match rows.next() {
            Some((_, cells)) => cells,
            None => return Ok(()),
        },
    };
    let names: Vec<&str> = header.iter().map(Cow::as_ref).collect();
    let what = if options.columns.is_some() { " in --columns" } else { " in its first line" };
    rows.columns = Some(names.len());
    let places = wanted.places(&names, what).map_err(|e| {
        let hint = if options.columns.is_some() { "" } else { ", or name all columns with --columns if there is no header" };
        Error::bad_file(path, format!("{e}{hint}"))
    })?;
    for (number, cells) in rows {
        let cell = |at: usize| {
            cells.get(at).map(|c| c.as_ref().to_owned()).ok_or_else(|| {
                let message = format!("line {number} has {} columns, fewer than the {} that are named", cells.len(), names.len());
                Error::bad_file(path, message)
            })
        };
        f(Record {
            number,
            text: Some(cell(places.text)?),
            pair: places.pair.map(cell).transpose()?,
            label: places.label.map(cell).transpose()?.map(|label| Label::Cell(label.trim().to_owned())),
        })?;
    }
    Ok(())
}

/// Rows of cells with the line that each begins in; empty lines are none.
struct Rows<'t> {
    rest: &'t str,
    line: usize,
    delimiter: char,
    /// How many cells a row has, once that is known.
    columns: Option<usize>,
}

/// A row at the beginning of a text.
struct Row<'t> {
    cells: Vec<Cow<'t, str>>,
    /// Its bytes, line end included.
    length: usize,
    /// Whether a cell in quotes goes on in the next line.
    spans_lines: bool,
}

impl<'t> Iterator for Rows<'t> {
    type Item = (usize, Vec<Cow<'t, str>>);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self.rest.strip_prefix('\n') {
            self.rest = rest;
            self.line += 1;
        }
        if self.rest.is_empty() {
            return None;
        }
        let mut row = self.row(true);
        // A quote that nothing closes in its own row swallows others up to one that stands at the end of a cell by chance.
        if row.spans_lines && self.columns.is_some_and(|columns| columns != row.cells.len()) {
            row = self.row(false);
        }
        let number = self.line;
        self.line += self.rest[..row.length].matches('\n').count();
        self.rest = &self.rest[row.length..];
        Some((number, row.cells))
    }
}

impl<'t> Rows<'t> {
    fn row(&self, over_lines: bool) -> Row<'t> {
        let mut row = Row { cells: Vec::new(), length: 0, spans_lines: false };
        loop {
            let rest = &self.rest[row.length..];
            let quoted = quoted(rest, self.delimiter).filter(|(_, end)| over_lines || !rest[..*end].contains('\n'));
            let (cell, end) = quoted.unwrap_or_else(|| {
                let end = rest.find(['\n', self.delimiter]).unwrap_or(rest.len());
                (Cow::Borrowed(&rest[..end]), end)
            });
            row.spans_lines |= rest[..end].contains('\n');
            row.cells.push(cell);
            row.length += end;
            let Some(after) = rest[end..].chars().next() else { return row };
            row.length += after.len_utf8();
            if after == '\n' {
                return row;
            }
        }
    }
}

/// A cell in quotes and where it ends: it begins with one, and the next that is not doubled stands before a delimiter or at the end of a
/// line. Other quotes are text.
fn quoted(text: &str, delimiter: char) -> Option<(Cow<'_, str>, usize)> {
    let inner = text.strip_prefix('"')?;
    let mut from = 0;
    let close = loop {
        let at = from + inner[from..].find('"')?;
        if !inner[at + 1..].starts_with('"') {
            break at;
        }
        from = at + 2;
    };
    let content = &inner[..close];
    inner[close + 1..].chars().next().is_none_or(|c| c == '\n' || c == delimiter).then(|| {
        let cell = if content.contains('"') { Cow::Owned(content.replace("\"\"", "\"")) } else { Cow::Borrowed(content) };
        (cell, close + 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(delimiter: char, columns: usize, text: &str) -> Vec<(usize, Vec<String>)> {
        let rows = Rows { rest: text, line: 1, delimiter, columns: Some(columns) };
        rows.map(|(line, cells)| (line, cells.into_iter().map(Cow::into_owned).collect())).collect()
    }

    fn cells(delimiter: char, columns: usize, text: &str) -> Vec<Vec<String>> {
        rows(delimiter, columns, text).into_iter().map(|(_, cells)| cells).collect()
    }

    #[test]
    fn quotes_are_those_of_csv_or_text() {
        assert_eq!(cells(',', 3, "a,\"b, \"\"c\"\"\",\"\"\nd,\"e\nf\",g"), [["a", "b, \"c\"", ""], ["d", "e\nf", "g"]]);
        assert_eq!(cells('\t', 2, "\"one\ttwo\nthree\t\"four\n"), [["\"one", "two"], ["three", "\"four"]]);
        assert_eq!(cells('\t', 2, "\"a\" b\tc\nd\"\te\n"), [["\"a\" b", "c"], ["d\"", "e"]]);
        assert_eq!(cells('\t', 2, "\"a\tb\nc\t12\"\n"), [["\"a", "b"], ["c", "12\""]]);
        assert_eq!(cells('\t', 2, "\"a\nb\tc\"\td\n"), [["a\nb\tc", "d"]]);
    }

    #[test]
    fn rows_know_their_lines_and_empty_lines_are_none() {
        let found = rows(',', 2, "\n\na,b\n\"x\ny\",z\n\nlast,row\n\n");
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(cells(';', 2, ";\n;"), [["", ""], ["", ""]]);
    }
}
