//! A family and a format are a file and a line each, outside this crate too.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../examples/own_family/family.rs"]
mod family;
mod format;

use std::fs;
use std::sync::Arc;

use serde_json::json;
use upgrayedd_models::export::{self, HF};
use upgrayedd_models::family::Family;
use upgrayedd_models::files::DType;
use upgrayedd_models::load::LoadOptions;
use upgrayedd_models::model::{Batch, Hooks};
use upgrayedd_models::spec::ModelSpec;
use upgrayedd_models::units::{LayerSite, Selection};
use upgrayedd_models::weights::{Kind, Part, Weight};
use upgrayedd_models::{Model, surgery};

#[test]
fn a_family_and_a_format_are_a_file_and_a_line() {
    upgrayedd_models::family::register(&family::FAMILY).unwrap();
    export::register(&format::FORMAT).unwrap();
    assert!(
        upgrayedd_models::family::register(&family::FAMILY).is_err()
            && export::register(&format::FORMAT).is_err()
    );

    let config = json!({ "model_type": "toy", "tokens": 24, "width": 16, "depth": 3, "heads": 4 });
    let (found, spec, notes) = upgrayedd_models::family::recognise(&config, &[], None).unwrap();
    assert!(notes.is_empty() && found.model_type == "toy", "{notes:?}");
    // A table that lacks what the forward pass needs is refused, not run without it.
    for (words, lacking) in LACKING {
        let lacking = Box::leak(Box::new(Family { weights: lacking, ..family::FAMILY }));
        let refused = Model::initialised(lacking, spec.clone(), config.clone(), 3).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
    let mut model = Model::initialised(found, spec, config, 3).unwrap();
    let batch = Batch { tokens: Arc::new((0..10).collect()), batch: 2, len: 5, ..Batch::default() };
    let logits = |model: &Model| model.logits(&batch, &mut Hooks::default()).unwrap();
    let whole = logits(&model);
    // The layers are not alike.
    assert_eq!(model.units().counts(), [2, 4, 4]);
    let mlp =
        |layer| model.params().get(model.find(Some(layer), Part::Up, Kind::Weight).unwrap()).shape().to_vec();
    assert_eq!((mlp(0), mlp(1)), (vec![16, 16], vec![48, 16]));

    let gone = Selection::from([(LayerSite::heads(0), vec![1]), (LayerSite::heads(2), vec![0, 3])]);
    surgery::remove(&mut model, None, &gone, 0, None).unwrap();
    let pruned = logits(&model);
    assert!(pruned.data() != whole.data());
    let dir = tempfile::tempdir().unwrap();
    export::export(&model, &HF, Some(DType::F32), &dir.path().join("hf")).unwrap();
    let again = Model::load(&dir.path().join("hf"), &LoadOptions::default()).unwrap();
    assert_eq!(again.units(), model.units());
    assert_eq!(logits(&again).data(), pruned.data());
    assert_eq!(
        fs::read_to_string(dir.path().join("hf/modeling_upgrayedd.py")).unwrap(),
        family::FAMILY.modeling.text()
    );

    export::export(&model, export::named("shapes").unwrap(), Some(DType::F32), &dir.path().join("shapes"))
        .unwrap();
    let shapes = fs::read_to_string(dir.path().join("shapes/shapes.txt")).unwrap();
    assert!(
        shapes.contains("toy.blocks.2.query.bias [8]\n")
            && shapes.contains("toy.blocks.0.out.weight [16, 4]\n"),
        "{shapes}"
    );

    surgery::restore(&mut model, None, &gone, 1.0).unwrap();
    assert_eq!(logits(&model).data(), whole.data());
}

type Weights = fn(&ModelSpec) -> Vec<Weight>;

const LACKING: [(&str, Weights); 3] = [
    ("token embeddings", |spec| without(spec, Part::Tokens)),
    ("Gate", |spec| without(spec, Part::Gate)),
    ("Down", |spec| without(spec, Part::Down)),
];

fn without(spec: &ModelSpec, part: Part) -> Vec<Weight> {
    let mut weights = (family::FAMILY.weights)(spec);
    weights.retain(|weight| weight.role.part != part);
    weights
}
