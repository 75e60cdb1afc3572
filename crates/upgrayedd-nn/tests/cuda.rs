//! Every op on a GPU beside the CPU, forward and backward: on the emulated one, or on a card with
//! `UPGRAYEDD_DEVICE=cuda`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use upgrayedd_nn::device::cuda;
use upgrayedd_nn::ops::{self, Activation, AttentionInputs, AttentionShape, Head, IGNORE, Teacher};
use upgrayedd_nn::optim::{AdamW, AdamWConfig, Lanes};
use upgrayedd_nn::{Device, Format, Gradients, ParamId, ParamSet, Precision, Result, Tape, Tensor, Var};

/// Largest difference that is let pass, as a share of the length of what is compared.
fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::Tf32 => 2e-3,
        Precision::Bf16 => 1.2e-2,
    }
}

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn device(precision: Precision) -> Device {
    let name = std::env::var("UPGRAYEDD_DEVICE").unwrap_or_else(|_| "emulated".to_owned());
    Device::open(&name, precision).unwrap()
}

/// The order of threads belongs to all tests.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Values that 16 bits hold, so that all sides begin with the same.
fn random(rng: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let value = |_| f32::from_bits(rng.random_range(-1.0f32..1.0).to_bits() & 0xffff_0000);
    Tensor::from_vec(shape, (0..shape.iter().product()).map(value).collect())
}

/// The same values as a file has them in 16 bits, as what ops hand to each other is in bf16.
fn small(tensor: &Tensor) -> Tensor {
    let bytes: Vec<u8> = tensor.data().iter().flat_map(|v| v.to_bits().to_le_bytes()[2..].to_vec()).collect();
    Tensor::stored(tensor.shape(), Arc::new(bytes), 0, Format::BF16)
}

fn same(what: &str, ours: &Tensor, cpu: &Tensor, bound: f64) {
    let (ours, cpu) = (ours.to_host(), cpu.to_host());
    assert_eq!(ours.shape(), cpu.shape(), "{what}");
    let length: f64 = cpu.data().iter().map(|v| f64::from(*v).powi(2)).sum();
    let pairs = ours.data().iter().zip(cpu.data());
    let distance: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let error = (distance / length.max(1e-12)).sqrt();
    assert!(error <= bound, "{what}: relative distance {error:.2e}, at most {bound:.0e}");
}

fn bits(tensors: &[Tensor]) -> Vec<u32> {
    tensors.iter().flat_map(|t| t.data().iter().map(|v| v.to_bits()).collect::<Vec<_>>()).collect()
}

