//! Every op's backward pass against central differences of its forward pass, summed in `f64`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use upgrayedd_nn::ops::{self, Activation, AttentionInputs, AttentionShape, Head};
use upgrayedd_nn::{Device, Gradients, ParamId, ParamSet, Result, Tape, Tensor, Var};

const STEP: f32 = 1e-2;

fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let data = (0..shape.iter().product()).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    Tensor::from_vec(shape, data)
}

fn project(out: &Tensor, weights: &Tensor) -> f64 {
    out.data().iter().zip(weights.data()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Checks the gradients of `op` for every element of its inputs.
fn check(name: &str, shapes: &[&[usize]], op: impl Fn(&mut Tape<'_>, &[Var]) -> Result<Var>) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut params = ParamSet::default();
    let ids: Vec<ParamId> = shapes.iter().map(|s| params.add("x", random(&mut rng, s))).collect();
    let run = |params: &ParamSet| {
        let mut tape = Tape::inference(Device::cpu(), params);
        let vars: Vec<Var> = ids.iter().map(|&id| tape.param(id)).collect();
        op(&mut tape, &vars).unwrap().tensor().clone()
    };
    let weights = random(&mut rng, run(&params).shape());
    let mut grads = Gradients::for_params(&params);
    // Twice, so that accumulation into existing gradients is covered too.
    for _ in 0..2 {
        let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
        let vars: Vec<Var> = ids.iter().map(|&id| tape.param(id)).collect();
        let out = op(&mut tape, &vars).unwrap();
        tape.backward(vec![(out, weights.clone())]).unwrap();
    }
    for (input, &id) in ids.iter().enumerate() {
        let analytic =
            grads.get(id).unwrap_or_else(|| panic!("{name}: input {input} got no gradient")).clone();
        let scale = analytic.data().iter().fold(0.1f32, |a, v| a.max(v.abs() / 2.0));
        for i in 0..analytic.len() {
            let at = |delta: f32| {
                let mut moved = params.clone();
                moved.get_mut(id).data_mut()[i] += delta;
                project(&run(&moved), &weights)
            };
            let numeric = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            let got = f64::from(analytic.data()[i]) / 2.0;
            assert!(
                (got - numeric).abs() < 4e-3 * f64::from(scale),
                "{name}: input {input}[{i}]: backward {got}, finite difference {numeric}"
            );
        }
    }
}

#[test]
fn linear() {
    check("linear", &[&[5, 7], &[3, 7], &[3]], |t, x| ops::linear(t, &x[0], &x[1], Some(&x[2])));
    check("one row", &[&[1, 40], &[3, 40]], |t, x| ops::linear(t, &x[0], &x[1], None));
}

#[test]
fn residual_sum_also_of_a_value_with_itself() {
    check("add", &[&[4, 3], &[4, 3]], |t, x| ops::add(t, &x[0], &x[1]));
    check("double", &[&[4, 3]], |t, x| ops::add(t, &x[0], &x[0]));
}

#[test]
fn norms() {
    check("layer norm", &[&[4, 40], &[40], &[40]], |t, x| {
        ops::layer_norm(t, &x[0], &x[1], Some(&x[2]), 1e-5)
    });
    check("without bias", &[&[4, 40], &[40]], |t, x| ops::layer_norm(t, &x[0], &x[1], None, 1e-5));
    check("a norm for each head", &[&[4, 24], &[8]], |t, x| ops::rms_norm(t, &x[0], &x[1], 0.0, 1e-5));
    check("around one", &[&[4, 24], &[24]], |t, x| ops::rms_norm(t, &x[0], &x[1], 1.0, 1e-5));
    check("scaled", &[&[4, 5]], |t, x| ops::scale(t, &x[0], -1.5));
    check("capped", &[&[4, 5]], |t, x| ops::soft_cap(t, &x[0], 0.8));
    check("rms norm", &[&[4, 40], &[40]], |t, x| ops::rms_norm(t, &x[0], &x[1], 0.0, 1e-5));
}

#[test]
fn activations() {
    use Activation::{Gelu, GeluTanh, Silu, Tanh};
    for kind in [Gelu, GeluTanh, Silu, Tanh] {
        check("activation", &[&[3, 37]], |t, x| ops::activation(t, kind, &x[0]));
        check("gated", &[&[3, 37], &[3, 37]], |t, x| ops::gated_activation(t, kind, &x[0], &x[1]));
    }
    // ReLU has a kink: keep away from it.
    check("relu", &[&[3, 5]], |t, x| {
        let shifted = t.constant(Tensor::full(&[3, 5], 2.0));
        let y = ops::add(t, &x[0], &shifted)?;
        ops::activation(t, Activation::Relu, &y)
    });
}

#[test]
fn rope_and_embedding() {
    let table = ops::RopeTable::new(16, &[1.0, 0.1], 1.0);
    let partial = ops::RopeTable::new(16, &[0.7], 1.5);
    let positions = Arc::new(vec![0, 3, 7, 2]);
    check("rope", &[&[4, 8]], |t, x| ops::rope(t, &x[0], &table, 4, &positions));
    check("rope of a part", &[&[4, 8]], |t, x| ops::rope(t, &x[0], &partial, 4, &positions));
    let ids = Arc::new(vec![2, 0, 2, 1]);
    check("embedding", &[&[4, 6]], |t, x| ops::embedding(t, &x[0], &ids));
    check("gate", &[&[6, 5], &[5]], |t, x| ops::gate(t, &x[0], &x[1]));
    check("gates of sequences", &[&[6, 5], &[2, 5]], |t, x| ops::gate(t, &x[0], &x[1]));
    check("mean", &[&[6, 5]], |t, x| ops::mean_rows(t, &x[0], 3, None));
    check("mean of some", &[&[6, 5]], |t, x| ops::mean_rows(t, &x[0], 3, Some(&[1, 0, 1, 0, 0, 1])));
}

fn shape(causal: bool) -> AttentionShape {
    AttentionShape {
        batch: 2,
        queries: 5,
        keys: 5,
        head_dim: 4,
        kv_of: vec![0, 0, 1],
        kv_heads: 2,
        scale: 0.5,
        causal,
        window: None,
        key_mask: None,
        bias_columns: Vec::new(),
        soft_cap: None,
    }
}

fn inputs(x: &[Var]) -> AttentionInputs<'_> {
    AttentionInputs { q: &x[0], k: &x[1], v: &x[2], gates: x.get(3), bias: None }
}

fn check_attention(name: &str, shape: AttentionShape) {
    let heads = shape.heads() * shape.head_dim;
    let (q, kv) =
        ([shape.batch * shape.queries, heads], [shape.batch * shape.keys, shape.kv_heads * shape.head_dim]);
    let (gates, shape) = ([shape.batch, shape.heads()], Arc::new(shape));

    check(name, &[&q, &kv, &kv], |t, x| ops::attention(t, inputs(x), &shape));
    check(name, &[&q, &kv, &kv, &gates], |t, x| ops::attention(t, inputs(x), &shape));
    check(name, &[&q, &kv, &kv, &gates[1..]], |t, x| ops::attention(t, inputs(x), &shape));
    // Columns that nobody reads, and out of order.
    let distances = [shape.queries + shape.keys - 1, 5];
    let shape = Arc::new(AttentionShape { bias_columns: vec![4, 0, 3], ..(*shape).clone() });
    check(name, &[&q, &kv, &kv, &gates, &distances], |t, x| {
        ops::attention(t, AttentionInputs { bias: Some(&x[4]), ..inputs(&x[..4]) }, &shape)
    });
}

#[test]
fn attention_in_all_its_forms() {
    check_attention("causal", shape(true));
    check_attention("bidirectional", shape(false));
    check_attention("capped", AttentionShape { soft_cap: Some(0.7), ..shape(true) });
    check_attention("windowed", AttentionShape { window: Some(2), ..shape(true) });
    check_attention("windowed both ways", AttentionShape { window: Some(2), ..shape(false) });
    check_attention(
        "padded",
        AttentionShape { key_mask: Some(vec![1, 1, 1, 0, 0, 1, 1, 1, 1, 1]), ..shape(false) },
    );
    check_attention(
        "left padded",
        AttentionShape { key_mask: Some(vec![0, 0, 1, 1, 1, 1, 1, 1, 1, 1]), ..shape(true) },
    );
    check_attention("continued", AttentionShape { queries: 2, ..shape(true) });
}

#[test]
fn attention_longer_than_a_block_of_queries() {
    // The block boundary lies at 64 queries; a direct evaluation in f64 is the reference.
    let shape = AttentionShape { batch: 1, queries: 150, keys: 150, window: Some(70), ..shape(true) };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (q, k, v) = (random(&mut rng, &[150, 12]), random(&mut rng, &[150, 8]), random(&mut rng, &[150, 8]));
    let params = ParamSet::default();
    let mut tape = Tape::inference(Device::cpu(), &params);
    let [qv, kv, vv] = [&q, &k, &v].map(|t| tape.constant(t.clone()));
    let (out, probe) = ops::attention_with_entropy(
        &mut tape,
        AttentionInputs { q: &qv, k: &kv, v: &vv, gates: None, bias: None },
        &Arc::new(shape.clone()),
    )
    .unwrap();
    let mut entropy = [0.0f64; 3];
    for (h, &g) in shape.kv_of.iter().enumerate() {
        for i in 0..150usize {
            let keys: Vec<usize> = (i.saturating_sub(69)..=i).collect();
            let score = |j: usize| {
                (0..4)
                    .map(|c| f64::from(q.data()[i * 12 + h * 4 + c]) * f64::from(k.data()[j * 8 + g * 4 + c]))
                    .sum::<f64>()
                    * 0.5
            };
            let e: Vec<f64> = keys.iter().map(|&j| score(j).exp()).collect();
            let sum: f64 = e.iter().sum();
            for c in 0..4 {
                let want: f64 =
                    keys.iter().zip(&e).map(|(&j, e)| e / sum * f64::from(v.data()[j * 8 + g * 4 + c])).sum();
                assert!((f64::from(out.tensor().data()[i * 12 + h * 4 + c]) - want).abs() < 1e-5);
            }
            if keys.len() > 1 {
                entropy[h] +=
                    e.iter().map(|e| -(e / sum) * (e / sum).ln()).sum::<f64>() / (keys.len() as f64).ln();
            }
        }
    }
    assert_eq!(probe.queries, 149);
    for (got, want) in probe.sums.iter().zip(entropy) {
        assert!((got - want).abs() < 1e-4, "entropy {got}, expected {want}");
    }
}

/// A loss's gradients by its own seeds, against differences of its sum.
fn check_loss(name: &str, loss: impl Fn(&mut Tape<'_>, &Var, Head<'_>) -> Result<ops::Loss>) {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut params = ParamSet::default();
    let ids = [
        params.add("x", random(&mut rng, &[4, 6])),
        params.add("w", random(&mut rng, &[5, 6])),
        params.add("b", random(&mut rng, &[5])),
    ];
    let run = |tape: &mut Tape<'_>| {
        let [x, w, b] = ids.map(|id| tape.param(id));
        loss(tape, &x, Head { weight: &w, bias: Some(&b), soft_cap: None }).unwrap()
    };
    let mut grads = Gradients::for_params(&params);
    let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
    let seeds = run(&mut tape).seeds;
    tape.backward(seeds).unwrap();
    for id in ids {
        for i in 0..params.get(id).len() {
            let at = |delta: f32| {
                let mut moved = params.clone();
                moved.get_mut(id).data_mut()[i] += delta;
                run(&mut Tape::inference(Device::cpu(), &moved)).sum.read()
            };
            let numeric = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            let got = grads.get(id).map_or(0.0, |g| f64::from(g.data()[i]));
            assert!(
                (got - numeric).abs() < 2e-3,
                "{name}: {id:?}[{i}]: backward {got}, finite difference {numeric}"
            );
        }
    }
}

#[test]
fn losses() {
    let targets = [1, ops::IGNORE, 4, 0];
    check_loss("cross entropy", |t, x, head| ops::cross_entropy(t, x, head, &targets, 1.0));
    fn capped(head: Head<'_>) -> Head<'_> {
        Head { soft_cap: Some(0.6), ..head }
    }
    check_loss("capped cross entropy", |t, x, head| ops::cross_entropy(t, x, capped(head), &targets, 1.0));
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (teacher, weight) = (random(&mut rng, &[4, 3]), random(&mut rng, &[5, 3]));
    let bias = random(&mut rng, &[5]);
    for share in [0.3, 1.0] {
        let (x, weight, bias) = (&teacher, &weight, Some(&bias));
        let teacher = ops::Teacher { x, weight, bias, soft_cap: None, temperature: 2.0, share };
        let targets = [1, 3, 4, 0];
        check_loss("distillation", |t, x, head| ops::distillation(t, x, head, &targets, &teacher, 1.0));
        let teacher = ops::Teacher { soft_cap: Some(0.6), ..teacher };
        check_loss("capped", |t, x, head| ops::distillation(t, x, capped(head), &targets, &teacher, 1.0));
    }
    // What reads x alone leaves the head's gradients at nothing.
    let reference = random(&mut rng, &[4, 6]);
    check_loss("relative distance", |t, x, _| ops::relative_distance(t, x, &reference, 1.0));
    check_loss("squared error", |t, x, _| ops::squared_error(t, x, &reference, 1.0));
    let probabilities = Tensor::from_vec(&[4, 6], (0..24).map(|i| [0.0, 1.0, 0.3][i % 3]).collect());
    check_loss("binary cross-entropy", |t, x, _| ops::binary_cross_entropy(t, x, &probabilities, 1.0));
}
