//! Tables: TSV and CSV as pandas, csv and datasets write them.

use std::borrow::Cow;
use std::path::Path;

use super::record::{Label, Record, Wanted};
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
    let delimiter = match options.read.delimiter {
        Some(delimiter) => delimiter,
        None if is_csv => sniff(text, wanted),
        None => '\t',
    };
    let mut rows = Rows {
        rest: text,
        line: 1,
        delimiter,
        columns: options.read.columns.as_ref().map(Vec::len),
        named: false,
        quotes: true,
    };
    let header = match &options.read.columns {
        Some(columns) => columns.iter().map(|c| Cow::Borrowed(c.as_str())).collect(),
        None => match rows.next() {
            Some((_, cells)) => cells,
            None => return Ok(()),
        },
    };
    let names: Vec<&str> = header.iter().map(Cow::as_ref).collect();
    if let Some((_, twice)) = names
        .iter()
        .enumerate()
        .find(|(at, name)| options.read.columns.is_some() && names[..*at].contains(name))
    {
        return Err(Error::data(format!(
            "columns has {twice:?} twice: expected a name of its own for each column"
        )));
    }
    (rows.columns, rows.named) = (Some(names.len()), options.read.columns.is_none());
    let what = if options.read.columns.is_some() { " in columns" } else { " in its first line" };
    let places = wanted.places(&names, what).map_err(|e| {
        let hint = match names[..] {
            [one] if one.contains([',', ';', '\t', '|']) => {
                ", say as delimiter what stands between the cells"
            }
            _ if options.read.columns.is_some() => "",
            _ => ", or name all columns, as columns, if there is no header",
        };
        Error::bad_file(path, format!("{e}{hint}"))
    })?;
    rows.quotes = !rows.quotes_are_text();
    for (number, cells) in rows {
        let (count, expected) = (cells.len(), names.len());
        if count < expected || count > expected && options.read.columns.is_none() {
            let what = if options.read.columns.is_some() { "columns" } else { "the header" };
            let by_tabs = delimiter == ','
                && options.read.delimiter.is_none()
                && cells.iter().any(|cell| cell.contains('\t'));
            let hint = if by_tabs {
                "delimiter tab reads cells that tabs part"
            } else {
                "a cell with a delimiter in it stands in quotes"
            };
            let message = format!("line {number} has {count} columns, but {what} has {expected}: {hint}");
            return Err(Error::bad_file(path, message));
        }
        // As pandas reads it, an empty cell is nothing.
        let cell = |at: usize| Some(cells[at].as_ref().to_owned()).filter(|cell| !cell.is_empty());
        f(Record {
            number,
            text: cell(places.text),
            pair: places.pair.and_then(cell),
            label: places.label.map(|at| Label::Cell(cells[at].trim().to_owned())),
            has_more: count > expected,
        })?;
    }
    Ok(())
}

/// What separates the cells of a .csv file: a comma, or the tab where its first line is what was asked for
/// with tabs only.
fn sniff(text: &str, wanted: &Wanted<'_>) -> char {
    let fits = |delimiter: &char| {
        let mut rows =
            Rows { rest: text, line: 1, delimiter: *delimiter, columns: None, named: false, quotes: true };
        let cells = rows.next().map(|(_, cells)| cells).unwrap_or_default();
        match &wanted.options.read.columns {
            Some(columns) => cells.len() >= columns.len(),
            None => wanted.places(&cells.iter().map(Cow::as_ref).collect::<Vec<_>>(), "").is_ok(),
        }
    };
    let first_line = text.lines().next().unwrap_or_default();
    let usual = if first_line.contains('\t') && !first_line.contains(',') { '\t' } else { ',' };
    [',', '\t'].into_iter().find(fits).unwrap_or(usual)
}

/// Rows of cells with the line that each begins in; lines without anything in them are none.
struct Rows<'t> {
    rest: &'t str,
    line: usize,
    delimiter: char,
    /// How many cells a row has, once that is known.
    columns: Option<usize>,
    /// Whether a row has just as many; otherwise it may have more.
    named: bool,
    /// Whether quotes hold cells together; otherwise they are text.
    quotes: bool,
}

