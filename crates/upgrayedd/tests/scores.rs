//! Gate-based scores are what they say: finite differences of the loss in each head's gate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use upgrayedd::data::{Dataset, Pass, Row, Targets};
use upgrayedd::heads::HeadScores;
use upgrayedd::model::{Hooks, LoadOptions, Model, Objective};
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::nn::{Tape, Tensor};
use upgrayedd::score::{Score, ScoreContext};

fn load(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    Model::load(&dir, &LoadOptions::default()).unwrap()
}

/// Sequences of different lengths, some positions not counted.
fn data(model: &Model) -> Dataset {
    let vocabulary = model.spec.vocab_size as u32;
    let row = |i: u32| {
        let tokens: Vec<u32> = (0..6 + 2 * i).map(|t| (t * 7 + i * 5 + t * t) % vocabulary).collect();
        match model.spec.objective {
            Objective::Classifier { labels } => Row { targets: Targets::Label(i64::from(i) % labels as i64), tokens, mask: None },
            Objective::MaskedLm => {
                let targets = tokens.iter().enumerate().map(|(p, &t)| if p % 3 == 0 { i64::from(t) } else { IGNORE }).collect();
                Row { targets: Targets::Tokens(targets), tokens, mask: None }
            }
            _ => Row::causal(tokens, None, None),
        }
    };
    Dataset::from_rows((0..5).map(row).collect(), model.spec.objective, 0)
}

/// The mean loss of one sequence with one head's gate at `gate`, and the targets in it.
fn loss_with_gate(model: &Model, data: &Dataset, sequence: usize, layer: usize, head: usize, gate: f32) -> (f64, f64) {
    let batch = data.batch(&[sequence], Pass::Fixed);
    let mut tape = Tape::inference(model.device, &model.params);
    let gates: Vec<_> = model
        .heads
        .counts()
        .iter()
        .enumerate()
        .map(|(l, &n)| {
            tape.constant(Tensor::from_vec(&[n], (0..n).map(|h| if (l, h) == (layer, head) { gate } else { 1.0 }).collect()))
        })
        .collect();
    let loss = model.loss(&mut tape, &batch, 1.0, &mut Hooks { gates: Some(&gates), ..Hooks::default() });
    (loss.sum / loss.count as f64, loss.count as f64)
}

fn score(name: &str, model: &Model, data: &Dataset, batch_size: usize) -> HeadScores {
    let range = 0..data.len();
    let context = ScoreContext { model, data: Some((data, &range)), batch_size, samples: 100, seed: 0 };
    Score::named(name).unwrap().compute(&context).unwrap()
}

#[test]
fn gate_scores_equal_finite_differences_of_the_loss() {
    const STEP: f32 = 0.02;
    for name in ["llama_gqa", "llama_gqa_pruned", "gpt2", "bert_mlm", "bert_classifier"] {
        let model = load(name);
        let data = data(&model);
        let (gradient, fisher) = (score("gradient", &model, &data, 3), score("fisher", &model, &data, 3));
        let taylor = score("taylor", &model, &data, 3);
        for (layer, &heads) in model.heads.counts().iter().enumerate() {
            let norm = gradient.layers[layer].iter().map(|g| g * g).sum::<f64>().sqrt();
            for head in 0..heads {
                let (mut absolute, mut squared, mut total) = (0.0, 0.0, 0.0);
                for sequence in 0..data.len() {
                    let at = |gate: f32| loss_with_gate(&model, &data, sequence, layer, head, gate);
                    let ((up, count), (down, _)) = (at(1.0 + STEP), at(1.0 - STEP));
                    let slope = (up - down) / f64::from(2.0 * STEP);
                    absolute += count * slope.abs();
                    squared += count * slope * slope;
                    total += count;
                }
                let close = |got: f64, want: f64| (got - want).abs() <= 2e-3 * want.abs().max(1e-3);
                let (got, want) = (gradient.layers[layer][head], absolute / total);
                assert!(close(got, want), "{name}: gradient of layer {layer}, head {head}: {got} is not {want}");
                let (got, want) = (fisher.layers[layer][head].sqrt(), (squared / total).sqrt());
                assert!(close(got, want), "{name}: fisher of layer {layer}, head {head}: {got} is not {want}");
                assert!((taylor.layers[layer][head] - gradient.layers[layer][head] / norm).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn scores_do_not_depend_on_the_batch() {
    let model = load("llama_gqa");
    let data = data(&model);
    for name in ["gradient", "fisher", "taylor"] {
        let (one, all) = (score(name, &model, &data, 1), score(name, &model, &data, 5));
        for (a, b) in one.layers.iter().flatten().zip(all.layers.iter().flatten()) {
            assert!((a - b).abs() <= 1e-4 * b.abs() + 1e-9, "{name}: {a} alone, {b} in a batch");
        }
    }
}
