//! Gate-based scores are what they say: finite differences of the loss in each head's gate.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use upgrayedd::Error;
use upgrayedd::data::{Dataset, Pass, Row, Targets};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Hooks, Model};
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::nn::{Tape, Tensor};
use upgrayedd::score::{self, ScoreContext};
use upgrayedd::spec::Objective;
use upgrayedd::units::{LayerSite, Scores};
use upgrayedd::weights::Writer;

fn load(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    Model::load(&dir, &LoadOptions::default()).unwrap()
}

/// Sequences of different lengths, some positions not counted.
fn data(model: &Model) -> Dataset {
    let vocabulary = model.spec().vocab_size as u32;
    let row = |i: u32| {
        let tokens: Vec<u32> = (0..6 + 2 * i).map(|t| (t * 7 + i * 5 + t * t) % vocabulary).collect();
        match model.spec().objective {
            Objective::Classifier { labels } => {
                Row { targets: Targets::Label(i64::from(i) % labels as i64), tokens, mask: None, types: None }
            }
            Objective::MultiLabel { labels } => {
                let marks = (0..labels).map(|l| ((l + i as usize) % 2) as f32).collect();
                Row { targets: Targets::Labels(marks), tokens, mask: None, types: None }
            }
            Objective::MaskedLm => {
                let targets = tokens
                    .iter()
                    .enumerate()
                    .map(|(p, &t)| if p % 3 == 0 { i64::from(t) } else { IGNORE })
                    .collect();
                Row { targets: Targets::Tokens(targets), tokens, mask: None, types: None }
            }
            Objective::Encoder => Row::every(tokens, None),
            Objective::CausalLm => Row::causal(tokens, None, None),
        }
    };
    Dataset::from_rows((0..5).map(row).collect(), model.spec().objective, 0)
}

/// The mean loss of one sequence with one head's gate at `gate`, and the targets in it.
fn loss_with_gate(
    model: &Model,
    data: &Dataset,
    sequence: usize,
    layer: usize,
    head: usize,
    gate: f32,
) -> (f64, f64) {
    let batch = data.batch(&[sequence], Pass::Fixed);
    let mut tape = Tape::inference(model.device(), model.params());
    let counts = model.units().counts();
    let values =
        |l: usize, n: usize| (0..n).map(|h| if (l, h) == (layer, head) { gate } else { 1.0 }).collect();
    let of_layer =
        |(l, &n): (usize, &usize)| (LayerSite::heads(l), tape.constant(Tensor::from_vec(&[n], values(l, n))));
    let gates = counts.iter().enumerate().map(of_layer).collect();
    let loss =
        model.loss(&mut tape, &batch, 1.0, &mut Hooks { gates: Some(&gates), ..Hooks::default() }).unwrap();
    (loss.sum.read() / loss.count as f64, loss.count as f64)
}

fn score(name: &str, model: &Model, data: &Dataset, batch_size: usize) -> Scores {
    let range = 0..data.len();
    let context = ScoreContext { batch_size, samples: 100, ..ScoreContext::new(model, data, &range) };
    score::named(name).unwrap().compute(&context).unwrap()
}

#[test]
fn gate_scores_equal_finite_differences_of_the_loss() {
    const STEP: f32 = 0.02;
    for name in [
        "llama_gqa",
        "llama_gqa_pruned",
        "gpt2",
        "bert_mlm",
        "bert_classifier",
        "bert_several_labels",
        "qwen3",
        "mpnet_mlm_pruned",
        "modernbert_classifier_pruned",
    ] {
        let model = load(name);
        let data = data(&model);
        let (gradient, fisher) = (score("gradient", &model, &data, 3), score("fisher", &model, &data, 3));
        let taylor = score("taylor", &model, &data, 3);
        for (layer, &heads) in model.units().counts().iter().enumerate() {
            let norm = gradient.at(LayerSite::heads(layer)).iter().map(|g| g * g).sum::<f64>().sqrt();
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
                let (got, want) = (gradient.at(LayerSite::heads(layer))[head], absolute / total);
                assert!(
                    close(got, want),
                    "{name}: gradient of layer {layer}, head {head}: {got} is not {want}"
                );
                let (got, want) = (fisher.at(LayerSite::heads(layer))[head].sqrt(), (squared / total).sqrt());
                assert!(
                    close(got, want),
                    "{name}: fisher of layer {layer}, head {head}: {got} is not {want}"
                );
                assert!(
                    (taylor.at(LayerSite::heads(layer))[head]
                        - gradient.at(LayerSite::heads(layer))[head] / norm)
                        .abs()
                        < 1e-12
                );
            }
        }
    }
}