/// A row at the beginning of a text.
struct Row<'t> {
    cells: Vec<Cow<'t, str>>,
    /// Its bytes, line end included.
    length: usize,
    /// Whether quotes hold a delimiter or a line end.
    merged: bool,
    /// Whether a quote stands where no writer of CSV puts it: in a cell that is not in quotes.
    odd: bool,
}

/// A line end at the beginning of a text, in bytes; 0 if there is none.
fn line_end(text: &str) -> usize {
    if text.starts_with("\r\n") { 2 } else { usize::from(text.starts_with(['\n', '\r'])) }
}

impl<'t> Iterator for Rows<'t> {
    type Item = (usize, Vec<Cow<'t, str>>);

    fn next(&mut self) -> Option<Self::Item> {
        self.skip_empty_lines();
        if self.rest.is_empty() {
            return None;
        }
        let row = if self.quotes { self.read() } else { self.row(false) };
        let (number, read) = (self.line, &self.rest[..row.length]);
        self.line += read.matches('\n').count() + read.matches('\r').count() - read.matches("\r\n").count();
        self.rest = &self.rest[row.length..];
        Some((number, row.cells))
    }
}

impl<'t> Rows<'t> {
    /// Whether quotes are text in the whole rest, as in the tables of GLUE: between tabs, where every row has
    /// the right number of cells with quotes as text, and one at least has quotes that a writer of CSV would
    /// not have put so, or that hold cells or rows together.
    fn quotes_are_text(&self) -> bool {
        let Some(columns) = self.columns.filter(|_| self.delimiter == '\t') else { return false };
        let fits =
            |row: &Row<'_>| if self.named { row.cells.len() == columns } else { row.cells.len() >= columns };
        let as_written = |row: &Row<'_>| !row.odd && !row.merged;
        // Doubled quotes in a cell that is in quotes come from a writer of CSV.
        let none_doubled = |row: &Row<'_>| row.cells.iter().all(|cell| matches!(cell, Cow::Borrowed(_)));
        !self.all(true, as_written) && self.all(true, none_doubled) && self.all(false, fits)
    }

    /// Whether all that is left is so.
    fn all(&self, quotes: bool, is_so: impl Fn(&Row<'_>) -> bool) -> bool {
        let mut rows = Rows { ..*self };
        loop {
            rows.skip_empty_lines();
            if rows.rest.is_empty() {
                return true;
            }
            let row = rows.row(quotes);
            if !is_so(&row) {
                return false;
            }
            rows.rest = &rows.rest[row.length..];
        }
    }

    fn skip_empty_lines(&mut self) {
        while line_end(self.rest) > 0 {
            self.rest = &self.rest[line_end(self.rest)..];
            self.line += 1;
        }
    }

    /// The next row: with cells in quotes, unless it has the right number of cells only where quotes are
    /// text. A quote that nothing closes in its own cell swallows others, up to one that stands at the end of
    /// a cell by chance.
    fn read(&self) -> Row<'t> {
        let quoted = self.row(true);
        let Some(columns) = self.columns.filter(|columns| quoted.merged && *columns != quoted.cells.len())
        else {
            return quoted;
        };
        let plain = self.row(false);
        let (with, without) = (quoted.cells.len(), plain.cells.len());
        let as_text = without == columns
            || !self.named && without > columns && (with < columns || self.delimiter == '\t');
        if as_text { plain } else { quoted }
    }

    fn row(&self, quotes: bool) -> Row<'t> {
        let mut row = Row { cells: Vec::new(), length: 0, merged: false, odd: false };
        // Quotes that swallow row after row are found out early.
        let most = self.columns.map_or(usize::MAX, |columns| columns + if self.named { 1 } else { 256 });
        loop {
            let rest = &self.rest[row.length..];
            let (cell, end) = quoted(rest, self.delimiter).filter(|_| quotes).unwrap_or_else(|| {
                let end = rest.find(['\n', '\r', self.delimiter]).unwrap_or(rest.len());
                (Cow::Borrowed(&rest[..end]), end)
            });
            row.odd |= rest[..end].contains('"') && !(quotes && quoted(rest, self.delimiter).is_some());
            row.merged |= rest[..end].contains(['\n', '\r', self.delimiter]);
            row.cells.push(cell);
            row.length += end;
            let after = &rest[end..];
            if row.merged && row.cells.len() > most {
                return row;
            }
            match line_end(after) {
                0 => match after.chars().next() {
                    Some(delimiter) => row.length += delimiter.len_utf8(),
                    None => return row,
                },
                bytes => {
                    row.length += bytes;
                    return row;
                }
            }
        }
    }
}

