//! Bounds for tokenizers from strangers, whose steps could fill the memory.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::{Error, Result};

/// Ids lie below this: the library walks through all ids up to the largest.
pub(super) const LARGEST_ID: u32 = 1 << 24;

/// Bytes that a tokenizer's steps may make of one byte; those in use stay below ten.
const MOST_GROWTH: usize = 1 << 12;

/// Refuses a tokenizer.json whose steps would make far more of a text than it is.
pub(super) fn check_growth(json: &Value) -> Result<()> {
    if growth(&json["normalizer"]).saturating_mul(growth(&json["pre_tokenizer"])) > MOST_GROWTH {
        return Err(Error::malformed(format!(
            "tokenizer.json makes more than {MOST_GROWTH} bytes of one: its replacements would fill the memory"
        )));
    }
    Ok(())
}

/// Bytes that the replacements in a step, or in the steps within it, make of one byte at most.
fn growth(step: &Value) -> usize {
    let within: Vec<&Value> = match step {
        Value::Array(steps) => steps.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => return 1,
    };
    let own = match step["type"].as_str() {
        // The empty pattern matches between any two characters.
        Some("Replace") => step["content"].as_str().map_or(1, |content| content.len() + 1),
        // A compiled map of strings, which it may put in the place of any character.
        Some("Precompiled") => step["precompiled_charsmap"].as_str().map_or(1, longest_replacement),
        _ => 1,
    };
    within.into_iter().map(growth).fold(own, usize::saturating_mul)
}

/// The longest string in SentencePiece's compiled map: the length of a trie, the trie, and strings that end
/// with a zero.
fn longest_replacement(map: &str) -> usize {
    let Ok(bytes) = BASE64_STANDARD.decode(map) else { return 1 };
    let trie = bytes.first_chunk().map_or(0, |size| u32::from_le_bytes(*size) as usize);
    let strings = bytes.get(trie.saturating_add(4)..).unwrap_or_default();
    strings.split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(1).max(1)
}
