//! What a record of a file with fields holds, and which of its fields are wanted.

use super::options::DataOptions;

/// Fields that hold the text when the user names none.
const TEXT_FIELDS: [&str; 2] = ["text", "sentence"];

/// A label as its file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Label {
    /// A number, or true or false.
    Number(f64),
    /// Text.
    Text(String),
    /// A cell of a table, in which everything is text.
    Cell(String),
    /// Several of them.
    List(Vec<Label>),
    /// In a list: true or false, as 1 or 0, or a number with a point.
    Mark(f64),
}

/// What a record holds.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Line or row, from 1.
    pub(super) number: usize,
    /// `None` where the file says that there is none.
    pub(super) text: Option<String>,
    /// The second text.
    pub(super) pair: Option<String>,
    pub(super) label: Option<Label>,
    /// Whether it has more cells than are named.
    pub(super) has_more: bool,
}

/// Records that were not read as they are.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Skipped {
    /// Have no text.
    pub(super) without_text: usize,
    /// Have more cells than are named.
    pub(super) with_more: usize,
}

impl Skipped {
    /// A line each.
    pub(super) fn notices(self) -> Vec<String> {
        let records = |n: usize| {
            if n == 1 { "1 record of the data".to_owned() } else { format!("{n} records of the data") }
        };
        let (text, more) = (self.without_text, self.with_more);
        let text = (text > 0).then(|| format!("not read, for want of a text: {}", records(text)));
        let more = (more > 0)
            .then(|| format!("cells beyond those that columns names are not read: in {}", records(more)));
        text.into_iter().chain(more).collect()
    }
}

/// The fields to read; the label only where it is wanted.
pub(super) struct Wanted<'a> {
    pub(super) options: &'a DataOptions,
    pub(super) labelled: bool,
}

/// Places of the fields in a list of columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) text: usize,
    pub(super) pair: Option<usize>,
    pub(super) label: Option<usize>,
}

impl Wanted<'_> {
    /// Where the fields are among `names`; `what` says where those stand.
    pub(super) fn places(&self, names: &[&str], what: &str) -> std::result::Result<Places, String> {
        let find = |name: &str| names.iter().position(|n| *n == name);
        let missing = |kind: &str, name: &str, option: &str| {
            format!(
                "has no {kind} {name:?}{what} (it has {}): name the right one with {option}",
                names.join(", ")
            )
        };
        let options = self.options;
        let text = match &options.read.text_field {
            Some(field) => find(field),
            None => TEXT_FIELDS.iter().find_map(|field| find(field)),
        };
        let named = options.read.text_field.as_deref().unwrap_or(TEXT_FIELDS[0]);
        let text = text.ok_or_else(|| missing("field", named, "text_field"))?;
        let second = |field: &String| {
            find(field).ok_or_else(|| missing("second text field", field, "text_pair_field"))
        };
        let pair = options.read.text_pair_field.as_ref().map(second).transpose()?;
        let field = &options.read.label_field;
        let label = self
            .labelled
            .then(|| find(field).ok_or_else(|| missing("label field", field, "label_field")))
            .transpose()?;
        Ok(Places { text, pair, label })
    }
}
