//! Documents of text files, in pieces that are tokenised apart with the same result as together.

use std::path::Path;

use super::options::{DataOptions, Documents};
use super::record::{Record, Skipped, Wanted};
use super::records::{KINDS, for_each_record};
use super::text::{extension, for_each_block, for_each_line};
use crate::tokenizer::{MOST_RUNS, Reach, Tokenizer};
use crate::{Error, Result};

/// A document, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) text: String,
    /// Whether it is the document's first part.
    pub(super) starts: bool,
    /// Whether it is the last.
    pub(super) ends: bool,
}

impl Part {
    pub(super) fn whole(text: String) -> Self {
        Self { text, starts: true, ends: true }
    }
}

/// Files that hold text.
pub(super) fn kinds() -> Vec<&'static str> {
    std::iter::once("txt").chain(KINDS).collect()
}

/// Calls `f` with every part of every document in order.
pub(super) fn for_each_part(
    path: &Path,
    options: &DataOptions,
    f: &mut dyn FnMut(Part) -> Result<()>,
) -> Result<Skipped> {
    if extension(path, &kinds())? != "txt" {
        let mut skipped = Skipped::default();
        for_each_record(
            path,
            &Wanted { options, labelled: false },
            &mut |Record { text, has_more, .. }| {
                skipped.with_more += usize::from(has_more);
                match text {
                    Some(text) => f(Part::whole(text)),
                    None => {
                        skipped.without_text += 1;
                        Ok(())
                    }
                }
            },
        )?;
        return Ok(skipped);
    }
    if options.read.delimiter.is_some() || options.read.columns.is_some() {
        return Err(Error::data(format!(
            "delimiter and columns are for .tsv and .csv files: {} has no columns",
            path.display()
        )));
    }
    match options.read.documents {
        Documents::Packed => {
            // The last part is kept back, since only it ends the document.
            let mut held: Option<Part> = None;
            for_each_block(path, &mut |text| {
                let starts = held.is_none();
                match held.replace(Part { text, starts, ends: false }) {
                    Some(before) => f(before),
                    None => Ok(()),
                }
            })?;
            held.map_or(Ok(()), |last| f(Part { ends: true, ..last }))?;
        }
        Documents::Separate => {
            for_each_line(
                path,
                |_, line| if line.is_empty() { Ok(()) } else { f(Part::whole(line.to_owned())) },
            )?;
        }
    }
    Ok(Skipped::default())
}

/// Text to be tokenised at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// What stands before it and is tokenised along, for tokenizers that treat the beginning of a text in a
    /// way of its own.
    pub(super) context: String,
    pub(super) text: String,
    /// Whether a document begins with it.
    pub(super) starts: bool,
    /// Whether a document ends with it.
    pub(super) ends: bool,
}

impl Piece {
    /// Its tokens, as they are in the whole document.
    pub(super) fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if self.context.is_empty() {
            return tokenizer.encode(&self.text);
        }
        let before = tokenizer.encode(&self.context)?;
        let mut tokens = tokenizer.encode(&format!("{}{}", self.context, self.text))?;
        if !tokens.starts_with(&before) {
            return Err(Error::data(
                "the tokenizer cannot take this text in parts: split it into documents of at most a megabyte (.jsonl)",
            ));
        }
        tokens.drain(..before.len());
        Ok(tokens)
    }
}

/// Pieces of a document are of about this size.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Text on either side of a cut that is tokenised to see whether the cut changes anything: so many bytes at
/// least and at most, and as many words or lines as a tokenizer looks at.
const WINDOW: std::ops::Range<usize> = 512..1 << 14;

/// By how much other left sides are longer: odd numbers of characters and of words.
const SHIFTS: [usize; 6] = [1, 3, 7, 17, 31, 61];

/// Places that are tried for a cut.
const TRIES: usize = 24;

/// Cuts a long document into pieces, where that changes no token.
pub(super) struct Cutter {
    /// Bytes of a piece.
    size: usize,
    /// What has not been handed on, from `from` on.
    text: String,
    from: usize,
    /// What stands before `text`, if the tokenizer has to see it.
    context: String,
    /// Whether a piece of this document has been handed on.
    begun: bool,
    /// The length of `text` from which on a cut is looked for.
    wanted: usize,
}

impl Default for Cutter {
    fn default() -> Self {
        Self::new(PIECE_BYTES)
    }
}

