//! The same bits with one thread and with several, and the optimiser against its definition.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use upgrayedd_nn::ops::{self, AttentionShape, Head};
use upgrayedd_nn::optim::{AdamW, AdamWConfig, Decay, Lanes, Schedule};
use upgrayedd_nn::{Device, Format, Gradients, ParamSet, Tape, Tensor};

/// A block with every kind of reduction; returns loss and all gradients.
fn step(rows: usize, width: usize) -> (f64, Vec<Tensor>) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random = |shape: &[usize]| {
        Tensor::from_vec(shape, (0..shape.iter().product()).map(|_| rng.random_range(-0.3f32..0.3)).collect())
    };
    let mut params = ParamSet::default();
    let ids = [[rows, width], [width, width], [width, width], [width, width], [3 * width, width]]
        .map(|s| params.add("w", random(&s)));
    let vectors = [width, width, width].map(|s| params.add("v", random(&[s])));
    let mut grads = Gradients::for_params(&params);
    let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
    let [x, wq, wk, wv, head] = ids.map(|id| tape.param(id));
    let [gamma, beta, bias] = vectors.map(|id| tape.param(id));
    let h = ops::layer_norm(&mut tape, &x, &gamma, Some(&beta), 1e-5).unwrap();
    let [q, k, v] = [&wq, &wk, &wv].map(|w| ops::linear(&mut tape, &h, w, Some(&bias)).unwrap());
    let shape = AttentionShape {
        batch: 2,
        queries: rows / 2,
        keys: rows / 2,
        head_dim: width / 8,
        kv_of: (0..8).collect(),
        kv_heads: 8,
        scale: 1.0,
        causal: true,
        window: None,
        key_mask: None,
        bias_columns: Vec::new(),
        soft_cap: None,
    };
    let inputs = ops::AttentionInputs { q: &q, k: &k, v: &v, gates: None, bias: None };
    let a = ops::attention(&mut tape, inputs, &Arc::new(shape)).unwrap();
    let y = ops::add(&mut tape, &x, &a).unwrap();
    let y = ops::rms_norm(&mut tape, &y, &gamma, 0.0, 1e-5).unwrap();
    let targets: Vec<i64> = (0..rows as i64).map(|i| i * 7 % (3 * width as i64)).collect();
    let loss =
        ops::cross_entropy(&mut tape, &y, Head { weight: &head, bias: None, soft_cap: None }, &targets, 1.0)
            .unwrap();
    tape.backward(loss.seeds).unwrap();
    let gradients = params.ids().map(|id| grads.get(id).unwrap().clone()).collect();
    (loss.sum.read(), gradients)
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for (rows, width) in [(2, 8), (26, 40), (200, 96), (512, 320)] {
        let at = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| step(rows, width))
        };
        let (one, two, three) = (at(1), at(2), at(3));
        assert_eq!(one.0.to_bits(), two.0.to_bits(), "loss at {rows} × {width}");
        assert!(one.1 == two.1 && one.1 == three.1, "gradients at {rows} × {width}");
    }
}

/// Forward, and backward to input and weight.
fn products(rows: usize, inputs: usize, outputs: usize, format: Option<Format>) -> [Tensor; 3] {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut params = ParamSet::default();
    let weight = params.add("w", random(&mut rng, &[outputs, inputs]));
    let mut grads = Gradients::for_params(&params);
    let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
    let x = tape.leaf(random(&mut rng, &[rows, inputs]));
    let w = match format {
        Some(format) => tape.constant(stored(params.get(weight), format, 0)),
        None => tape.param(weight),
    };
    let y = ops::linear(&mut tape, &x, &w, None).unwrap();
    let made = y.tensor().clone();
    let leaves = tape.backward(vec![(y.clone(), random(&mut rng, &[rows, outputs]))]).unwrap();
    let none = Tensor::zeros(&[0]);
    [made, leaves.get(&x).unwrap().clone(), grads.get(weight).cloned().unwrap_or(none)]
}

