//! How data is read.

use serde::Deserialize;

use crate::{Error, Result, named_enum, options};

named_enum! {
    /// How documents become sequences.
    Documents, "documents mode" {
        /// One after the other in windows of equal length; a `.txt` file is one document.
        #[default]
        Packed = "packed",
        /// Each a sequence of its own, padded; a `.txt` file has a document per line.
        Separate = "separate",
    }
}

named_enum! {
    /// What is learned of conversations.
    ChatLoss, "chat loss" {
        /// What the assistant says, and how it ends.
        #[default]
        Assistant = "assistant",
        /// Everything.
        All = "all",
    }
}

options! {
    /// How the user's files are read.
    ReadOptions {
        /// Field or column with the text; `text`, then `sentence` if absent
        text_field("NAME"): Option<String> = None;
        /// Field or column with a second text, which a classifier reads after the first: a sentence pair
        text_pair_field("NAME"): Option<String> = None;
        /// Field or column with the label, or the number for regression
        label_field("NAME"): String = "label".to_owned();
        /// What separates cells: one character, or tab. If absent, tabs for .tsv, and for .csv what its first line has
        #[serde(deserialize_with = "read_delimiter")]
        #[cfg_attr(feature = "cli", arg(value_parser = delimiter))]
        delimiter("CHAR"): Option<char> = None;
        /// Names of the columns of a .tsv or .csv file that has no line with them; cells beyond them are not
        /// read
        #[cfg_attr(feature = "cli", arg(value_delimiter = ','))]
        columns("NAME,…"): Option<Vec<String>> = None;
        /// How documents become sequences
        documents("MODE"): Documents = Documents::Packed;
        /// What is learned of conversations (.jsonl with messages, by the model's chat template)
        chat_loss("TURNS"): ChatLoss = ChatLoss::Assistant;
    }
}

/// How sequences are made of the user's files.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Tokens per sequence, special tokens included.
    pub sequence_length: usize,
    /// How the files are read.
    pub read: ReadOptions,
    /// For the masking of masked language models.
    pub seed: u64,
}

/// What stands between the cells of a table, by its character or as `tab`.
pub fn delimiter(name: &str) -> Result<char> {
    let mut characters = name.chars();
    match (name, characters.next(), characters.next()) {
        ("tab" | "\\t", ..) => Ok('\t'),
        (_, Some(one), None) if !['"', '\n', '\r'].contains(&one) => Ok(one),
        _ => Err(Error::data(format!("delimiter {name:?}: expected one character, such as , or ;, or tab"))),
    }
}

/// The same in a file of options.
fn read_delimiter<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Option<char>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    name.map(|name| delimiter(&name).map_err(serde::de::Error::custom)).transpose()
}

impl Default for DataOptions {
    fn default() -> Self {
        Self { sequence_length: 256, read: ReadOptions::default(), seed: 42 }
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