impl Cutter {
    fn new(size: usize) -> Self {
        Self { size, text: String::new(), from: 0, context: String::new(), begun: false, wanted: size }
    }

    /// Takes a part of a document and hands on the pieces that are complete.
    pub(super) fn push(
        &mut self,
        part: Part,
        tokenizer: &Tokenizer,
        f: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        if part.starts {
            *self = Self::new(self.size);
        }
        self.text.push_str(&part.text);
        while tokenizer.reach() != Reach::Far && self.text.len() - self.from > self.wanted {
            match self.cut(tokenizer)? {
                Some((at, context)) => {
                    let text = self.text[self.from..at].to_owned();
                    let context = std::mem::replace(&mut self.context, context);
                    f(Piece { context, text, starts: !self.begun, ends: false })?;
                    (self.from, self.begun, self.wanted) = (at, true, self.size);
                }
                // Nowhere in all this text: wait for more.
                None => self.wanted = (self.text.len() - self.from) * 2,
            }
        }
        self.text.drain(..std::mem::take(&mut self.from));
        if part.ends {
            let (context, text) = (std::mem::take(&mut self.context), std::mem::take(&mut self.text));
            f(Piece { context, text, starts: !self.begun, ends: true })?;
        }
        Ok(())
    }

    /// A place that the tokens do not reach over, and what has to stand before the text behind it.
    fn cut(&self, tokenizer: &Tokenizer) -> Result<Option<(usize, String)>> {
        let text = &self.text;
        let near = floor(text, self.from + self.wanted);
        let by_lines = tokenizer.reach() == Reach::Lines;
        // In front of white space and behind ends of lines: words and what stands between them go to one
        // side.
        let at_edge = |&at: &usize| {
            let (before, after) = (text[..at].chars().next_back(), text[at..].chars().next());
            let space = |c: Option<char>| c.is_some_and(char::is_whitespace);
            before == Some('\n') && (by_lines || !space(after)) || !by_lines && space(after) && !space(before)
        };
        let places = (self.from + 1..near).rev().filter(|at| text.is_char_boundary(*at)).filter(at_edge);
        for at in places.take(TRIES) {
            let right = window(text[at..].chars(), by_lines).and_then(|bytes| text.get(at..at + bytes));
            let left = window(text[self.from..at].chars().rev(), by_lines);
            let (Some(right), Some(left)) = (right, left) else { continue };
            // Tokens of the right side behind a left side of so many bytes; `None` if they reach over the
            // cut.
            let behind = |bytes: usize| -> Result<Option<Vec<u32>>> {
                let left = &text[ceil(text, at.saturating_sub(bytes).max(self.from))..at];
                let before = tokenizer.encode(left)?;
                let whole = tokenizer.encode(&format!("{left}{right}"))?;
                let blank = left.trim().is_empty() || right.trim().is_empty();
                Ok(whole
                    .strip_prefix(&before[..])
                    .filter(|rest| !blank && !before.is_empty() && !rest.is_empty())
                    .map(<[u32]>::to_vec))
            };
            let Some(wanted) = behind(left)? else { continue };
            let context = &text[ceil(text, at.saturating_sub(WINDOW.start / 8).max(self.from))..at];
            let beside = |context: &str| Piece {
                context: context.to_owned(),
                text: right.to_owned(),
                starts: false,
                ends: false,
            };
            let found = ["", context]
                .into_iter()
                .find(|c| beside(c).encode(tokenizer).is_ok_and(|tokens| tokens == wanted));
            let Some(context) = found else { continue };
            // A tokenizer that counts from the beginning of a text finds the same by chance, but not from
            // everywhere.
            let mut elsewhere = SHIFTS.iter().map(|shift| behind(left + shift));
            if elsewhere
                .try_fold(true, |same, other| Ok::<_, Error>(same && other?.as_ref() == Some(&wanted)))?
            {
                return Ok(Some((at, context.to_owned())));
            }
        }
        Ok(None)
    }
}

/// Bytes of the text next to a cut that is tokenised; `None` if there is too little of it, or words or lines
/// are too long.
fn window(text: impl Iterator<Item = char>, by_lines: bool) -> Option<usize> {
    let (mut bytes, mut runs, mut last) = (0, 0, None);
    for c in text.take(WINDOW.end) {
        let space = if by_lines { c == '\n' } else { c.is_whitespace() };
        runs += usize::from(last.replace(space) != Some(space));
        // The last run has to be whole.
        if bytes >= WINDOW.start && runs > MOST_RUNS {
            return Some(bytes);
        }
        bytes += c.len_utf8();
    }
    None
}

