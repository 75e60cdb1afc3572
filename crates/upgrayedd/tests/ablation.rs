//! Ablation of a plain encoder runs its reference once for a batch, not once for every head. (Alone in its
//! file: products are counted for the whole process.)
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use upgrayedd::data::{Dataset, Pass, Row};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Hooks, Model};
use upgrayedd::nn::{Tape, profile};
use upgrayedd::score::{self, ScoreContext};
use upgrayedd::units::LayerSite;

#[test]
fn the_reference_of_an_encoder_runs_once_for_a_batch() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bert_encoder");
    let mut model = Model::load(&dir, &LoadOptions::default()).unwrap();
    model.set_reference(Arc::new(model.clone())).unwrap();
    let rows = (0..4).map(|i| Row::every((0..12).map(|t| (t * 5 + i) % 40).collect(), None)).collect();
    let (data, range) = (Dataset::from_rows(rows, model.spec().objective, 0), 0..4);
    let batch = data.batch(&[0, 1, 2, 3], Pass::Fixed);
    let (_, forward) = profile::count_products(|| {
        model
            .hidden(&mut Tape::inference(model.device(), model.params()), &batch, &mut Hooks::default())
            .unwrap();
    });
    let context = ScoreContext { samples: 4, ..ScoreContext::new(&model, &data, &range) };
    let (scores, products) =
        profile::count_products(|| score::named("loss_impact").unwrap().compute(&context).unwrap());
    // The model, its reference, and for each head the layers from its own on.
    let partial: f64 = (0..model.spec().num_layers())
        .map(|layer| {
            scores.at(LayerSite::heads(layer)).len() as f64 * (model.spec().num_layers() - layer) as f64
                / model.spec().num_layers() as f64
        })
        .sum();
    let passes = products.flops / forward.flops;
    // A head that is left out has no part in its layer's output projection.
    assert!((1.0..2.0).contains(&(passes - partial)), "{passes} passes for {partial} with a head left out");
}
