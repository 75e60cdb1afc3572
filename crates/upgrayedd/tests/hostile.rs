//! Files that lie: every reader gets inputs that were right once and have been damaged at random, the same
//! ones every time. `UPGRAYEDD_HOSTILE` says how many for each, 300 if it is not set; `fuzz/` lets a fuzzer
//! look for more.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../../fuzz/readers.rs"]
mod readers;

use rand::RngExt;
use upgrayedd::data::{DataOptions, Dataset};
use upgrayedd::load::LoadOptions;
use upgrayedd::{Error, Model, Tokenizer, builtin};
use upgrayedd_models::rng;

/// Numbers on which arithmetic breaks, as text and as bytes.
const NUMBERS: [&str; 8] = [
    "0",
    "-1",
    "1",
    "9223372036854775808",
    "18446744073709551615",
    "1e309",
    "16777216",
    "99999999999999999999999",
];

fn damage(bytes: &mut Vec<u8>, random: &mut rng::Stream) {
    let at = |random: &mut rng::Stream, len: usize| random.random_range(0..len.max(1)).min(len);
    for _ in 0..random.random_range(1..5usize) {
        let place = at(random, bytes.len());
        match random.random_range(0..7u32) {
            0 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << random.random_range(0..8u32);
                }
            }
            1 => bytes.truncate(place),
            2 => bytes.insert(place, random.random_range(0..=255u8)),
            3 => {
                // A piece twice.
                let end = (place + random.random_range(1..64usize)).min(bytes.len());
                let piece = bytes[place..end].to_vec();
                bytes.splice(place..place, piece);
            }
            4 => {
                let end = (place + random.random_range(1..16usize)).min(bytes.len());
                bytes.drain(place..end);
            }
            5 => {
                // The number that begins after here becomes another.
                let start = bytes[place..].iter().position(u8::is_ascii_digit).map_or(place, |i| place + i);
                let length = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                let number = NUMBERS[random.random_range(0..NUMBERS.len())];
                bytes.splice(start..start + length, number.bytes());
            }
            _ => {
                let number = random.random::<u64>() >> random.random_range(0..64u32);
                let end = (place + 8).min(bytes.len());
                bytes.splice(place..end, number.to_le_bytes());
            }
        }
    }
}

#[test]
fn damaged_files_are_refused_without_a_panic() {
    let count: usize = std::env::var("UPGRAYEDD_HOSTILE").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    for reader in &readers::ALL {
        let seeds = (reader.seeds)();
        let mut random = rng::stream(1, reader.name);
        seeds.iter().for_each(|seed| (reader.read)(seed));
        for i in 0..count {
            let mut bytes = seeds[i % seeds.len()].clone();
            damage(&mut bytes, &mut random);
            let read = std::panic::catch_unwind(|| (reader.read)(&bytes));
            if read.is_err() {
                let path = std::env::temp_dir().join(format!("upgrayedd-hostile-{}-{i}", reader.name));
                std::fs::write(&path, &bytes).unwrap();
                panic!("{} panicked on {}", reader.name, path.display());
            }
        }
    }
}

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// A folder with a small model, for a test to spoil.
fn model_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama_gqa").join(file), dir.path().join(file)).unwrap();
    }
    dir
}

fn load_error(dir: &std::path::Path) -> Error {
    Model::load(dir, &LoadOptions::default()).unwrap_err()
}

/// What is wrong with `file`, which is what the error is about.
fn problem(error: Error, file: &std::path::Path) -> Error {
    match error {
        Error::File { path, problem } if path == file => *problem,
        other => panic!("{other:?}"),
    }
}

#[cfg(unix)]
#[test]
fn links_out_of_a_models_folder_are_not_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    for (file, content) in [("config.json", "{}"), ("model.safetensors", "private"), ("tokenizer.json", "{}")]
    {
        let dir = model_folder();
        let (private, link) = (elsewhere.path().join(file), dir.path().join(file));
        std::fs::write(&private, content).unwrap();
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&private, &link).unwrap();
        let error = match file {
            "tokenizer.json" => Tokenizer::load(dir.path(), &serde_json::Value::Null).unwrap_err(),
            _ => load_error(dir.path()),
        };
        let refused = problem(error, &link);
        assert!(matches!(refused, Error::Malformed(_)), "{refused:?}");
    }
    // As a Hub cache keeps its files.
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/main"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama_gqa").join(file), blobs.join(file)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{file}"), snapshot.join(file)).unwrap();
    }
    Model::load(&snapshot, &LoadOptions::default()).unwrap();
}

