//! The code that models bring along is known by its hash: docs/formats.md lists them all.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

use upgrayedd_models::family;

const BEGIN: &str = "<!-- hashes -->\n";
const END: &str = "<!-- end of hashes -->\n";

#[test]
fn hashes_of_modeling_files_are_listed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let mut table = format!("\n| {} | BLAKE3 |\n|---|---|\n", env!("CARGO_PKG_VERSION"));
    for name in family::names() {
        let modeling = family::named(name).unwrap().modeling;
        let (hash, text) = (modeling.hash(), modeling.text());
        let code = text.splitn(3, '\n').nth(2).unwrap();
        assert!(text.lines().nth(1).unwrap().ends_with(&hash));
        assert_eq!(blake3::hash(code.as_bytes()).to_hex().as_str(), hash);
        writeln!(table, "| {name} | `{hash}` |").unwrap();
    }
    let expected = format!("{before}{BEGIN}{table}\n{END}{after}");
    if std::env::var_os("UPGRAYEDD_UPDATE").is_some() {
        std::fs::write(&page, &expected).unwrap();
    }
    assert!(
        text == expected || std::env::var_os("UPGRAYEDD_UPDATE").is_some(),
        "run this test with UPGRAYEDD_UPDATE=1"
    );
}
