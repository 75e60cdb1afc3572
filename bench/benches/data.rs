//! Preparing data: tokenising text, which happens once, and making a batch, which happens at every step.
#![allow(missing_docs, clippy::expect_used)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use upgrayedd::builtin;
use upgrayedd::data::{DataOptions, Dataset, Pass};

fn data(c: &mut Criterion) {
    let (model, tokenizer) = (builtin::model().expect("a model"), builtin::tokenizer().expect("a tokenizer"));
    let options = DataOptions::default();
    let texts: Vec<String> = builtin::stories(1, 4000).collect();
    let open = || Dataset::from_documents(texts.iter().cloned(), &model, &tokenizer, &options).expect("data");
    let mut group = c.benchmark_group("data");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(texts.iter().map(|t| t.len() as u64).sum()));
    group.bench_function("tokenise", |b| b.iter(open));
    let data = open();
    group.throughput(Throughput::Elements(4 * 256));
    group.bench_function("batch 4 × 256", |b| b.iter(|| data.batch(&[9, 40, 2, 17], Pass::Fixed)));
    group.finish();
}

criterion_group!(benches, data);
criterion_main!(benches);
