//! Least-squares repair: exact where it can be, never worse on what it has not seen, and the same at any
//! number of threads.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

use upgrayedd::data::{Dataset, Pass, Row};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Hooks, Model};
use upgrayedd::reduce::Alone;
use upgrayedd::refit::{batches, refit};
use upgrayedd::units::{LayerSite, Selection};
use upgrayedd::weights::Writer;
use upgrayedd::{Error, builtin, surgery};

fn golden(name: &str) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    Model::load(&dir, &LoadOptions::default()).unwrap()
}

/// Sequences of pseudo-random tokens, of two lengths so that there is padding.
fn data(model: &Model, sequences: u32) -> Dataset {
    let vocabulary = model.spec().vocab_size as u32;
    let row = |i: u32| {
        let mut state = i.wrapping_mul(2_654_435_761).wrapping_add(12345);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocabulary
        };
        Row::causal((0..10 + 4 * (i % 2)).map(|_| next()).collect(), None, None)
    };
    Dataset::from_rows((0..sequences).map(row).collect(), model.spec().objective, 0)
}

/// Writes head `from` of a layer over head `to`, weights of Q, K, V and O.
fn duplicate(model: &mut Model, layer: usize, from: usize, to: usize) {
    let d = model.spec().head_dim;
    for part in ["q.weight", "k.weight", "v.weight", "q.bias", "k.bias", "v.bias"] {
        let Some(id) = model.params().find(&format!("layers.{layer}.attn.{part}")) else { continue };
        let weight = model.params_mut().get_mut(id);
        let width = if part.ends_with("bias") { 1 } else { weight.cols() };
        let size = d * width;
        weight.data_mut().copy_within(from * size..(from + 1) * size, to * size);
    }
}

fn logits(model: &Model, data: &Dataset) -> Vec<f32> {
    model.logits(&data.batch(&[0, 2, 4], Pass::Fixed), &mut Hooks::default()).unwrap().data().to_vec()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn what_a_twin_can_say_is_not_lost() {
    let mut parent = golden("gpt2");
    duplicate(&mut parent, 1, 0, 2);
    let data = data(&parent, 60);
    let mut pruned = parent.clone();
    surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::heads(1), vec![2])]), 0, None).unwrap();
    let (whole, broken) = (logits(&parent, &data), logits(&pruned, &data));
    let report =
        refit(&mut pruned, &parent, batches(&data, &(0..60).collect::<Vec<_>>(), 4), &Alone).unwrap();
    let repaired = logits(&pruned, &data);
    assert!(report[&Writer::Attention][1].repaired > 0.999, "{report:?}");
    assert!(
        distance(&repaired, &whole) < 0.02 * distance(&broken, &whole),
        "{}",
        distance(&repaired, &whole)
    );
}

#[test]
fn what_was_always_the_same_goes_into_the_bias() {
    let mut parent = golden("gpt2");
    let d = parent.spec().head_dim;
    for (part, value) in [("weight", 0.0), ("bias", 2.0)] {
        let id = parent.params().find(&format!("layers.1.attn.v.{part}")).unwrap();
        let heads = parent.spec().layers[0].num_heads;
        let values = parent.params_mut().get_mut(id);
        let width = values.len() / (heads * d);
        values.data_mut()[..d * width].fill(value);
    }
    let data = data(&parent, 60);
    let mut pruned = parent.clone();
    surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::heads(1), vec![0])]), 0, None).unwrap();
    let (whole, broken) = (logits(&parent, &data), logits(&pruned, &data));
    let report =
        refit(&mut pruned, &parent, batches(&data, &(0..60).collect::<Vec<_>>(), 4), &Alone).unwrap();
    assert!(report[&Writer::Attention][1].repaired > 0.999_99, "{report:?}");
    let repaired = logits(&pruned, &data);
    assert!(
        distance(&repaired, &whole) < 0.01 * distance(&broken, &whole),
        "{}",
        distance(&repaired, &whole)
    );
}