#[test]
fn fisher_of_a_plain_encoder_is_the_curvature_of_its_distance() {
    const STEP: f32 = 0.05;
    const DRAWS: u64 = 300;
    let model = load("bert_encoder");
    let (data, range) = (data(&model), 0..5);
    let mut drawn = vec![vec![0.0; model.spec().layers[0].num_heads]; model.spec().num_layers()];
    for seed in 0..DRAWS {
        let context =
            ScoreContext { batch_size: 3, samples: 100, seed, ..ScoreContext::new(&model, &data, &range) };
        let scores = score::named("fisher").unwrap().compute(&context).unwrap();
        drawn.iter_mut().flatten().zip(scores.values()).for_each(|(sum, s)| *sum += s / DRAWS as f64);
    }
    for (layer, scores) in drawn.iter().enumerate() {
        for (head, got) in scores.iter().enumerate() {
            // Signs of different positions are independent: a sequence's mean gradient squared is the mean
            // over its length.
            let (mut sum, mut total) = (0.0, 0.0);
            for sequence in 0..data.len() {
                let (distance, count) = loss_with_gate(&model, &data, sequence, layer, head, 1.0 - STEP);
                sum += distance / f64::from(STEP * STEP);
                total += count;
            }
            let want = sum / total;
            assert!((got / want - 1.0).abs() < 0.15, "layer {layer}, head {head}: {got} is not {want}");
        }
    }
}

#[test]
fn scores_do_not_depend_on_the_batch() {
    for model in ["llama_gqa", "bert_encoder"].map(load) {
        let data = data(&model);
        for name in ["gradient", "fisher", "taylor"] {
            let (one, all) = (score(name, &model, &data, 1), score(name, &model, &data, 5));
            for (a, b) in one.values().zip(all.values()) {
                assert!((a - b).abs() <= 1e-4 * b.abs() + 1e-9, "{name}: {a} alone, {b} in a batch");
            }
        }
    }
}

#[test]
fn loss_impact_is_the_masked_loss_minus_the_whole_to_the_bit() {
    for name in ["llama_gqa", "llama_gqa_pruned", "gpt2", "bert_mlm", "bert_classifier", "bert_encoder"] {
        let model = load(name);
        let data = data(&model);
        let indices: Vec<usize> = (0..data.len()).collect();
        let masked = |off: Option<(usize, usize)>| {
            let (mut sums, mut count) = (Vec::new(), 0);
            for indices in indices.chunks(3) {
                let gate = |l: usize, h: usize| if off == Some((l, h)) { 0.0 } else { 1.0 };
                let mut tape = Tape::inference(model.device(), model.params());
                let counts = model.units().counts();
                let values =
                    |(l, &n): (usize, &usize)| Tensor::from_vec(&[n], (0..n).map(|h| gate(l, h)).collect());
                let gates = counts
                    .iter()
                    .enumerate()
                    .map(|l| (LayerSite::heads(l.0), tape.constant(values(l))))
                    .collect();
                let batch = data.batch(indices, Pass::Fixed);
                let loss = model
                    .loss(&mut tape, &batch, 1.0, &mut Hooks { gates: Some(&gates), ..Hooks::default() })
                    .unwrap();
                sums.push(loss.sum.read());
                count += loss.count;
            }
            (sums, count)
        };
        let (whole, count) = masked(None);
        for (layer, impacts) in score("loss_impact", &model, &data, 3).heads().enumerate() {
            for (head, impact) in impacts.iter().enumerate() {
                let (without, _) = masked(Some((layer, head)));
                let difference: f64 = without.iter().zip(&whole).map(|(a, b)| a - b).sum();
                assert_eq!(*impact, difference / count as f64, "{name}: layer {layer}, head {head}");
            }
        }
    }
}

/// What each layer's output projection reads, with the padding left out: `contexts[layer][position]`.
fn contexts(model: &Model, data: &Dataset) -> Vec<Vec<Vec<f32>>> {
    let mut contexts = vec![Vec::new(); model.spec().num_layers()];
    for sequence in 0..data.len() {
        let batch = data.batch(&[sequence], Pass::Fixed);
        let mut look = |(layer, writer): (usize, Writer), x: &Tensor| {
            if writer == Writer::Attention {
                contexts[layer].extend(x.data().chunks_exact(x.cols()).map(<[f32]>::to_vec));
            }
            Ok(())
        };
        let mut tape = Tape::inference(model.device(), model.params());
        model.hidden(&mut tape, &batch, &mut Hooks { read: Some(&mut look), ..Hooks::default() }).unwrap();
    }
    contexts
}