/// The last place between two characters that is not behind `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// The first place between two characters that is not before `at`.
fn ceil(text: &str, at: usize) -> usize {
    (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Pieces of a text, with their tokens.
    fn pieces(tokenizer: &Tokenizer, text: &str, size: usize) -> Vec<(Piece, Vec<u32>)> {
        let mut cutter = Cutter::new(size);
        let mut all = Vec::new();
        let mut take = |piece: Piece| {
            let tokens = piece.encode(tokenizer)?;
            all.push((piece, tokens));
            Ok(())
        };
        let middle = floor(text, text.len() / 2);
        let first = Part { text: text[..middle].to_owned(), starts: true, ends: false };
        let last = Part { text: text[middle..].to_owned(), starts: false, ends: true };
        cutter.push(first, tokenizer, &mut take).expect("text");
        cutter.push(last, tokenizer, &mut take).expect("text");
        all
    }

    fn golden() -> Value {
        serde_json::from_str(include_str!("../../../../tests/golden/reading/tokenizers.json")).expect("JSON")
    }

    fn tokenizer(json: &Value, class: &str) -> Tokenizer {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).expect("written");
        let config = json!({ "tokenizer_class": class }).to_string();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).expect("written");
        Tokenizer::load(dir.path(), &Value::Null).expect("a tokenizer")
    }

    #[test]
    fn pieces_have_the_tokens_of_the_whole() {
        let golden = golden();
        let parts: Vec<&str> =
            golden["texts"].as_array().expect("texts").iter().filter_map(Value::as_str).collect();
        let mixed = (0..900)
            .map(|i| format!("{}{}", parts[i * i % 5], [" ", "\n", "\n\n\n", "   ", ""][i % 5]))
            .collect::<String>();
        let words = "ball ".repeat(4000);
        let solid = "ball".repeat(4000);
        for (base, class) in [
            ("bytes", "GPT2Tokenizer"),
            ("spaces", "LlamaTokenizer"),
            ("spaces", "PreTrainedTokenizerFast"),
            ("pieces", "BertTokenizer"),
        ] {
            let tokenizer = tokenizer(&golden["bases"][base], class);
            for text in [&mixed, &words, &solid] {
                let pieces = pieces(&tokenizer, text, 2000);
                let whole: String = pieces.iter().map(|(piece, _)| piece.text.as_str()).collect();
                assert_eq!(&whole, text, "{class}");
                let tokens: Vec<u32> = pieces.iter().flat_map(|(_, tokens)| tokens.clone()).collect();
                assert!(tokens == tokenizer.encode(text).expect("text"), "{class}: {} pieces", pieces.len());
                let marks: Vec<_> = pieces.iter().map(|(piece, _)| (piece.starts, piece.ends)).collect();
                assert!(
                    marks[0].0
                        && marks[marks.len() - 1].1
                        && marks.iter().filter(|(s, e)| *s || *e).count() <= 2
                );
                // Text with spaces is cut; text without cannot be.
                assert!(text == &solid || pieces.len() > 5, "{class}: {} pieces", pieces.len());
            }
        }
    }

    #[test]
    fn tokenizers_that_look_far_get_the_whole() {
        let mut far = golden()["bases"]["bytes"].take();
        let text = format!("it's {}'twas", "a word or two \n".repeat(400));
        for (pattern, pieces_expected) in
            [(r"'[^']*'", 1), (r"(\S+\s+){100}", 1), (r"\s+(?!\S)|\S+", 3), (r"\n|[^\n]+", 3)]
        {
            let split = json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
            let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
            far["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [split, bytes] });
            let tokenizer = tokenizer(&far, "PreTrainedTokenizerFast");
            let pieces = pieces(&tokenizer, &text, 2000);
            assert_eq!(pieces.len(), pieces_expected, "{pattern}");
            let tokens: Vec<u32> = pieces.iter().flat_map(|(_, tokens)| tokens.clone()).collect();
            assert_eq!(tokens, tokenizer.encode(&text).expect("text"), "{pattern}");
        }
    }
}