#[test]
fn products_are_cut_finer_for_many_threads_and_keep_their_bits() {
    let at = |threads, shape: (usize, usize, usize), format| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| products(shape.0, shape.1, shape.2, format))
    };
    for rows in [8, 40, 64, 65, 100, 513] {
        for (inputs, outputs) in
            [(300, 256), (40, 833), (768, 768), (1100, 300), (64, 769), (577, 801), (193, 1153)]
        {
            let shape = (rows, inputs, outputs);
            for format in [None, Some(Format::BF16)] {
                let one = at(1, shape, format);
                assert!(
                    [5, 24, 100].iter().all(|threads| at(*threads, shape, format) == one),
                    "{shape:?} {format:?}"
                );
            }
        }
    }
}

#[test]
fn a_gram_matrix_is_the_product_with_itself() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (rows, cols) in [(0, 3), (1, 1), (5, 0), (40, 7), (33, 128), (64, 129), (300, 400)] {
        let x = Tensor::from_vec(
            &[rows, cols],
            (0..rows * cols).map(|_| rng.random_range(-1.0f32..1.0)).collect(),
        );
        let at = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| ops::gram(Device::cpu(), &x))
        };
        let found = at(1);
        assert!(
            found == at(2) && found == found.transposed() && found.shape() == [cols, cols],
            "{rows} × {cols}"
        );
        for (i, &value) in found.data().iter().enumerate() {
            let products = (0..rows)
                .map(|r| f64::from(x.data()[r * cols + i / cols]) * f64::from(x.data()[r * cols + i % cols]));
            let expected: f64 = products.sum();
            assert!((f64::from(value) - expected).abs() < 1e-4, "{rows} × {cols}: {value} {expected}");
        }
    }
}

#[test]
fn adamw_follows_its_definition_in_every_lane() {
    let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
    for lanes in [Lanes::Whole, Lanes::Rows, Lanes::Cols] {
        let mut params = ParamSet::default();
        let id = params.add("w", Tensor::from_vec(&[2, 3], vec![1.0, -2.0, 3.0, 0.5, 0.25, -1.0]));
        let mut optim = AdamW::new(config, &params, |_| (lanes, true));
        // One lane is younger and learns faster.
        let (old, young) = (5u64, optim.states[0].steps.len() - 1);
        optim.states[0].steps.fill(old);
        optim.states[0].steps[young] = 0;
        optim.states[0].lr_scale[young] = 5.0;
        let (mut m, mut v) = ([0.0f64; 6], [0.0f64; 6]);
        let mut want: Vec<f64> = params.get(id).data().iter().map(|&w| f64::from(w)).collect();
        for step in 1..=4u64 {
            let gradient: Vec<f32> = (0..6).map(|i| (i as f32 - 2.5) * step as f32 * 0.1).collect();
            let mut grads = Gradients::for_params(&params);
            let mut tape = Tape::recording(Device::cpu(), &params, &mut grads);
            let w = tape.param(id);
            let same = ops::add(&mut tape, &w.clone(), &w).unwrap();
            tape.backward(vec![(
                same,
                Tensor::from_vec(&[2, 3], gradient.iter().map(|g| g / 2.0).collect()),
            )])
            .unwrap();
            optim.step(Device::cpu(), &mut params, &grads, 0.01, 0.5).unwrap();
            for i in 0..6 {
                let lane = match lanes {
                    Lanes::Whole => 0,
                    Lanes::Rows => i / 3,
                    Lanes::Cols => i % 3,
                };
                let (t, lr) = if lane == young { (step, 0.05) } else { (old + step, 0.01) };
                let g = f64::from(gradient[i]) * 0.5;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (mh, vh) = (m[i] / (1.0 - 0.9f64.powf(t as f64)), v[i] / (1.0 - 0.999f64.powf(t as f64)));
                want[i] = want[i] * (1.0 - lr * 0.1) - lr * mh / (vh.sqrt() + 1e-8);
            }
        }
        for (got, want) in params.get(id).data().iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() < 1e-5, "{lanes:?}: {got}, expected {want}");
        }
    }
}

#[test]
fn schedules_climb_then_fall() {
    let schedule = |decay| Schedule { peak: 1.0, warmup: 4, total: 12, decay };
    assert_eq!(schedule(Decay::Linear).rate(0), 0.25);
    for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
        assert_eq!(schedule(decay).rate(4), 1.0);
    }
    assert_eq!(schedule(Decay::Constant).rate(11), 1.0);
    assert_eq!(schedule(Decay::Linear).rate(8), 0.5);
    assert!((schedule(Decay::Cosine).rate(8) - 0.5).abs() < 1e-12);
    assert!(schedule(Decay::Linear).rate(500) == 0.0);
}