/// A cell in quotes and where it ends: it begins with one, and the next that is not doubled stands before a
/// delimiter or at the end of a line. Other quotes are text.
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
    inner[close + 1..].chars().next().is_none_or(|c| ['\n', '\r', delimiter].contains(&c)).then(|| {
        let cell = if content.contains('"') {
            Cow::Owned(content.replace("\"\"", "\""))
        } else {
            Cow::Borrowed(content)
        };
        (cell, close + 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(delimiter: char, columns: usize, text: &str) -> Vec<(usize, Vec<String>)> {
        let mut rows =
            Rows { rest: text, line: 1, delimiter, columns: Some(columns), named: true, quotes: true };
        rows.quotes = !rows.quotes_are_text();
        rows.map(|(line, cells)| (line, cells.into_iter().map(Cow::into_owned).collect())).collect()
    }

    fn cells(delimiter: char, columns: usize, text: &str) -> Vec<Vec<String>> {
        rows(delimiter, columns, text).into_iter().map(|(_, cells)| cells).collect()
    }

    #[test]
    fn quotes_are_those_of_csv_or_text() {
        assert_eq!(
            cells(',', 3, "a,\"b, \"\"c\"\"\",\"\"\nd,\"e\nf\",g"),
            [["a", "b, \"c\"", ""], ["d", "e\nf", "g"]]
        );
        assert_eq!(cells('\t', 2, "\"one\ttwo\nthree\t\"four\n"), [["\"one", "two"], ["three", "\"four"]]);
        assert_eq!(cells('\t', 2, "\"a\" b\tc\nd\"\te\n"), [["\"a\" b", "c"], ["d\"", "e"]]);
        assert_eq!(cells('\t', 2, "\"a\tb\nc\t12\"\n"), [["\"a", "b"], ["c", "12\""]]);
        assert_eq!(cells('\t', 2, "\"a\nb\tc\"\td\n"), [["a\nb\tc", "d"]]);
        // Two cells of which one begins with a quote and the other ends with one, as in the STS benchmark.
        assert_eq!(cells('\t', 3, "1\t\"Oh, you!\tYou!\"\n"), [["1", "\"Oh, you!", "You!\""]]);
        assert_eq!(cells(',', 1, "\"a\r\nb\"\r\n"), [["a\r\nb"]]);
        // Between tabs, quotes that no writer of CSV puts so are text in the whole file, as are those that
        // would hold whole rows together.
        assert_eq!(cells('\t', 2, "\"a\"\tb\nsay \"c\"\td\n"), [["\"a\"", "b"], ["say \"c\"", "d"]]);
        assert_eq!(cells('\t', 2, "\"a\t0\nb\"\t1\n"), [["\"a", "0"], ["b\"", "1"]]);
        assert_eq!(
            cells('\t', 2, "\"a \"\"b\"\"\"\tc\nsay \"d\"\te\n"),
            [["a \"b\"", "c"], ["say \"d\"", "e"]]
        );
        assert_eq!(cells('\t', 2, "\"a\"\t\"b \"\"c\"\"\"\n"), [["a", "b \"c\""]]);
        assert_eq!(cells(',', 2, "\"a\",b\nsay \"c\",d\n"), [["a", "b"], ["say \"c\"", "d"]]);
    }

    #[test]
    fn rows_know_their_lines_and_empty_lines_are_none() {
        let found = rows(',', 2, "\n\na,b\n\"x\ny\",z\n\nlast,row\n\n");
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(cells(';', 2, ";\n;"), [["", ""], ["", ""]]);
        assert_eq!(
            rows(',', 2, "a,b\rc,\"d\r\ne\"\r\nf,g").into_iter().map(|(line, _)| line).collect::<Vec<_>>(),
            [1, 2, 4]
        );
    }
}
