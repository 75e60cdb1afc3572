//! Pruning, growing back and writing a model of the size of GPT-2 small.
#![allow(missing_docs, clippy::expect_used)]

use std::path::Path;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use upgrayedd::export::{HF, export};
use upgrayedd::family;
use upgrayedd::files::DType;
use upgrayedd::learner::Learner;
use upgrayedd::load::LoadOptions;
use upgrayedd::model::Model;
use upgrayedd::units::{LayerSite, Selection};

fn model() -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/gpt2-small.json");
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("config")).expect("JSON");
    let (family, spec, _) = family::recognise(&config, &[], None).expect("GPT-2");
    Model::initialised(family, spec, config, 1).expect("GPT-2")
}

fn surgery(c: &mut Criterion) {
    let dense = Learner::new(model(), 0.01);
    // Every third head of every layer: 48 of 144.
    let third: Selection = (0..12).map(|layer| (LayerSite::heads(layer), vec![0, 3, 6, 9])).collect();
    let mut pruned = dense.clone();
    pruned.remove(&third, 1, None).expect("heads");
    let mut group = c.benchmark_group("surgery on 48 of 144 heads");
    group.sample_size(20);
    group.bench_function("prune", |b| {
        b.iter_batched(
            || dense.clone(),
            |mut learner| {
                learner.remove(&third, 1, None).expect("heads");
                learner
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("restore", |b| {
        b.iter_batched(
            || pruned.clone(),
            |mut learner| {
                learner.restore(&third, 1.0).expect("heads");
                learner
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();

    let dir = tempfile::tempdir().expect("a folder");
    let (saved, again) = (dir.path().join("saved"), dir.path().join("again"));
    let write = |to: &Path| export(&pruned.model, &HF, Some(DType::F32), to).expect("written");
    write(&saved);
    let mut group = c.benchmark_group("model of 124 million parameters");
    group.sample_size(10);
    group.bench_function("export", |b| {
        // One result at a time: each takes half a gigabyte.
        let empty = || {
            if again.exists() {
                std::fs::remove_dir_all(&again).expect("removed")
            }
        };
        b.iter_batched(empty, |()| write(&again), BatchSize::PerIteration);
    });
    group.bench_function("load", |b| b.iter(|| Model::load(&saved, &LoadOptions::default()).expect("read")));
    group.finish();
}

criterion_group!(benches, surgery);
criterion_main!(benches);
