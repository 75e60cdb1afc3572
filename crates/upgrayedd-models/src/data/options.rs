//! How data is read.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::unknown_name;
use crate::{Error, Result};

/// How documents become sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Documents {
    /// One after the other in windows of equal length. A `.txt` file is one document.
    #[default]
    Packed,
    /// Each document is a sequence of its own, padded. A `.txt` file has a document per line.
    Separate,
}

impl Documents {
    /// Both, for messages.
    pub const ALL: [&'static str; 2] = ["packed", "separate"];
}

impl FromStr for Documents {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "packed" => Ok(Self::Packed),
            "separate" => Ok(Self::Separate),
            _ => Err(unknown_name("documents mode", name, &Self::ALL)),
        }
    }
}

/// How to read the user's files.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Tokens per sequence, special tokens included.
    pub sequence_length: usize,
    /// Field or column with the text; `None` looks for `text`, then `sentence`.
    pub text_field: Option<String>,
    /// Field or column with a second text, which a classifier reads after the first: a sentence pair.
    pub text_pair_field: Option<String>,
    /// Field or column with the label, or the number for regression.
    pub label_field: String,
    /// What stands between the cells of a table; `None` takes tabs for .tsv and finds out for .csv.
    pub delimiter: Option<char>,
    /// Names of a table's columns, whose file then has no line with them.
    pub columns: Option<Vec<String>>,
    /// How documents become sequences.
    pub documents: Documents,
    /// For the masking of masked language models.
    pub seed: u64,
}

/// What stands between the cells of a table, by its character or as `tab`.
pub fn delimiter(name: &str) -> Result<char> {
    let mut characters = name.chars();
    match (name, characters.next(), characters.next()) {
        ("tab" | "\\t", ..) => Ok('\t'),
        (_, Some(one), None) if !['"', '\n', '\r'].contains(&one) => Ok(one),
        _ => Err(Error::invalid(format!("delimiter {name:?}: expected one character, such as , or ;, or tab"))),
    }
}

/// The same in a configuration.
pub fn read_delimiter<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Option<char>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    name.map(|name| delimiter(&name).map_err(serde::de::Error::custom)).transpose()
}

impl Default for DataOptions {
    fn default() -> Self {
        let label_field = "label".to_owned();
        Self {
            sequence_length: 256,
            text_field: None,
            text_pair_field: None,
            label_field,
            delimiter: None,
            columns: None,
            documents: Documents::Packed,
            seed: 42,
        }
    }
}

/// How masked tokens are drawn: anew in each epoch, or always the same for measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Training epoch.
    Train(u64),
    /// Scoring or measuring.
    Fixed,
}