/// The result of `op` and the gradients of its inputs, added up over two passes.
fn run(
    device: Device,
    inputs: &[Tensor],
    seed: Option<&Tensor>,
    op: &dyn Fn(&mut Tape<'_>, &[Var]) -> Result<Var>,
) -> Vec<Tensor> {
    let mut params = ParamSet::default();
    let ids: Vec<ParamId> = inputs.iter().map(|x| params.add("x", x.clone())).collect();
    params.move_to(device);
    let mut grads = Gradients::for_params(&params);
    let mut result = None;
    for _ in 0..if seed.is_some() { 2 } else { 1 } {
        let mut tape = Tape::recording(device, &params, &mut grads);
        let vars: Vec<Var> = ids.iter().map(|&id| tape.param(id)).collect();
        let out = op(&mut tape, &vars).unwrap();
        result = Some(out.tensor().to_host());
        if let Some(seed) = seed {
            tape.backward(vec![(out, device.upload(seed.clone()))]).unwrap();
        }
    }
    let gradients = ids.iter().filter_map(|&id| grads.get(id).map(Tensor::to_host));
    result.into_iter().chain(gradients).collect()
}

fn check_within(
    name: &str,
    factor: f64,
    shapes: &[&[usize]],
    op: impl Fn(&mut Tape<'_>, &[Var]) -> Result<Var>,
) {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let inputs: Vec<Tensor> = shapes.iter().map(|shape| random(&mut rng, shape)).collect();
    let seed = random(&mut rng, run(Device::cpu(), &inputs, None, &op)[0].shape());
    let cpu = run(Device::cpu(), &inputs, Some(&seed), &op);
    assert_eq!(cpu.len(), 1 + shapes.len(), "{name}: an input without gradient");
    for precision in PRECISIONS {
        let mut first = None;
        let near = |ours: &[Tensor]| {
            for (i, (ours, cpu)) in ours.iter().zip(&cpu).enumerate() {
                same(&format!("{name} in {precision}, tensor {i}"), ours, cpu, factor * bound(precision));
            }
        };
        let narrow: Vec<Tensor> = inputs.iter().map(small).collect();
        for order in [0, 3, 11] {
            cuda::set_order(order);
            let ours = run(
                device(precision),
                if precision == Precision::Bf16 { &narrow } else { &inputs },
                Some(&seed),
                &op,
            );
            near(&ours);
            let bits = bits(&ours);
            assert!(*first.get_or_insert(bits.clone()) == bits, "{name} in {precision}: other bits");
        }
        if precision == Precision::Bf16 {
            near(&run(device(precision), &inputs, Some(&seed), &op));
        }
        cuda::set_order(0);
    }
}

fn check(name: &str, shapes: &[&[usize]], op: impl Fn(&mut Tape<'_>, &[Var]) -> Result<Var>) {
    check_within(name, 1.0, shapes, op);
}

#[test]
fn products() {
    check("linear", &[&[37, 24], &[40, 24], &[40]], |t, x| ops::linear(t, &x[0], &x[1], Some(&x[2])));
    check("odd", &[&[5, 7], &[3, 7], &[3]], |t, x| ops::linear(t, &x[0], &x[1], Some(&x[2])));
    check("one row", &[&[1, 40], &[3, 40]], |t, x| ops::linear(t, &x[0], &x[1], None));
    check("some columns", &[&[5, 12], &[3, 12]], |t, x| {
        ops::linear_over(t, &x[0], &x[1], None, Some(&[0..3, 8..12]))
    });
    // Twice the same input: gradients of 16 bits add up.
    check_within("two of one", 2.0, &[&[9, 16], &[8, 16], &[8, 16]], |t, x| {
        let (a, b) = (ops::linear(t, &x[0], &x[1], None)?, ops::linear(t, &x[0], &x[2], None)?);
        ops::add(t, &a, &b)
    });
}

#[test]
fn products_that_are_not_recorded() {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let (x, y) = (random(&mut rng, &[33, 20]), random(&mut rng, &[11, 20]));
    let cpu = Device::cpu();
    for precision in PRECISIONS {
        let device = device(precision);
        let [on_x, on_y] = [&x, &y].map(|t| device.upload(t.clone()));
        let gram = ops::gram(device, &on_x).to_host();
        // Single precision on every device; cards round what they multiply to TF32 unless they are asked not to.
        let bound = if precision == Precision::F32 { 1e-5 } else { 1e-3 };
        same("gram", &gram, &ops::gram(cpu, &x), bound);
        assert!(gram == gram.transposed(), "a Gram matrix that is not symmetric");
        same("multiply", &ops::multiply(device, &on_x, &on_y), &ops::multiply(cpu, &x, &y), bound);
    }
}

#[test]
fn sums_and_factors() {
    check("add", &[&[4, 3], &[4, 3]], |t, x| ops::add(t, &x[0], &x[1]));
    check("double", &[&[14, 30]], |t, x| ops::add(t, &x[0], &x[0]));
    check("scale", &[&[5, 7]], |t, x| ops::scale(t, &x[0], 0.625));
    check("soft cap", &[&[5, 7]], |t, x| ops::soft_cap(t, &x[0], 0.75));
}

#[test]
fn norms() {
    check("layer norm", &[&[9, 40], &[40], &[40]], |t, x| {
        ops::layer_norm(t, &x[0], &x[1], Some(&x[2]), 1e-5)
    });
    check("without bias", &[&[70, 33], &[33]], |t, x| ops::layer_norm(t, &x[0], &x[1], None, 1e-5));
    check("a norm for each head", &[&[9, 24], &[8]], |t, x| ops::rms_norm(t, &x[0], &x[1], 0.0, 1e-5));
    check("around one", &[&[9, 200], &[200]], |t, x| ops::rms_norm(t, &x[0], &x[1], 1.0, 1e-5));
    // Beside the residual stream: the gradient is added to one that others read.
    check("normed and added", &[&[9, 40], &[40]], |t, x| {
        let normed = ops::rms_norm(t, &x[0], &x[1], 0.0, 1e-5)?;
        ops::add(t, &x[0], &normed)
    });
}

#[test]
fn activations() {
    use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
    for kind in [Gelu, GeluTanh, Silu, Relu, Tanh] {
        let name = format!("{kind:?}");
        check(&name, &[&[6, 11]], |t, x| ops::activation(t, kind, &x[0]));
        check(&name, &[&[6, 11], &[6, 11]], |t, x| ops::gated_activation(t, kind, &x[0], &x[1]));
    }
}

#[test]
fn gates() {
    for gates in [&[2, 7][..], &[7]] {
        check("gates", &[&[6, 7], gates], |t, x| ops::gate(t, &x[0], &x[1]));
    }
}

#[test]
fn rows_that_are_picked() {
    let ids = Arc::new(vec![3, 0, 3, 1, 3, 4]);
    check("embedding", &[&[5, 6]], |t, x| ops::embedding(t, &x[0], &ids));
    for mask in [None, Some(&[1, 1, 0, 0, 0, 0][..]), Some(&[1, 0, 1, 1, 1, 1])] {
        check("means", &[&[6, 7]], |t, x| ops::mean_rows(t, &x[0], 3, mask));
    }
    let positions = Arc::new(vec![0, 3, 1, 2]);
    let table = ops::RopeTable::new(8, &[1.0, 0.5, 0.125], 1.25);
    check("rope", &[&[4, 12]], |t, x| ops::rope(t, &x[0], &table, 6, &positions));
    check("in part", &[&[4, 20]], |t, x| ops::rope(t, &x[0], &table, 10, &positions));
}

fn shape(head_dim: usize, causal: bool) -> AttentionShape {
    AttentionShape {
        batch: 2,
        queries: 37,
        keys: 37,
        head_dim,
        kv_of: vec![0, 1, 0],
        kv_heads: 2,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal,
        window: None,
        soft_cap: None,
        key_mask: None,
        bias_columns: Vec::new(),
    }
}

fn check_attention(name: &str, shape: AttentionShape, gates: &[usize], has_bias: bool) {
    let (rows, keys) = (shape.batch * shape.queries, shape.batch * shape.keys);
    let (wide, narrow) = ([rows, shape.heads() * shape.head_dim], [keys, shape.kv_heads * shape.head_dim]);
    let bias = [shape.queries + shape.keys - 1, 2];
    let mut shapes: Vec<&[usize]> = vec![&wide, &narrow, &narrow];
    if !gates.is_empty() {
        shapes.push(gates);
    }
    if has_bias {
        shapes.push(&bias);
    }
    let shape = Arc::new(shape);
    // Probabilities are rounded as well.
    check_within(name, 2.0, &shapes, |t, x| {
        let gates = (!gates.is_empty()).then(|| &x[3]);
        let bias = has_bias.then(|| &x[x.len() - 1]);
        ops::attention(t, AttentionInputs { q: &x[0], k: &x[1], v: &x[2], gates, bias }, &shape)
    });
}

#[test]
fn attention_in_all_its_forms() {
    for head_dim in [8, 20, 64] {
        for causal in [false, true] {
            check_attention(
                &format!("heads of {head_dim}, causal {causal}"),
                shape(head_dim, causal),
                &[],
                false,
            );
        }
    }
    let with = |change: fn(&mut AttentionShape)| {
        let mut shape = shape(16, true);
        change(&mut shape);
        shape
    };
    check_attention("gates", shape(16, true), &[3], false);
    check_attention("gates of sequences", shape(16, false), &[2, 3], false);
    check_attention("more keys", with(|s| s.queries = 5), &[], false);
    check_attention("soft cap", with(|s| s.soft_cap = Some(0.5)), &[3], false);
    check_attention("window", with(|s| s.window = Some(5)), &[], false);
    check_attention("window both ways", with(|s| (s.window, s.causal) = (Some(4), false)), &[], false);
    check_attention("bias", with(|s| (s.bias_columns, s.causal) = (vec![1, 0, 1], false)), &[3], true);
    let masked = with(|s| {
        let mut mask = vec![1; 74];
        (mask[0], mask[1], mask[36], mask[50]) = (0, 0, 0, 0);
        mask[64..].fill(0);
        (s.key_mask, s.causal) = (Some(mask), false);
    });
    check_attention("masked", masked.clone(), &[], false);
    check_attention("masked and causal", AttentionShape { causal: true, ..masked }, &[3], false);
}

/// The sizes that models have, where products of tiles take over.
#[test]
fn attention_of_more_than_a_tile() {
    for head_dim in [32, 64, 80, 128] {
        let mut shape = shape(head_dim, true);
        (shape.batch, shape.queries, shape.keys) = (1, 150, 150);
        check_attention(&format!("150 positions, heads of {head_dim}"), shape.clone(), &[], false);
        if head_dim == 64 {
            (shape.causal, shape.queries) = (false, 70);
            shape.key_mask = Some((0..150).map(|i| u8::from(i % 7 != 0 && i < 140)).collect());
            check_attention("masked tiles", shape.clone(), &[3], false);
            (shape.causal, shape.window, shape.key_mask) = (true, Some(40), None);
            check_attention("windows of tiles", shape, &[1, 3], false);
        }
    }
}

#[test]
fn entropies() {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut shape = shape(16, true);
    let mut mask = vec![1; 74];
    mask[..3].fill(0);
    shape.key_mask = Some(mask);
    let inputs: Vec<Tensor> = [[74, 48], [74, 32], [74, 32]].iter().map(|s| random(&mut rng, s)).collect();
    let shape = Arc::new(shape);
    let probe = |device: Device| {
        let params = ParamSet::default();
        let mut tape = Tape::inference(device, &params);
        let of = |x: &Tensor| if device.precision() == Some(Precision::Bf16) { small(x) } else { x.clone() };
        let vars: Vec<Var> = inputs.iter().map(|x| tape.constant(of(x))).collect();
        let inputs = AttentionInputs { q: &vars[0], k: &vars[1], v: &vars[2], gates: None, bias: None };
        ops::attention_with_entropy(&mut tape, inputs, &shape).unwrap().1
    };
    let cpu = probe(Device::cpu());
    for precision in PRECISIONS {
        let ours = probe(device(precision));
        assert_eq!(ours.queries, cpu.queries);
        for (ours, cpu) in ours.sums.iter().zip(&cpu.sums) {
            assert!((ours - cpu).abs() < 1e-4 * cpu, "{precision}: {ours} and {cpu}");
        }
    }
}

/// Checks a loss, the gradient that it begins with, and those of its head.
fn check_loss(
    name: &str,
    shapes: &[&[usize]],
    loss: impl Fn(Device, &mut Tape<'_>, &[Var]) -> Result<ops::Loss>,
) {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let inputs: Vec<Tensor> = shapes.iter().map(|shape| random(&mut rng, shape)).collect();
    let run = |device: Device| {
        let mut params = ParamSet::default();
        let ids: Vec<ParamId> = inputs.iter().map(|x| params.add("x", x.clone())).collect();
        params.move_to(device);
        let mut alone = Tape::inference(device, &params);
        let vars: Vec<Var> = ids.iter().map(|&id| alone.param(id)).collect();
        let only = loss(device, &mut alone, &vars).unwrap();
        let mut grads = Gradients::for_params(&params);
        let mut tape = Tape::recording(device, &params, &mut grads);
        let vars: Vec<Var> = ids.iter().map(|&id| tape.param(id)).collect();
        let made = loss(device, &mut tape, &vars).unwrap();
        tape.backward(made.seeds).unwrap();
        let [only, sum] = device.read([&only.sum, &made.sum]).unwrap();
        let tensors: Vec<Tensor> = ids.iter().filter_map(|&id| grads.get(id).map(Tensor::to_host)).collect();
        (only, sum, made.count, tensors)
    };
    let cpu = run(Device::cpu());
    for precision in PRECISIONS {
        let ours = run(device(precision));
        let bound = bound(precision);
        for (ours, cpu) in [(ours.0, cpu.0), (ours.1, cpu.1)] {
            assert!((ours - cpu).abs() < bound * cpu.abs(), "{name} in {precision}: {ours} and {cpu}");
        }
        assert_eq!((ours.2, ours.3.len()), (cpu.2, cpu.3.len()), "{name}");
        for (i, (ours, cpu)) in ours.3.iter().zip(&cpu.3).enumerate() {
            same(&format!("{name} in {precision}, gradient {i}"), ours, cpu, 2.0 * bound);
        }
    }
}

#[test]
fn losses() {
    let targets = [3, IGNORE, 0, 18, 7, IGNORE];
    for soft_cap in [None, Some(1.5)] {
        check_loss("cross-entropy", &[&[6, 12], &[19, 12], &[19]], |_, t, x| {
            let head = Head { weight: &x[1], bias: Some(&x[2]), soft_cap };
            ops::cross_entropy(t, &x[0], head, &targets, 0.25)
        });
        check_loss("distillation", &[&[6, 12], &[19, 12], &[6, 8], &[19, 8]], |_, t, x| {
            let head = Head { weight: &x[1], bias: None, soft_cap };
            let (rows, weight) = (x[2].tensor(), x[3].tensor());
            let teacher = Teacher { x: rows, weight, bias: None, soft_cap, temperature: 2.0, share: 0.5 };
            ops::distillation(t, &x[0], head, &[3, 1, 0, 18, 7, 2], &teacher, 0.25)
        });
    }
    check_loss("few labels", &[&[6, 12], &[3, 12], &[3]], |_, t, x| {
        let head = Head { weight: &x[1], bias: Some(&x[2]), soft_cap: None };
        ops::cross_entropy(t, &x[0], head, &[2, 0, 1, 2, IGNORE, 1], 0.25)
    });
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut reference = random(&mut rng, &[6, 12]);
    reference.data_mut()[24..36].fill(0.0);
    check_loss("relative distance", &[&[6, 12]], |device, t, x| {
        ops::relative_distance(t, &x[0], &device.upload(reference.clone()), 0.5)
    });
    check_loss("squared error", &[&[6, 1]], |device, t, x| {
        let reference = Tensor::from_vec(&[6, 1], reference.data()[..6].to_vec());
        ops::squared_error(t, &x[0], &device.upload(reference), 0.5)
    });
    check_loss("binary", &[&[6, 12]], |device, t, x| {
        let labels = reference.data().iter().map(|v| f32::from(*v > 0.0)).collect();
        ops::binary_cross_entropy(t, &x[0], &device.upload(Tensor::from_vec(&[6, 12], labels)), 0.5)
    });
}

#[test]
fn numbers() {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let params: Vec<Tensor> = (0..70).map(|i| random(&mut rng, &[i + 1, 7])).collect();
    let norm = |device: Device| {
        let mut set = ParamSet::default();
        let ids: Vec<ParamId> = params.iter().map(|x| set.add("x", x.clone())).collect();
        set.move_to(device);
        let mut grads = Gradients::for_params(&set);
        let tape = Tape::recording(device, &set, &mut grads);
        let seeds = ids.iter().zip(&params).map(|(&id, x)| (tape.param(id), device.upload(x.clone())));
        let seeds = seeds.collect();
        tape.backward(seeds).unwrap();
        let sum = grads.sum_of_squares(device);
        let more = ops::combine(device, &[(2.0, &sum), (0.5, &upgrayedd_nn::ops::Number::default())]);
        device.read([&sum, &more]).unwrap()
    };
    let (cpu, ours) = (norm(Device::cpu()), norm(device(Precision::Bf16)));
    assert!((cpu[0] - ours[0]).abs() < 1e-6 * cpu[0] && (ours[1] - 2.0 * ours[0]).abs() < 1e-9, "{ours:?}");
}

#[test]
fn adamw() {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for lanes in [Lanes::Whole, Lanes::Rows, Lanes::Cols] {
        let (weight, gradients) = (random(&mut rng, &[6, 5]), [0; 3].map(|_| random(&mut rng, &[6, 5])));
        let run = |device: Device| {
            let mut params = ParamSet::default();
            let id = params.add("w", weight.clone());
            params.move_to(device);
            let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
            let mut optimiser = AdamW::new(config, &params, |_| (lanes, true));
            let count = optimiser.states[0].steps.len();
            optimiser.states[0].steps = (0..count as u64).collect();
            optimiser.states[0].lr_scale = (0..count).map(|i| 1.0 + i as f32 / 4.0).collect();
            let mut outputs = Vec::new();
            for gradient in &gradients {
                let mut grads = Gradients::for_params(&params);
                let mut tape = Tape::recording(device, &params, &mut grads);
                let (w, x) = (tape.param(id), tape.constant(Tensor::full(&[1, 5], 1.0)));
                // Products read the weight: their copy of it has to follow.
                outputs.push(ops::linear(&mut tape, &x, &w, None).unwrap().tensor().to_host());
                tape.backward(vec![(w, device.upload(gradient.clone()))]).unwrap();
                optimiser.step(device, &mut params, &grads, 0.01, 0.5).unwrap();
            }
            let state = &optimiser.states[0];
            let tensors = [Some(params.get(id)), state.m.as_ref(), state.v.as_ref()];
            (tensors.map(|t| t.unwrap().to_host()), outputs)
        };
        let cpu = run(Device::cpu());
        for precision in PRECISIONS {
            let ours = run(device(precision));
            for (ours, cpu) in ours.0.iter().zip(&cpu.0) {
                same(&format!("AdamW, {lanes:?}"), ours, cpu, 1e-6);
            }
            for (ours, cpu) in ours.1.iter().zip(&cpu.1) {
                same(&format!("products between steps, {lanes:?}"), ours, cpu, bound(precision));
            }
        }
    }
}

#[test]
fn stored_types_go_up_as_they_are() {
    use upgrayedd_nn::Bytes;
    let _alone = alone();
    let values: [f32; 6] = [1.5, -0.25, 3.0, 0.0, -2.0, 0.125];
    let bf16: Vec<u8> = values.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let f16 = [0x3e00u16, 0xb400, 0x4200, 0, 0xc000, 0x3000].iter().flat_map(|v| v.to_le_bytes()).collect();
    for (bytes, format) in [(bf16, Format::BF16), (f16, Format::F16)] {
        for precision in PRECISIONS {
            let device = device(precision);
            let bytes: Bytes = Arc::new(Vec::clone(&bytes));
            let before = device.traffic().uploaded;
            let up = device.upload(Tensor::stored(&[2, 3], bytes, 0, format));
            assert_eq!(device.traffic().uploaded - before, 12);
            assert!(up.to_host().data() == values && up.widened().to_host().data() == values, "{format:?}");
        }
    }
}

#[test]
fn wherever_memory_runs_out_there_is_an_error_and_no_number() {
    if std::env::var_os("UPGRAYEDD_DEVICE").is_some() {
        return; // a card's memory cannot be taken away
    }
    let _alone = alone();
    let device = device(Precision::Bf16);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut params = ParamSet::default();
    let id = params.add("x", random(&mut rng, &[512, 64]));
    params.move_to(device);
    let step = |ids: Vec<u32>, limit: usize| -> Result<f64> {
        cuda::set_limit(limit);
        let mut grads = Gradients::for_params(&params);
        let mut tape = Tape::recording(device, &params, &mut grads);
        let table = tape.param(id);
        let targets: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let x = ops::embedding(&mut tape, &table, &Arc::new(ids))?;
        let head = Head { weight: &table, bias: None, soft_cap: None };
        let loss = ops::cross_entropy(&mut tape, &x, head, &targets, 1.0)?;
        tape.backward(loss.seeds)?;
        Ok(device.read([&loss.sum])?[0])
    };
    // At every size at which something else is the first to find no room: lists, activations, gradients.
    let mut refused = 0;
    for round in 0..40u32 {
        let ids = (0..64 + round * 16).map(|i| (i * 7 + round) % 512).collect();
        match step(ids, (round as usize) << 17) {
            Ok(loss) => assert!(loss.is_finite() && loss > 0.0, "{loss}"),
            Err(error) => {
                assert!(error.to_string().contains("out of memory"), "{error}");
                refused += 1;
            }
        }
    }
    assert!((5..35).contains(&refused), "{refused} of 40 refused");
    cuda::set_limit(8 << 30);
    assert!(step(vec![1, 2, 3], 8 << 30).is_ok());
}

#[test]
fn without_memory_there_is_an_error_and_then_there_is_not() {
    let _alone = alone();
    let device = device(Precision::F32);
    let params = ParamSet::default();
    let mut tape = Tape::inference(device, &params);
    let x = tape.constant(Tensor::full(&[1 << 13, 1], 1.0));
    let wide = tape.constant(Tensor::full(&[1 << 26, 1], 1.0));
    let error = ops::linear(&mut tape, &x, &wide, None).unwrap_err().to_string();
    assert!(error.contains("out of memory") && error.contains("MiB"), "{error}");
    let small = ops::linear(&mut tape, &x, &x, None).unwrap();
    assert_eq!(small.tensor().to_host().data()[5], 1.0);
}
