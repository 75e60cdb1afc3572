//! How far a tokenizer's steps look: whether text can be taken in parts.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, Hir, HirKind, Look};
use serde::Serialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer as HfTokenizer};

/// Words and spaces between words, or lines, that a step may look at at once.
pub const MOST_RUNS: usize = 8;

/// The longest added token, in bytes.
const LONGEST_TOKEN: usize = 256;

/// How much of a text a tokenizer's steps look at before they decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A few words.
    Words,
    /// A few lines.
    Lines,
    /// Who knows.
    Far,
}

impl Reach {
    pub(super) fn of(tokenizer: &HfTokenizer) -> Self {
        let normalizers = steps(tokenizer.get_normalizer(), "normalizers");
        let splitters = steps(tokenizer.get_pre_tokenizer(), "pretokenizers");
        let added = tokenizer.get_added_tokens_decoder();
        // A model other than BPE treats a text that nothing splits as one word.
        let splits =
            matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) || splitters.iter().any(splits_words);
        if !splits || added.values().any(|token| token.content.len() > LONGEST_TOKEN) {
            return Self::Far;
        }
        let is = |reach: Self| {
            // What becomes of spaces concerns those who look for them.
            let spaces_count = splitters.iter().any(|step| !is_one_character(&step["pattern"]));
            normalizers.iter().all(|step| reach.has_normalizer(step, spaces_count))
                && splitters.iter().all(|step| reach.has_splitter(step, splitters.len()))
        };
        [Self::Words, Self::Lines].into_iter().find(|reach| is(*reach)).unwrap_or(Self::Far)
    }

    fn has_normalizer(self, step: &Value, spaces_count: bool) -> bool {
        match step["type"].as_str().unwrap_or_default() {
            "Replace" => {
                let (old, new) = (&step["pattern"], step["content"].as_str().unwrap_or_default());
                let ends: fn(char) -> bool =
                    if self == Self::Words { char::is_whitespace } else { |c| c == '\n' };
                let keeps_ends =
                    !new.contains(ends) && old["String"].as_str().is_some_and(|old| !old.contains(ends));
                is_one_character(old) && (keeps_ends || self == Self::Words && !spaces_count)
            }
            "BertNormalizer" => self == Self::Words,
            "ByteLevel" => !spaces_count,
            "Lowercase" | "NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Precompiled" | "Prepend"
            | "StripAccents" => true,
            _ => false,
        }
    }

    fn has_splitter(self, step: &Value, steps: usize) -> bool {
        match step["type"].as_str().unwrap_or_default() {
            "Split" => self.has_pattern(&step["pattern"]),
            "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" => self == Self::Words,
            "ByteLevel" => self == Self::Words || step["use_regex"] == false,
            // It puts other characters in the place of spaces.
            "Metaspace" => self == Self::Words && (steps == 1 || step["split"] != false),
            "CharDelimiterSplit" | "Digits" | "Punctuation" => true,
            _ => false,
        }
    }

    fn has_pattern(self, pattern: &Value) -> bool {
        // White space that ends before a word: it looks no further than the word's first letter.
        let regex = pattern["Regex"].as_str().map(|regex| regex.replace(r"(?!\S)", ""));
        is_one_character(pattern)
            || regex.and_then(|regex| self.runs(&parse(&regex)?)).is_some_and(|runs| runs <= MOST_RUNS)
    }

    /// How many runs of white space, or of anything but white space, or how many lines, a match touches at
    /// most; `None` if there is no bound.
    fn runs(self, hir: &Hir) -> Option<usize> {
        match hir.kind() {
            HirKind::Empty => Some(0),
            HirKind::Literal(literal) => Some(literal.0.len()),
            HirKind::Class(_) => Some(1),
            HirKind::Look(
                Look::WordUnicode | Look::WordUnicodeNegate | Look::WordAscii | Look::WordAsciiNegate,
            ) => Some(1),
            HirKind::Look(_) => None,
            HirKind::Capture(capture) => self.runs(&capture.sub),
            HirKind::Concat(parts) => {
                parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(self.runs(part)?))
            }
            HirKind::Alternation(parts) => {
                parts.iter().try_fold(0, |most, part| Some(self.runs(part)?.max(most)))
            }
            HirKind::Repetition(repeated) if self.is_one_run(&repeated.sub) => Some(1),
            HirKind::Repetition(repeated) => {
                self.runs(&repeated.sub)?.checked_mul(repeated.max?.try_into().ok()?)
            }
        }
    }

    /// Whether all characters of a class are white space, or none is; whether none ends a line.
    fn is_one_run(self, hir: &Hir) -> bool {
        let class = match hir.kind() {
            HirKind::Class(Class::Unicode(class)) => class,
            HirKind::Literal(literal) => {
                return std::str::from_utf8(&literal.0).is_ok_and(|text| text.chars().count() == 1);
            }
            _ => return false,
        };
        if self != Self::Words {
            return !class.ranges().iter().any(|range| range.start() <= '\n' && '\n' <= range.end());
        }
        let mut spaces = class.clone();
        if let Some(HirKind::Class(Class::Unicode(all))) = parse(r"\s").as_ref().map(Hir::kind) {
            spaces.intersect(all);
        }
        spaces.ranges().is_empty() || spaces == *class
    }
}

fn is_one_character(pattern: &Value) -> bool {
    pattern["String"].as_str().is_some_and(|text| text.chars().count() == 1)
}

/// Whether a step parts words.
fn splits_words(step: &Value) -> bool {
    match step["type"].as_str().unwrap_or_default() {
        "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" => true,
        "ByteLevel" => step["use_regex"] != false,
        "Metaspace" => step["split"] != false,
        _ => false,
    }
}

/// The steps of a sequence, or the one step, as tokenizer.json has them.
fn steps(step: Option<&impl Serialize>, within: &str) -> Vec<Value> {
    let step = serde_json::to_value(step).unwrap_or_default();
    match step[within].as_array() {
        Some(list) => list.iter().flat_map(|step| steps(Some(step), within)).collect(),
        None if step.is_null() => Vec::new(),
        None => vec![step],
    }
}

fn parse(regex: &str) -> Option<Hir> {
    ParserBuilder::new().nest_limit(50).build().parse(regex).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patterns_of_words_are_short() {
        for short in [
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            r"\[[A-Z]+\]|[A-Z]",
            r" {2,}",
            r"\p{N}",
            r"[\p{L}\p{M}]+\s*",
            r"...",
        ] {
            assert!(Reach::Words.has_pattern(&json!({ "Regex": short })), "{short}");
        }
    }

    #[test]
    fn patterns_that_reach_far_are_not() {
        for far in [
            r"'[^']*'",
            r"(\S+\s+){100}",
            r"(?:\S+\s+)+",
            r"e([^e]*)e",
            r"\W+",
            r"^\S+",
            r"(a)\1",
            r"(?<=a.*)b",
            r"(?=\S+x)y",
        ] {
            assert!(!Reach::Words.has_pattern(&json!({ "Regex": far })), "{far}");
            assert!(!Reach::Lines.has_pattern(&json!({ "Regex": far })), "{far}");
        }
        for lines in [r"\n|▁*[^▁\n]+|▁+", r".{512}"] {
            let lines = json!({ "Regex": lines });
            assert!(Reach::Lines.has_pattern(&lines) && !Reach::Words.has_pattern(&lines), "{lines}");
        }
    }
}
