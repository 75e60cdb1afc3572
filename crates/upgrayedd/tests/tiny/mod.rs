//! Tiny models of every family, and everything that is done with them.
#![allow(clippy::unwrap_used, dead_code, reason = "not every test needs all of it")]

use std::path::Path;
use std::sync::Arc;

use upgrayedd::data::{Dataset, Row};
use upgrayedd::learner::{Learner, Update};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Batch, Model};
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::nn::{Device, Gradients, Tensor};
use upgrayedd::reduce::Alone;
use upgrayedd::refit::{batches, refit};
use upgrayedd::score::{self, ScoreContext, compute_all};
use upgrayedd::spec::Objective;
use upgrayedd::units::{LayerSite, Scores, Selection, Sites};

/// A model of `tests/golden`; a plain encoder with a reference a little off.
pub fn load(name: &str) -> Model {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let mut model = Model::load(&golden, &LoadOptions::default()).unwrap();
    if model.spec().objective == Objective::Encoder {
        let mut reference = model.clone();
        // A little off, so that there is something to learn.
        for id in model.params().ids() {
            reference
                .params_mut()
                .edit(Device::cpu(), id, |t| t.data_mut().iter_mut().for_each(|v| *v *= 1.1));
        }
        model.set_reference(Arc::new(reference)).unwrap();
    }
    model
}

/// Two sequences, the second padded.
pub fn batch(model: &Model) -> Batch {
    let tokens: Vec<u32> = (0..2 * 9).map(|i| (i * 7 + 3) % model.spec().vocab_size as u32).collect();
    let mask: Vec<u8> = (0..2 * 9).map(|i| u8::from(i < 15)).collect();
    let per_sequence = model.spec().objective.outputs().is_some();
    let targets = match per_sequence {
        true => vec![0, 0],
        false => {
            tokens.iter().zip(&mask).map(|(&t, m)| if *m == 1 { i64::from(t) } else { IGNORE }).collect()
        }
    };
    Batch {
        tokens: Arc::new(tokens),
        batch: 2,
        len: 9,
        mask: Some(mask),
        targets,
        values: match model.spec().objective {
            Objective::MultiLabel { labels } => (0..2 * labels).map(|i| (i % 2) as f32).collect(),
            _ => vec![0.5, -0.5],
        },
        ..Batch::default()
    }
}

/// The model, and what it is compared with, on a device.
pub fn moved(mut model: Model, device: Device) -> Model {
    if let Some(reference) = model.reference().cloned() {
        let mut reference = Arc::unwrap_or_clone(reference);
        reference.move_to(device);
        model.set_reference(Arc::new(reference)).unwrap();
    }
    model.move_to(device);
    model
}

/// On the host.
pub fn weights(mut model: Model) -> Vec<Tensor> {
    model.move_to(Device::cpu());
    model.params().ids().map(|id| model.params().get(id).clone()).collect()
}

pub type Everything = (Vec<Scores>, Vec<Scores>, Vec<f64>, Vec<Option<Tensor>>, Vec<Tensor>);

/// Six sequences of nine tokens.
pub fn data(objective: Objective) -> Dataset {
    let row = |i: u32| match objective {
        Objective::CausalLm => Row::causal((0..9).map(|t| (i * 37 + t * t * 11) % 40).collect(), None, None),
        _ => {
            let tokens: Vec<u32> = (0..9).map(|t| (i * 37 + t * t * 11) % 40).collect();
            let targets = tokens.iter().map(|&t| i64::from(t)).collect();
            Row { targets: upgrayedd::data::Targets::Tokens(targets), ..Row::causal(tokens, None, None) }
        }
    };
    Dataset::from_rows((0..6).map(row).collect(), objective, 0)
}

/// Some heads and channels of the first two layers.
pub fn some_units() -> Selection {
    Selection::from([
        (LayerSite::heads(0), vec![0, 2]),
        (LayerSite::heads(1), vec![1]),
        (LayerSite::channels(0), vec![1, 2, 6]),
        (LayerSite::channels(1), vec![0]),
    ])
}

/// Scores, perhaps a step, pruning, refit, scores again, regrowth.
pub fn everything(model: Model, learns: bool) -> Everything {
    let data = data(model.spec().objective);
    let (range, reduce) = (0..6, &Alone);
    let scores = |model: &Model| {
        let context =
            ScoreContext { batch_size: 2, samples: 6, reduce, ..ScoreContext::new(model, &data, &range) };
        let names =
            ["magnitude", "gradient", "fisher", "entropy", "wanda", "similarity", "surgeon", "loss_impact"];
        let scores: Vec<_> = names.iter().map(|name| score::named(name).unwrap()).collect();
        let of_heads = compute_all(&scores, &context).unwrap();
        let finest = ScoreContext { units: Sites::FINEST, ..context };
        let both: Vec<_> = scores.into_iter().filter(|score| score.units == Sites::FINEST).collect();
        of_heads.into_iter().chain(compute_all(&both, &finest).unwrap()).collect::<Vec<Scores>>()
    };
    let before = scores(&model);
    let parent = model.clone();
    let mut learner = Learner::new(model, 0.1);
    let batch = batch(&parent);
    let mut grads = Gradients::for_params(parent.params());
    if learns {
        learner.step(&mut grads, &[batch], None, Update::at(1e-3), &Alone).unwrap();
    }
    learner.remove(&some_units(), 1, Some(&before[0])).unwrap();
    let report = refit(&mut learner.model, &parent, batches(&data, &[0, 1, 2, 3, 4, 5], 1), &Alone).unwrap();
    let after = scores(&learner.model);
    let back = Selection::from([(LayerSite::heads(0), vec![2]), (LayerSite::channels(0), vec![2])]);
    learner
        .model
        .set_gates(LayerSite::channels(1), vec![0.5; learner.model.units().layers()[1].channels().len()])
        .unwrap();
    learner
        .model
        .set_gates(LayerSite::heads(1), vec![0.5; learner.model.units().layers()[1].active().len()])
        .unwrap();
    learner.restore(&back, 2.0).unwrap();
    upgrayedd::surgery::fold_gates(&mut learner.model, LayerSite::heads(1));
    upgrayedd::surgery::fold_gates(&mut learner.model, LayerSite::channels(1));
    let repaired: Vec<f64> = report.values().flatten().map(|layer| layer.repaired).collect();
    let moments = learner.optim.states.iter().map(|s| s.m.as_ref().map(Tensor::to_host)).collect::<Vec<_>>();
    (before, after, repaired, moments, weights(learner.model))
}
