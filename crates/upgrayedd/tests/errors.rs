//! What went wrong can be told by a program, without reading the message.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use upgrayedd::config::OptimizeConfig;
use upgrayedd::load::LoadOptions;
use upgrayedd::model::Model;
use upgrayedd::nn::DeviceError;
use upgrayedd::units::{LayerSite, Selection};
use upgrayedd::{Error, Pipeline, builtin, export, surgery};

fn refused(toml: &str) -> Error {
    OptimizeConfig::from_toml(toml).and_then(Pipeline::new).err().unwrap()
}

#[test]
fn options_are_refused_by_name_and_value() {
    let Error::UnknownName { kind, given, known } = refused("strategy = \"entrpy\"") else {
        panic!("another error")
    };
    assert!(
        (kind.as_str(), given.as_str()) == ("strategy", "entrpy") && known.contains(&"entropy".to_owned())
    );
    let Error::OutOfRange { name, value, expected } = refused("pruning_ratio = 1.5") else {
        panic!("another error")
    };
    assert_eq!(
        (name.as_str(), value.as_str(), expected.as_str()),
        ("pruning_ratio", "1.5", "at least 0 and less than 1")
    );
    assert!(
        matches!(refused("prunning_ratio = 0.5"), Error::UnknownName { given, .. } if given == "prunning_ratio")
    );
    assert!(matches!(refused("pruning_ratio = \"much\""), Error::Malformed(_)));
    assert!(matches!(refused("min_heads = 9"), Error::DoesNotFit(_)));
    assert!(matches!(refused("device = \"cuda\""), Error::Device(DeviceError::Unavailable { .. })));
    let missing = refused(
        "model = \"/nowhere\"
data = [\"x.txt\"]",
    );
    assert!(matches!(missing, Error::File { path, .. } if path == Path::new("/nowhere")));
}

#[test]
fn files_are_named_and_say_what_is_wrong_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let load = || Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
    assert!(matches!(load(), Error::File { path, .. } if path.starts_with(dir.path())));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama_gqa");
    fs::copy(golden.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let problem = |config: &str| {
        fs::write(dir.path().join("config.json"), config).unwrap();
        match load() {
            Error::File { path, problem } if path.starts_with(dir.path()) => *problem,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(problem("{"), Error::Malformed(_)));
    assert!(matches!(problem("{\"model_type\": \"t5\"}"), Error::Unsupported(_)));
    assert!(
        matches!(problem("{\"model_type\": 5}"), Error::OutOfRange { name, .. } if name == "config.json: model_type")
    );
    fs::write(dir.path().join("here"), "").unwrap();
    let exists = export::export(&builtin::model().unwrap(), &export::HF, None, &dir.path().join("here"));
    assert!(matches!(exists, Err(Error::File { .. })));
}

#[test]
fn decisions_that_a_model_cannot_take_do_not_fit() {
    let mut model = builtin::model().unwrap();
    let heads = Selection::from([(LayerSite::heads(0), vec![99])]);
    assert!(matches!(surgery::remove(&mut model, None, &heads, 1, None), Err(Error::DoesNotFit(_))));
    assert!(matches!(surgery::restore(&mut model, None, &heads, 1.0), Err(Error::DoesNotFit(_))));
}
