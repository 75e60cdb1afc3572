//! What becomes of each key, as a document.

use super::registry::all;
use crate::keys::{COMMON, Fate, GENERATION, GENERATION_IN_CONFIG, Keys, TOKENIZER};
use Fate::{Idle, Noted, Only, Used};

/// The tables of every family and of what is common as a Markdown document: `docs/config-keys.md`.
pub fn keys_document() -> String {
    let mut text = "# What becomes of each key\n\nMade by `cargo run -p upgrayedd --example config_keys` from the tables that the program \
                    reads by; a test compares them with\nthe keys that transformers knows. A key that is in no table is named in a note.\n"
        .to_owned();
    let mut section = |title: &str, keys: &[Keys]| {
        text.push_str(&format!("\n## {title}\n\n| key | what becomes of it |\n|---|---|\n"));
        for (key, fate) in keys.iter().copied().flatten() {
            let fate = match fate {
                Used => "read".to_owned(),
                Idle(why) => format!("no effect: {why}"),
                Noted(usual, why) => format!("noted unless {}: {why}", usual.join(" or ")),
                Only(allowed, right) => format!("refused unless {}: expected {right}", allowed.join(" or ")),
            };
            text.push_str(&format!("| `{key}` | {fate} |\n"));
        }
    };
    for family in all() {
        section(&format!("config.json of a {} model", family.model_type), family.keys);
    }
    section("config.json of any model", &[COMMON]);
    section("generation_config.json", &[GENERATION]);
    section("tokenizer_config.json and special_tokens_map.json", &[TOKENIZER]);
    let settings = GENERATION_IN_CONFIG.join("`, `");
    text.push_str(&format!(
        "\nSettings for generation in config.json have no effect, as in transformers 5: `{settings}`.\n"
    ));
    text
}
