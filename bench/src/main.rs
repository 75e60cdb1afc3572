//! Times training steps and forward passes of a model with random weights; prints one line of JSON.
#![allow(clippy::print_stdout, reason = "a command-line tool")]

mod simulate;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use pulp::{Arch, Simd, WithSimd};
use serde_json::{Value, json};
use upgrayedd::archive::Archive;
use upgrayedd::data::{Dataset, Row};
use upgrayedd::learner::{Learner, Update};
use upgrayedd::model::{Batch, GenerateOptions, Hooks, Model};
use upgrayedd::nn::ops::{IGNORE, linear};
use upgrayedd::nn::profile::{count_products, record_cuts};
use upgrayedd::nn::{Device, Gradients, Tape, Tensor, instruction_set};
use upgrayedd::reduce::Alone;
use upgrayedd::score::{self, ScoreContext, compute_all};
use upgrayedd::units::{LayerSite, Sites};
use upgrayedd::{family, surgery};

/// Times the engine on random weights.
#[derive(Parser)]
struct Args {
    /// What to time
    #[arg(value_enum)]
    work: Work,
    /// Model configuration, a config.json
    #[arg(long)]
    config: std::path::PathBuf,
    #[arg(long, default_value_t = 2)]
    batch: usize,
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Sequences that scores are computed on, in batches; one batch if absent
    #[arg(long)]
    samples: Option<usize>,
    /// Counted runs
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Runs before those
    #[arg(long, default_value_t = 1)]
    warm_ups: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where to compute: cpu, cuda, cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// What a GPU multiplies with: bf16, tf32, f32
    #[arg(long, default_value = "bf16")]
    precision: String,
    /// Heads that each layer keeps; the others are pruned first
    #[arg(long)]
    heads: Option<usize>,
    /// Train or score with gradient checkpointing
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Say instead how the work is cut for so many threads and what they would make of it, from a run on one (repeatable)
    #[arg(long, value_name = "THREADS")]
    simulate: Vec<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Work {
    /// Forward, backward, AdamW
    Train,
    /// Loss without gradients
    Forward,
    /// Gradients of all heads' gates, the weights frozen
    Gates,
    /// The same pass with every score that it yields, but for the surgeon
    Scores,
    /// The same pass with every score that it yields
    AllScores,
    /// Attention entropy of all heads
    Entropy,
    /// The matrix product of two 2048 × 2048 matrices, for comparison: a model cannot be faster
    Gemm,
    /// As many fused multiply-adds as each thread can do, 2³² each
    Fma,
    /// Tokens one after another, with the cache of keys and values: milliseconds per token after a prompt of
    /// `length`
    Generate,
}

/// Tokens that are generated in one run.
const NEW_TOKENS: usize = 64;

impl Work {
    /// The scores that are computed together.
    fn scores(self) -> Vec<&'static str> {
        let cheap = ["gradient", "taylor", "fisher", "entropy", "wanda", "similarity"];
        match self {
            Self::Train | Self::Forward | Self::Gemm | Self::Fma | Self::Generate => Vec::new(),
            Self::Gates => vec!["gradient"],
            Self::Scores => cheap.to_vec(),
            Self::AllScores => [&cheap[..], &["surgeon"]].concat(),
            Self::Entropy => vec!["entropy"],
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let threads = if args.simulate.is_empty() { args.threads } else { 1 };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let config: Value = serde_json::from_str(&std::fs::read_to_string(&args.config).context("config")?)?;
    let (family, spec, _) = family::recognise(&config, &[], None)?;
    let mut model = Model::initialised(family, spec, config, 1)?;
    if let Some(keep) = args.heads {
        let pruned =
            model.units().layers().iter().map(|layer| layer.active().iter().skip(keep).copied().collect());
        let pruned = pruned.enumerate().map(|(layer, heads)| (LayerSite::heads(layer), heads)).collect();
        surgery::remove(&mut model, None, &pruned, 1, None)?;
        model.set_archive(Archive::default());
    }
    let device = Device::open(&args.device, args.precision.parse()?)?;
    model.move_to(device);
    let batch = random_batch(&model, args.batch, args.length);
    let mut grads = Gradients::for_params(model.params());
    let mut learner = Learner::new(model, 0.01);
    let scores = args.work.scores().into_iter().map(score::named).collect::<upgrayedd::Result<Vec<_>>>()?;
    let samples = args.samples.unwrap_or(args.batch);
    let all = random_batch(&learner.model, samples, args.length);
    let rows = all.tokens.chunks(args.length).map(|tokens| Row::causal(tokens.to_vec(), None, None));
    let (data, range) = (Dataset::from_rows(rows.collect(), learner.model.spec().objective, 0), 0..samples);
    let mut loss = 0.0;
    // Milliseconds of one run.
    let mut once = || -> Result<f64> {
        let start = Instant::now();
        match args.work {
            Work::Train => {
                let update =
                    Update { gradient_checkpointing: args.gradient_checkpointing, ..Update::at(5e-5) };
                loss = learner.step(&mut grads, std::slice::from_ref(&batch), None, update, &Alone)?.loss;
            }
            Work::Forward => {
                let mut tape = Tape::inference(learner.model.device(), learner.model.params());
                let result = learner.model.loss(&mut tape, &batch, 1.0, &mut Hooks::default())?;
                loss = result.sum.read() / result.count as f64;
            }
            Work::Gemm => {
                let mut tape = Tape::inference(learner.model.device(), learner.model.params());
                let square = tape.constant(Tensor::full(&[2048, 2048], 0.5));
                device.settle()?;
                let start = Instant::now();
                linear(&mut tape, &square, &square, None)?;
                device.settle()?;
                return Ok(start.elapsed().as_secs_f64() * 1e3);
            }
            Work::Fma => std::thread::scope(|scope| (0..args.threads).for_each(|_| drop(scope.spawn(fma)))),
            Work::Generate => {
                let (temperature, top_p, end_tokens) = (0.0, 1.0, Vec::new());
                let options =
                    GenerateOptions { max_new_tokens: NEW_TOKENS, temperature, top_p, seed: 1, end_tokens };
                let generation = learner.model.generate(&batch.tokens[..args.length], &options, |_| true)?;
                return Ok(generation.decode_seconds * 1e3 / (NEW_TOKENS - 1) as f64);
            }
            Work::Gates | Work::Scores | Work::AllScores | Work::Entropy => {
                let data = Some((&data, &range));
                let (batch_size, gradient_checkpointing) = (args.batch, args.gradient_checkpointing);
                let context = ScoreContext {
                    model: &learner.model,
                    units: Sites::default(),
                    data,
                    batch_size,
                    samples,
                    seed: 1,
                    gradient_checkpointing,
                    reduce: &Alone,
                };
                compute_all(&scores, &context)?;
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..args.warm_ups {
        once()?;
    }
    if !args.simulate.is_empty() {
        let record = |threads: &usize| {
            let (taken, cuts, rest) = record_cuts(*threads, &mut once);
            taken.map(|_| (*threads, cuts, rest))
        };
        simulate::print(&args.simulate.iter().map(record).collect::<Result<Vec<_>>>()?);
        return Ok(());
    }
    device.kernel_times();
    let (mut milliseconds, mut shares, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let (taken, products) = count_products(&mut once);
        let taken = taken?;
        milliseconds.push(taken);
        shares.push(products.thread_seconds / (taken * 1e-3 * args.threads as f64));
        rates.push(products.flops / products.thread_seconds * args.threads as f64 * 1e-9);
    }
    // What a token costs forward: half its positions are seen on average, as attention is causal.
    let macs = learner.model.cost(args.length / 2).macs_per_token;
    let mut report =
        json!({ "ms": milliseconds, "loss": loss, "peak_rss_mib": peak_rss_mib()?, "macs_per_token": macs });
    report["instruction_set"] = instruction_set().into();
    if !matches!(args.work, Work::Fma | Work::Generate) {
        report["product_share"] = shares.into();
        report["product_gflops"] = rates.into();
    }
    if device != Device::cpu() {
        report["device"] = format!("{device}, {}", device.card().unwrap_or_default()).into();
        report["device_mib"] = (device.traffic().reserved >> 20).into();
        for (name, count, ms) in device.kernel_times() {
            eprintln!("{name:32} {count:7} × {:9.4} ms = {ms:10.3} ms", ms / count as f64);
        }
    }
    println!("{report}");
    Ok(())
}

/// Nothing but fused multiply-adds in registers, enough of them at a time to hide how long each takes.
struct Fma {
    factor: f32,
    term: f32,
}

impl WithSimd for Fma {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (factor, term) = (simd.splat_f32s(self.factor), simd.splat_f32s(self.term));
        let mut sums = [simd.splat_f32s(1.0); 12];
        for _ in 0..FMAS_PER_THREAD / (sums.len() * S::F32_LANES) {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, term);
            }
        }
        sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum()
    }
}

const FMAS_PER_THREAD: usize = 1 << 32;

fn fma() {
    black_box(Arch::new().dispatch(Fma { factor: black_box(0.999), term: black_box(0.001) }));
}

fn random_batch(model: &Model, batch: usize, length: usize) -> Batch {
    let mut state = 12_345u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % model.spec().vocab_size as u32
    };
    let tokens: Vec<u32> = (0..batch * length).map(|_| next()).collect();
    let targets =
        tokens.chunks(length).flat_map(|s| s[1..].iter().map(|&t| i64::from(t)).chain([IGNORE])).collect();
    Batch { tokens: Arc::new(tokens), batch, len: length, targets, ..Batch::default() }
}

fn peak_rss_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