/// Without gradients the vocabulary goes by in blocks, with them the rows: the loss is one.
#[test]
fn the_loss_without_gradients_is_that_with_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut random = |shape: &[usize]| {
        Tensor::from_vec(shape, (0..shape.iter().product()).map(|_| rng.random_range(-3.0f32..3.0)).collect())
    };
    for (rows, vocab) in [(1, 3), (5, 2048), (7, 5000), (3000, 130)] {
        let mut params = ParamSet::default();
        let ids = [
            params.add("x", random(&[rows, 9])),
            params.add("w", random(&[vocab, 9])),
            params.add("b", random(&[vocab])),
        ];
        let targets: Vec<i64> = (0..rows as i64)
            .map(|i| if i % 5 == 4 { ops::IGNORE } else { i * 1_009 % vocab as i64 })
            .collect();
        let loss = |mut tape: Tape<'_>, targets: &[i64]| {
            let [x, weight, bias] = ids.map(|id| tape.param(id));
            ops::cross_entropy(
                &mut tape,
                &x,
                Head { weight: &weight, bias: Some(&bias), soft_cap: None },
                targets,
                1.0,
            )
            .unwrap()
        };
        let mut grads = Gradients::for_params(&params);
        let with = loss(Tape::recording(Device::cpu(), &params, &mut grads), &targets);
        let without = loss(Tape::inference(Device::cpu(), &params), &targets);
        assert_eq!(with.count, without.count);
        let (with, without) = (with.sum.read(), without.sum.read());
        assert!((with - without).abs() < 1e-6 * with, "{with} and {without}");
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = threads.install(|| loss(Tape::inference(Device::cpu(), &params), &targets));
        assert_eq!(again.sum.read().to_bits(), without.to_bits());
    }
}

fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let data = (0..shape.iter().product()).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    Tensor::from_vec(shape, data)
}

/// `f32` values as a file would have them, `offset` bytes into its memory.
fn stored(values: &Tensor, format: Format, offset: usize) -> Tensor {
    let mut bytes = vec![0u8; offset];
    for value in values.data() {
        match format {
            Format::F32 => bytes.extend(value.to_le_bytes()),
            Format::F16 => bytes.extend(half::f16::from_f32(*value).to_le_bytes()),
            Format::BF16 => bytes.extend(half::bf16::from_f32(*value).to_le_bytes()),
        }
    }
    Tensor::stored(values.shape(), Arc::new(bytes), offset, format)
}

#[test]
fn weights_in_their_stored_type_give_the_bits_of_the_same_numbers() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (rows, outputs, inputs) in
        [(1, 70, 33), (5, 300, 40), (20, 30, 70), (70, 200, 33), (100, 300, 129), (600, 1000, 40)]
    {
        let x = random(&mut rng, &[rows, inputs]);
        let dy = random(&mut rng, &[rows, outputs]);
        let w = random(&mut rng, &[outputs, inputs]);
        for (format, offset) in [(Format::F32, 0), (Format::F32, 3), (Format::F16, 1), (Format::BF16, 0)] {
            let narrow = stored(&w, format, offset);
            let wide = narrow.to_host();
            let run = |w: &Tensor| {
                let none = ParamSet::default();
                let mut grads = Gradients::for_params(&none);
                let mut tape = Tape::recording(Device::cpu(), &none, &mut grads);
                let (x, w) = (tape.leaf(x.clone()), tape.constant(w.clone()));
                let y = ops::linear(&mut tape, &x, &w, None).unwrap();
                let out = y.tensor().clone();
                let leaves = tape.backward(vec![(y, dy.clone())]).unwrap();
                (out, leaves.get(&x).unwrap().clone())
            };
            assert!(run(&narrow) == run(&wide), "{rows} × {inputs} by {outputs}, {format:?}");
            let ids: Vec<usize> = (0..outputs).step_by(7).collect();
            assert!(
                narrow.take_rows(&ids) == wide.take_rows(&ids)
                    && narrow.take_cols(&[2, 0]) == wide.take_cols(&[2, 0])
            );
        }
    }
}
