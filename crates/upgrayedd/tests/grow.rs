//! Dormant heads: they change nothing while shut, and their gains are those of finite differences.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use upgrayedd::data::{Dataset, Pass, Row};
use upgrayedd::family;
use upgrayedd::grow::{self, Gains};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Batch, Hooks, Model};
use upgrayedd::nn::Tape;
use upgrayedd::score::ScoreContext;
use upgrayedd::units::{LayerSite, Selection, Site, Unit, heads_by_layer};
use upgrayedd::{Error, surgery};

fn pruned(name: &str, selection: &[(usize, Vec<usize>)]) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let mut model = Model::load(&dir, &LoadOptions::default()).unwrap();
    surgery::remove(&mut model, None, &heads_by_layer(selection.iter().cloned().collect()), 1, None).unwrap();
    model
}

fn data(model: &Model) -> Dataset {
    let vocabulary = model.spec().vocab_size as u32;
    let row =
        |i: u32| Row::causal((0..7 + i).map(|t| (t * 11 + i * 3 + t * t) % vocabulary).collect(), None, None);
    Dataset::from_rows((0..6).map(row).collect(), model.spec().objective, 0)
}

#[test]
fn dormant_heads_change_no_bit_and_gains_are_finite_differences() {
    const STEP: f32 = 0.01;
    for (name, selection) in
        [("gpt2", vec![(0, vec![1, 3]), (1, vec![0])]), ("llama_gqa", vec![(0, vec![0, 1]), (1, vec![3])])]
    {
        let model = pruned(name, &selection);
        let data = data(&model);
        let dormant = grow::with_dormant(&model).unwrap();
        let batch = data.batch(&[0, 1, 2, 3, 4, 5], Pass::Fixed);
        let logits = |m: &Model| m.logits(&batch, &mut Hooks::default()).unwrap();
        assert_eq!(logits(&dormant), logits(&model), "{name}");

        let range = 0..data.len();
        let context = ScoreContext { samples: 100, ..ScoreContext::new(&model, &data, &range) };
        let gains = grow::gains(&context).unwrap();
        let archived: Vec<Unit> = model.archive().heads().collect();
        assert_eq!(gains.keys().copied().collect::<Vec<_>>(), archived);
        for id in archived {
            let (mut gradient, mut square, mut total) = (0.0, 0.0, 0.0);
            for sequence in 0..data.len() {
                let batch = data.batch(&[sequence], Pass::Fixed);
                let loss = |value: f32| {
                    let mut at = dormant.clone();
                    let position = at.units().layers()[id.layer].active().binary_search(&id.index).unwrap();
                    let mut gates = at.gates(id.place()).unwrap().data().to_vec();
                    gates[position] = value;
                    at.set_gates(id.place(), gates).unwrap();
                    let mut tape = Tape::inference(at.device(), at.params());
                    at.loss(&mut tape, &batch, 1.0, &mut Hooks::default()).unwrap()
                };
                let (up, down) = (loss(STEP), loss(-STEP));
                let slope = (up.sum.read() - down.sum.read()) / (up.count as f64 * f64::from(2.0 * STEP));
                gradient += slope * up.count as f64;
                square += slope * slope * up.count as f64;
                total += up.count as f64;
            }
            let (gradient, square) = (gradient / total, square / total);
            let want = -gradient.signum() * gradient * gradient / (2.0 * square);
            assert!(
                (gains[&id] - want).abs() <= 1e-2 * want.abs() + 1e-4,
                "{name}: {id:?}: {} is not {want}",
                gains[&id]
            );
        }
    }
}

/// As wide as real models are: products over so many features are cut into blocks, and where they are cut
/// must not matter.
#[test]
fn dormant_heads_change_no_bit_of_wide_models() {
    let gpt2 = serde_json::json!({
        "model_type": "gpt2", "vocab_size": 50, "n_positions": 64, "n_embd": 768, "n_layer": 2, "n_head": 12,
    });
    let llama = serde_json::json!({
        "model_type": "llama", "vocab_size": 50, "max_position_embeddings": 64, "hidden_size": 576, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    for config in [gpt2, llama] {
        let (family, spec, _) = family::recognise(&config, &[], None).unwrap();
        let mut model = Model::initialised(family, spec, config, 1).unwrap();
        // A whole group of heads, and single ones.
        let selection = Selection::from([
            (LayerSite::heads(0), vec![0, 1, 2, 7]),
            (LayerSite::heads(1), vec![0, 1, 2, 3, 4, 5]),
        ]);
        surgery::remove(&mut model, None, &selection, 1, None).unwrap();
        let dormant = grow::with_dormant(&model).unwrap();
        // Few and many positions: there are several kernels.
        for (batch, len) in [(1, 1), (1, 2), (1, 5), (1, 9), (1, 40), (2, 33), (2, 64), (9, 64)] {
            let tokens = (0..batch * len).map(|i| (i * i + 7) as u32 % 50).collect::<Vec<_>>().into();
            let batch = Batch { tokens, batch, len, ..Batch::default() };
            let logits = |m: &Model| m.logits(&batch, &mut Hooks::default()).unwrap();
            assert!(logits(&dormant) == logits(&model), "{} × {len}", batch.batch);
        }
    }
}

#[test]
fn the_best_heads_of_each_layer_return_whole_groups_where_asked() {
    let model = pruned("llama_gqa", &[(0, vec![0, 1, 2]), (1, vec![0, 1, 3])]);
    let gain = |head: usize| [0.1, 0.3, 0.2, -0.4][head];
    let gains: Gains = model.archive().heads().map(|id| (id, gain(id.index))).collect();
    let choose = |counts: &[(usize, usize)], unit| {
        grow::choose(model.units(), &gains, &counts.iter().copied().collect::<BTreeMap<_, _>>(), unit)
    };
    let want = |selection: &[(usize, Vec<usize>)]| heads_by_layer(selection.iter().cloned().collect());
    assert_eq!(choose(&[(0, 2), (1, 1)], Site::Head).unwrap(), want(&[(0, vec![1, 2]), (1, vec![1])]));
    // Heads 0 to 2 read one key/value head, 3 to 5 another.
    assert_eq!(choose(&[(0, 3)], Site::KvGroup).unwrap(), want(&[(0, vec![0, 1, 2])]));
    for impossible in [(1, 4), (9, 1)] {
        assert!(matches!(choose(&[impossible], Site::Head), Err(Error::DoesNotFit(_))), "{impossible:?}");
    }
}

#[test]
fn gates_that_are_half_open_are_scored_where_they_are() {
    let mut model = pruned("gpt2", &[]);
    let data = data(&model);
    let range = 0..data.len();
    let score = |model: &Model| {
        let context = ScoreContext { batch_size: 2, samples: 100, ..ScoreContext::new(model, &data, &range) };
        upgrayedd::score::named("gradient").unwrap().compute(&context).unwrap()
    };
    let open = score(&model);
    let heads = model.units().layers()[0].active().len();
    model.set_gates(LayerSite::heads(0), vec![0.5; heads]).unwrap();
    assert_ne!(score(&model), open);
}