#[test]
fn refit_never_makes_the_unseen_worse_and_changes_nothing_but_projections() {
    for (name, layer) in [
        ("llama_gqa", 0),
        ("llama_gqa_pruned", 1),
        ("gpt2", 0),
        ("bert_mlm", 1),
        ("qwen3", 1),
        ("modernbert_mlm", 0),
        ("mpnet_mlm_pruned", 1),
        ("gemma3_pruned", 0),
        ("gpt_neox", 1),
    ] {
        let parent = golden(name);
        let data = data(&parent, 24);
        let head = parent.units().layers()[layer].active()[0];
        let mut pruned = parent.clone();
        surgery::remove(
            &mut pruned,
            None,
            &Selection::from([(LayerSite::heads(layer), vec![head])]),
            0,
            None,
        )
        .unwrap();
        let before = pruned.clone();
        let report =
            refit(&mut pruned, &parent, batches(&data, &(0..24).collect::<Vec<_>>(), 3), &Alone).unwrap();
        assert!(
            report
                .values()
                .flatten()
                .all(|l| (0.0..=1.0).contains(&l.repaired) && l.ridge.is_some() == (l.repaired > 0.0)),
            "{report:?}"
        );
        // A layer below the pruned one has nothing to repair.
        assert!(report[&Writer::Attention][..layer].iter().all(|l| l.ridge.is_none()), "{report:?}");
        for id in pruned.params().ids() {
            let name = pruned.params().name(id);
            let (is, was) = (pruned.params().get(id), before.params().get(id));
            assert!(name.contains(".attn.o.") || is == was, "{name}");
        }
        assert_eq!(pruned.archive(), before.archive());
    }
}

#[test]
fn a_refit_on_little_text_does_not_harm_other_text() {
    let parent = builtin::model().unwrap();
    let data = data(&parent, 60);
    let unseen = data.batch(&(20..60).collect::<Vec<_>>(), Pass::Fixed);
    // What the layer above the pruned one reads.
    let stream = |model: &Model| {
        let mut inputs = Vec::new();
        model.logits(&unseen, &mut Hooks { inputs: Some(&mut inputs), ..Hooks::default() }).unwrap();
        inputs.swap_remove(3).data().to_vec()
    };
    let error = |model: &Model| -> f32 {
        stream(model).iter().zip(stream(&parent)).map(|(a, b)| (a - b).powi(2)).sum()
    };
    for head in 0..parent.spec().layers[0].num_heads {
        let mut pruned = parent.clone();
        surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::heads(2), vec![head])]), 0, None)
            .unwrap();
        let before = error(&pruned);
        // Hardly more positions than features: what fits these best is far off elsewhere.
        refit(&mut pruned, &parent, batches(&data, &(0..20).collect::<Vec<_>>(), 4), &Alone).unwrap();
        assert!(error(&pruned) < before, "head {head}: {} after {before}", error(&pruned));
    }
}

#[test]
fn a_model_that_lost_nothing_stays_as_it_is() {
    let parent = builtin::model().unwrap();
    let data = data(&parent, 10);
    let mut same = parent.clone();
    let report = refit(&mut same, &parent, batches(&data, &(0..10).collect::<Vec<_>>(), 4), &Alone).unwrap();
    assert!(report.is_empty());
    assert_eq!(logits(&same, &data), logits(&parent, &data));
}

#[test]
fn threads_do_not_change_a_bit() {
    let parent = golden("llama_gqa");
    let data = data(&parent, 20);
    let run = |threads: usize| {
        let pool = pool_of(threads);
        pool.install(|| {
            let mut pruned = parent.clone();
            surgery::remove(&mut pruned, None, &Selection::from([(LayerSite::heads(0), vec![1])]), 0, None)
                .unwrap();
            refit(&mut pruned, &parent, batches(&data, &(0..20).collect::<Vec<_>>(), 4), &Alone).unwrap();
            logits(&pruned, &data)
        })
    };
    assert_eq!(run(1), run(2));
}

fn pool_of(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn impossible_repairs_are_refused() {
    let parent = golden("llama_gqa");
    let data = data(&parent, 4);
    let refuse = |parent: &Model, indices: &[usize]| {
        refit(&mut golden("llama_gqa"), parent, batches(&data, indices, 4), &Alone).unwrap_err()
    };
    assert!(matches!(refuse(&parent, &[0]), Error::DoesNotFit(_)));
    assert!(matches!(refuse(&golden("gpt2"), &[0, 1, 2, 3]), Error::DoesNotFit(_)));
}
