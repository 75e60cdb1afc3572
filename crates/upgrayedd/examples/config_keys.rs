//! Prints `docs/config-keys.md`: what becomes of every key of a model folder's JSON files.
//!
//! ```console
//! $ cargo run -p upgrayedd --example config_keys > docs/config-keys.md
//! ```

#![allow(clippy::print_stdout, reason = "that is what it is for")]

fn main() {
    print!("{}", upgrayedd::family::keys_document());
}
