//! A family of one's own: registered, made, pruned, written and read again.
//!
//! ```console
//! $ cargo run -p upgrayedd-models --example own_family
//! ```
#![allow(clippy::print_stdout, reason = "a command-line tool")]

mod family;

use std::sync::Arc;

use serde_json::json;
use upgrayedd_models::export::{HF, export};
use upgrayedd_models::load::LoadOptions;
use upgrayedd_models::model::{Batch, Hooks};
use upgrayedd_models::units::{LayerSite, Selection};
use upgrayedd_models::{Model, family as families, surgery};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    families::register(&family::FAMILY)?;
    // From here on folders whose config.json says "toy" are read like any others.
    let config = json!({ "model_type": "toy", "tokens": 24, "width": 16, "depth": 3, "heads": 4 });
    let (found, spec, _) = families::recognise(&config, &[], None)?;
    let mut model = Model::initialised(found, spec, config, 1)?;
    let before = model.num_parameters();
    let heads = Selection::from([(LayerSite::heads(0), vec![1]), (LayerSite::heads(2), vec![0, 3])]);
    surgery::remove(&mut model, None, &heads, 0, None)?;

    let dir = tempfile::tempdir()?;
    export(&model, &HF, None, &dir.path().join("pruned"))?;
    let again = Model::load(&dir.path().join("pruned"), &LoadOptions::default())?;
    let batch = Batch { tokens: Arc::new((0..10).collect()), batch: 2, len: 5, ..Batch::default() };
    let logits = |model: &Model| model.logits(&batch, &mut Hooks::default());
    assert_eq!(logits(&again)?.data(), logits(&model)?.data());
    println!("{before} → {} parameters, heads {:?}", again.num_parameters(), again.units().counts());
    Ok(())
}