#[test]
fn indices_reach_only_into_their_own_folder() {
    for shard in ["../model.safetensors", "/etc/passwd", "a/../../b", ".."] {
        let dir = model_folder();
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let index = serde_json::json!({ "weight_map": { "model.embed_tokens.weight": shard } });
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        assert!(matches!(problem(load_error(dir.path()), &index), Error::Malformed(_)), "{shard}");
    }
}

#[test]
fn a_tokenizer_that_multiplies_text_is_refused() {
    let mut value: serde_json::Value =
        serde_json::from_str(&builtin::tokenizer().unwrap().to_json().unwrap()).unwrap();
    let replace = |n: usize| serde_json::json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "a".repeat(n) });
    value["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [replace(3), replace(1)] });
    Tokenizer::from_json(&value.to_string(), &serde_json::Value::Null).unwrap();
    for bomb in [vec![replace(1_000_000)], vec![replace(100), replace(100), replace(100)]] {
        value["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": bomb });
        let error = Tokenizer::from_json(&value.to_string(), &serde_json::Value::Null).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    }
}

#[test]
fn tokenizers_that_their_library_trips_over_are_refused() {
    let json = builtin::tokenizer().unwrap().to_json().unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        change(&mut value);
        Tokenizer::from_json(&value.to_string(), &serde_json::Value::Null).unwrap_err()
    };
    // A panic in the library.
    let nameless = refused(&|v| v["post_processor"]["single"][0]["SpecialToken"]["id"] = "<?>".into());
    assert!(matches!(nameless, Error::Malformed(_)), "{nameless:?}");
    // Minutes and gigabytes in the library.
    let huge = refused(&|v| v["model"]["vocab"]["Mia"] = 4_000_000_000_u32.into());
    assert!(matches!(huge, Error::Malformed(_)), "{huge:?}");
}

#[test]
fn special_tokens_beyond_the_vocabulary_are_refused() {
    let model = builtin::model().unwrap();
    let mut value: serde_json::Value =
        serde_json::from_str(&builtin::tokenizer().unwrap().to_json().unwrap()).unwrap();
    let id = u32::MAX - 1;
    value["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<far>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [],
        "special_tokens": { "<far>": { "id": "<far>", "ids": [id], "tokens": ["<far>"] } }
    });
    let tokenizer = Tokenizer::from_json(&value.to_string(), &serde_json::Value::Null).unwrap();
    let texts = builtin::stories(1, 20);
    let error = Dataset::from_documents(texts, &model, &tokenizer, &DataOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Data(_)), "{error:?}");
}

#[test]
fn a_line_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.jsonl");
    let mut text = String::from("{\"text\": \"");
    text.extend(std::iter::repeat_n('a', 100 << 20));
    text.push_str("\"}\n");
    std::fs::write(&path, text).unwrap();
    let (model, tokenizer) = (builtin::model().unwrap(), builtin::tokenizer().unwrap());
    let error =
        Dataset::open(std::slice::from_ref(&path), &model, &tokenizer, &DataOptions::default()).unwrap_err();
    let refused = problem(error, &path);
    assert!(matches!(refused, Error::Malformed(_)), "{refused:?}");
}

#[test]
fn json_without_end_is_refused() {
    let dir = model_folder();
    // A hole, which takes no space.
    std::fs::File::create(dir.path().join("config.json")).unwrap().set_len(257 << 20).unwrap();
    let error = problem(load_error(dir.path()), &dir.path().join("config.json"));
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
}

#[test]
fn nested_json_does_not_exhaust_the_stack() {
    let dir = model_folder();
    let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
    std::fs::write(dir.path().join("config.json"), &deep).unwrap();
    let error = problem(load_error(dir.path()), &dir.path().join("config.json"));
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
    let mut header = (deep.len() as u64).to_le_bytes().to_vec();
    header.extend(deep.as_bytes());
    std::fs::copy(golden("llama_gqa").join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), &header).unwrap();
    let error = problem(load_error(dir.path()), &dir.path().join("model.safetensors"));
    assert!(matches!(error, Error::Malformed(_)), "{error:?}");
}

#[test]
fn a_tokenizer_json_that_is_no_object_is_refused() {
    for text in ["1", "[]", "null", "\"x\""] {
        let refused = Tokenizer::from_json(text, &serde_json::Value::Null);
        assert!(
            matches!(refused, Err(upgrayedd::Error::OutOfRange { name, .. }) if name == "tokenizer.json"),
            "{text}"
        );
    }
}