#[test]
fn wanda_and_similarity_follow_their_definitions() {
    for name in ["llama_gqa_pruned", "gpt2", "bert_mlm"] {
        let model = load(name);
        let data = data(&model);
        let d = model.spec().head_dim;
        let (wanda, similarity) = (score("wanda", &model, &data, 2), score("similarity", &model, &data, 2));
        for (layer, contexts) in contexts(&model, &data).iter().enumerate() {
            let id = model.params().find(&format!("layers.{layer}.attn.o.weight")).unwrap();
            let weight = model.params().get(id).to_host();
            let heads = weight.cols() / d;
            let row = |r: usize| &weight.data()[r * weight.cols()..(r + 1) * weight.cols()];
            for head in 0..heads {
                let features = head * d..(head + 1) * d;
                let norm = |f: usize| {
                    (contexts.iter().map(|x| f64::from(x[f]).powi(2)).sum::<f64>() / contexts.len() as f64)
                        .sqrt()
                };
                let sum =
                    |f: usize| (0..weight.rows()).map(|r| f64::from(row(r)[f].abs())).sum::<f64>() * norm(f);
                let want = features.map(sum).sum::<f64>() / (d * weight.rows()) as f64;
                assert!(
                    (wanda.at(LayerSite::heads(layer))[head] - want).abs() < 1e-5 * want,
                    "{name}: {want}"
                );
            }
            let written = |x: &[f32], head: usize| -> Vec<f64> {
                let dot = |r: usize| {
                    (head * d..(head + 1) * d).map(|f| f64::from(row(r)[f]) * f64::from(x[f])).sum()
                };
                (0..weight.rows()).map(dot).collect()
            };
            let cosine = |a: usize, b: usize| {
                let each = contexts.iter().map(|x| {
                    let (a, b) = (written(x, a), written(x, b));
                    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
                });
                each.sum::<f64>() / contexts.len() as f64
            };
            let pairs = (0..heads).flat_map(|a| (a + 1..heads).map(move |b| (a, b)));
            let highest = pairs.map(|(a, b)| cosine(a, b)).fold(f64::NEG_INFINITY, f64::max);
            let lowest = similarity.at(LayerSite::heads(layer)).iter().copied().fold(f64::INFINITY, f64::min);
            let want = if heads > 1 { 1.0 - highest } else { 2.0 };
            assert!((lowest - want).abs() < 1e-4, "{name}, layer {layer}: {lowest} is not {want}");
        }
    }
}

#[test]
fn one_pass_gives_what_each_score_gives_alone() {
    for name in ["llama_gqa", "bert_classifier"] {
        let model = load(name);
        let data = data(&model);
        let range = 0..data.len();
        let context =
            ScoreContext { batch_size: 2, samples: 100, seed: 7, ..ScoreContext::new(&model, &data, &range) };
        let scores: Vec<_> = upgrayedd::score::ALL
            .into_iter()
            .filter(|s| s.name != "task" || name == "bert_classifier")
            .collect();
        let together = upgrayedd::score::compute_all(&scores, &context).unwrap();
        for (score, together) in scores.iter().zip(together) {
            assert_eq!(score.compute(&context).unwrap(), together, "{name}: {}", score.name);
            // With one block in memory at a time, too.
            let less = ScoreContext { gradient_checkpointing: true, ..context };
            assert_eq!(score.compute(&less).unwrap(), together, "{name}: {}", score.name);
        }
    }
}

#[test]
fn the_task_score_wants_a_task() {
    let model = load("llama_gqa");
    let text = data(&model);
    let range = 0..text.len();
    let context = |data| ScoreContext {
        batch_size: 2,
        samples: 100,
        seed: 7,
        ..ScoreContext::new(&model, data, &range)
    };
    let refused = score::named("task").unwrap().compute(&context(&text));
    assert!(matches!(refused, Err(Error::DoesNotFit(_))));
    let prompt = |i: i64| Row::causal(vec![1, 2, 3, 4, 5], None, Some(&[IGNORE, IGNORE, IGNORE, 4, i]));
    let answers = Dataset::from_rows((1..6).map(prompt).collect(), Objective::CausalLm, 0);
    let found = score::named("task").unwrap().compute(&context(&answers)).unwrap();
    assert_eq!(found, score::named("fisher").unwrap().compute(&context(&answers)).unwrap());
}

#[test]
fn spread_sequences_are_all_there_and_a_few_stand_for_all() {
    for count in [1usize, 2, 3, 7, 10, 64, 100, 997] {
        let rows = (0..count as u32 + 2).map(|i| Row::causal(vec![i, i + 1], None, None)).collect();
        let mut data = Dataset::from_rows(rows, Objective::CausalLm, 0);
        data.spread_over(count);
        let order: Vec<usize> = (0..data.len()).map(|i| data.tokens(i)[0] as usize).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..count + 2).collect::<Vec<_>>());
        // What lies behind keeps its place.
        assert_eq!(order[count..], [count, count + 1]);
        if count >= 64 {
            // Any fifth of them in a row has some in every fifth of the data.
            for some in order[..count].windows(count / 5) {
                assert!(
                    (0..5).all(|fifth| some.iter().any(|&i| i * 5 / count == fifth)),
                    "{count}: {some:?}"
                );
            }
        }
    }
}
