//! Ops at the shapes of GPT-2 small with 2 × 256 tokens, forward, and with the backward pass where there is
//! one.
#![allow(missing_docs)]

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use upgrayedd::nn::ops::{self, Activation, AttentionInputs, AttentionShape, Head, RopeTable};
use upgrayedd::nn::optim::{AdamW, AdamWConfig, Lanes};
use upgrayedd::nn::{Device, Gradients, ParamSet, Result, Tape, Tensor, Var};

const TOKENS: usize = 512;
const WIDTH: usize = 768;

fn tensor(shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>();
    Tensor::from_vec(shape, (0..len).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect())
}

/// Times `op` on inputs of these shapes, alone and with its backward pass. `elements` is what it works on
/// forward: multiply-adds, or numbers.
fn both(
    c: &mut Criterion,
    name: &str,
    elements: usize,
    shapes: &[&[usize]],
    op: impl Fn(&mut Tape<'_>, &[Var]) -> Result<Var>,
) {
    let mut params = ParamSet::default();
    let ids: Vec<_> = shapes.iter().map(|shape| params.add("input", tensor(shape))).collect();
    let mut grads = Gradients::for_params(&params);
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(elements as u64));
    group.bench_function("forward", |b| {
        b.iter(|| {
            let mut tape = Tape::inference(Device::cpu(), &params);
            let inputs: Vec<Var> = ids.iter().map(|id| tape.param(*id)).collect();
            op(&mut tape, &inputs).expect("not stopped")
        });
    });
    group.bench_function("forward and backward", |b| {
        b.iter(|| {
            let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
            let inputs: Vec<Var> = ids.iter().map(|id| tape.param(*id)).collect();
            let result = op(&mut tape, &inputs).expect("not stopped");
            let seed = result.tensor().clone();
            tape.backward(vec![(result, seed)]).expect("not stopped");
        });
    });
    group.finish();
}

fn linear(c: &mut Criterion) {
    // After pruning, widths are odd numbers of heads.
    for (inputs, outputs) in [(WIDTH, 4 * WIDTH), (WIDTH, 7 * 64), (5 * 64, WIDTH)] {
        both(
            c,
            &format!("linear {inputs} to {outputs}"),
            TOKENS * inputs * outputs,
            &[&[TOKENS, inputs], &[outputs, inputs], &[outputs]],
            |tape, v| ops::linear(tape, &v[0], &v[1], Some(&v[2])),
        );
    }
}

fn gram(c: &mut Criterion) {
    let mut group = c.benchmark_group("gram matrix");
    for rows in [TOKENS, 4 * TOKENS] {
        let x = tensor(&[rows, WIDTH]);
        group.throughput(Throughput::Elements((rows * WIDTH * WIDTH / 2) as u64));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| b.iter(|| ops::gram(Device::cpu(), &x)));
    }
    group.finish();
}

fn attention(c: &mut Criterion) {
    for (length, heads, kv_heads) in [(256, 12, 12), (256, 12, 4), (256, 7, 7), (2048, 12, 12)] {
        let batch = (TOKENS / length).max(1);
        let shape = Arc::new(AttentionShape {
            batch,
            queries: length,
            keys: length,
            head_dim: 64,
            kv_of: (0..heads).map(|h| h * kv_heads / heads).collect(),
            kv_heads,
            scale: 0.125,
            causal: true,
            window: None,
            key_mask: None,
            bias_columns: Vec::new(),
            soft_cap: None,
        });
        let (queries, keys) = ([batch * length, heads * 64], [batch * length, kv_heads * 64]);
        let name = format!("attention {batch} x {length}, {heads} heads on {kv_heads}");
        let macs = batch * length * length * heads * 64;
        both(c, &name, macs, &[&queries, &keys, &keys, &[heads]], |tape, v| {
            let inputs = AttentionInputs { q: &v[0], k: &v[1], v: &v[2], gates: Some(&v[3]), bias: None };
            ops::attention(tape, inputs, &shape)
        });
    }
}

fn small(c: &mut Criterion) {
    let (x, wide) = ([TOKENS, WIDTH], [TOKENS, 4 * WIDTH]);
    both(c, "layer norm", x[0] * x[1], &[&x, &[WIDTH], &[WIDTH]], |tape, v| {
        ops::layer_norm(tape, &v[0], &v[1], Some(&v[2]), 1e-5)
    });
    both(c, "RMS norm", x[0] * x[1], &[&x, &[WIDTH]], |tape, v| ops::rms_norm(tape, &v[0], &v[1], 0.0, 1e-5));
    both(c, "GELU", wide[0] * wide[1], &[&wide], |tape, v| {
        ops::activation(tape, Activation::GeluTanh, &v[0])
    });
    both(c, "SwiGLU", wide[0] * wide[1], &[&wide, &wide], |tape, v| {
        ops::gated_activation(tape, Activation::Silu, &v[0], &v[1])
    });
    let frequencies: Vec<f32> = (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect();
    let table = RopeTable::new(256, &frequencies, 1.0);
    let positions = Arc::new((0..TOKENS as u32).map(|i| i % 256).collect());
    both(c, "RoPE", x[0] * x[1], &[&x], |tape, v| ops::rope(tape, &v[0], &table, 64, &positions));
}

fn loss(c: &mut Criterion) {
    let vocabulary = 50_257;
    let mut params = ParamSet::default();
    let (x, w) = (params.add("x", tensor(&[TOKENS, WIDTH])), params.add("w", tensor(&[vocabulary, WIDTH])));
    let mut grads = Gradients::for_params(&params);
    let targets: Vec<i64> = (0..TOKENS as i64).map(|i| i * 97).collect();
    let mut group = c.benchmark_group("LM head and cross-entropy");
    group.sample_size(10);
    for recording in [false, true] {
        let what = if recording { "forward and backward" } else { "forward" };
        group.bench_with_input(BenchmarkId::from_parameter(what), &recording, |b, &recording| {
            b.iter(|| {
                let mut tape = match recording {
                    true => Tape::recording(Device::cpu(), &params, &mut grads),
                    false => Tape::inference(Device::cpu(), &params),
                };
                let (x, w) = (tape.param(x), tape.param(w));
                let loss = ops::cross_entropy(
                    &mut tape,
                    &x,
                    Head { weight: &w, bias: None, soft_cap: None },
                    &targets,
                    1.0,
                )
                .expect("not stopped");
                tape.backward(loss.seeds).expect("not stopped");
                loss.sum.read()
            });
        });
    }
    group.finish();
}

fn adamw(c: &mut Criterion) {
    let mut params = ParamSet::default();
    let id = params.add("w", tensor(&[4 * WIDTH, WIDTH]));
    let mut grads = Gradients::for_params(&params);
    let tape = Tape::recording(Device::cpu(), &params, &mut grads);
    let weight = tape.param(id);
    tape.backward(vec![(weight, tensor(&[4 * WIDTH, WIDTH]))]).expect("not stopped");
    let mut optim = AdamW::new(AdamWConfig::default(), &params, |_| (Lanes::Whole, true));
    let mut group = c.benchmark_group("AdamW");
    group.throughput(Throughput::Elements((4 * WIDTH * WIDTH) as u64));
    group.bench_function("step", |b| b.iter(|| optim.step(Device::cpu(), &mut params, &grads, 1e-5, 1.0)));
    group.finish();
}

criterion_group!(benches, linear, gram, attention, small, loss, adamw);
criterion_main!(benches);
