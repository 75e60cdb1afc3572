//! Every family on a GPU beside the CPU, and a whole run: on the emulated one, or on a card with
//! `UPGRAYEDD_DEVICE=cuda`.
#![allow(missing_docs, clippy::unwrap_used)]

mod tiny;

use std::path::Path;

use tiny::{batch, everything, load, moved};
use upgrayedd::event::{Control, Event, Observer};
use upgrayedd::learner::{Learner, Update};
use upgrayedd::model::{Batch, GenerateOptions, Hooks, Model};
use upgrayedd::nn::{Device, Gradients, Precision, Tape, Tensor};
use upgrayedd::pipeline::Given;
use upgrayedd::reduce::Alone;
use upgrayedd::spec::Objective;
use upgrayedd::units::LayerSite;
use upgrayedd::{OptimizeConfig, Pipeline, Summary, surgery};

/// All of `tests/golden`: every family, and everything that a kernel can be asked for.
fn models() -> Vec<String> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let folders = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap());
    let models = folders.filter(|entry| entry.path().join("config.json").is_file());
    let mut names: Vec<String> = models.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() > 40);
    names
}

fn device(precision: Precision) -> Device {
    let name = std::env::var("UPGRAYEDD_DEVICE").unwrap_or_else(|_| "emulated".to_owned());
    Device::open(&name, precision).unwrap()
}

fn distance(ours: &Tensor, cpu: &Tensor) -> f64 {
    let (ours, cpu) = (ours.to_host(), cpu.to_host());
    assert_eq!(ours.shape(), cpu.shape());
    let length: f64 = cpu.data().iter().map(|v| f64::from(*v).powi(2)).sum();
    let pairs = ours.data().iter().zip(cpu.data());
    let distance: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    (distance / length.max(1e-12)).sqrt()
}

/// Loss, all gradients as one list, and what the model says.
fn passes(model: &Model) -> (f64, Tensor, Option<Tensor>) {
    let batch = batch(model);
    let mut grads = Gradients::for_params(model.params());
    let mut tape = Tape::recording(model.device(), model.params(), &mut grads);
    let loss = model.loss(&mut tape, &batch, 1.0, &mut Hooks::default()).unwrap();
    tape.backward(loss.seeds).unwrap();
    let [sum] = model.device().read([&loss.sum]).unwrap();
    let arrived = model.params().ids().filter_map(|id| grads.get(id));
    let all: Vec<f32> = arrived.flat_map(|g| g.to_host().data().to_vec()).collect();
    let logits = (model.spec().objective != Objective::Encoder)
        .then(|| model.logits(&batch, &mut Hooks::default()).unwrap());
    (sum, Tensor::from_vec(&[all.len()], all), logits)
}

#[test]
fn families_compute_what_they_compute_on_the_cpu() {
    for name in models() {
        let cpu = passes(&load(&name));
        // Of loss, gradients and logits. A plain encoder's loss is the length of a small difference.
        let rounded = if cpu.2.is_none() { [5e-2, 0.15, 0.0] } else { [2e-2, 0.1, 4e-2] };
        for (precision, bounds) in [(Precision::F32, [1e-4; 3]), (Precision::Bf16, rounded)] {
            let ours = passes(&moved(load(&name), device(precision)));
            let errors = [
                ((ours.0 - cpu.0) / cpu.0).abs(),
                distance(&ours.1, &cpu.1),
                ours.2.zip(cpu.2.as_ref()).map_or(0.0, |(ours, cpu)| distance(&ours, cpu)),
            ];
            let is_near = errors.iter().zip(bounds).all(|(error, bound)| *error <= bound);
            assert!(is_near, "{name} in {precision}: loss, gradients, logits differ by {errors:?}");
        }
    }
}

#[test]
fn blocks_that_have_gone_ask_nothing_of_a_kernel() {
    for name in ["llama_gqa", "gpt2", "bert_mlm"] {
        let mut cpu = load(name);
        let all = |place: LayerSite| (place, cpu.units().layers()[place.layer].units(place.site));
        let gone = [LayerSite::heads(0), LayerSite::channels(1)].map(all).into();
        surgery::remove(&mut cpu, None, &gone, 0, None).unwrap();
        let gpu = moved(cpu.clone(), device(Precision::F32));
        let (want, got) = (passes(&cpu), passes(&gpu));
        let logits = got.2.zip(want.2.as_ref()).map_or(0.0, |(ours, cpu)| distance(&ours, cpu));
        let errors = [((got.0 - want.0) / want.0).abs(), distance(&got.1, &want.1), logits];
        assert!(errors.iter().all(|error| *error <= 1e-4), "{name}: {errors:?}");
        let [mut cpu, mut gpu] = [cpu, gpu].map(|model| Learner::new(model, 0.01));
        for learner in [&mut cpu, &mut gpu] {
            let batch = batch(&learner.model);
            let mut grads = Gradients::for_params(learner.model.params());
            learner.step(&mut grads, &[batch], None, Update::at(1e-3), &Alone).unwrap();
        }
        let params = cpu.model.params();
        // A bias of keys changes nothing: its gradient is rounding, which the first step takes for a direction.
        for id in params.ids().filter(|id| !params.name(*id).ends_with("attn.k.bias")) {
            let far = distance(gpu.model.params().get(id), params.get(id));
            assert!(far < 1e-4, "{name}: {} differs by {far}", params.name(id));
        }
    }
}

#[test]
fn the_same_tokens_are_generated() {
    let options =
        GenerateOptions { max_new_tokens: 6, temperature: 0.0, top_p: 1.0, seed: 0, end_tokens: Vec::new() };
    for name in ["llama_gqa_pruned", "gpt2", "gemma2_pruned"] {
        let tokens = |model: &Model| model.generate(&[1, 2, 3], &options, |_| true).unwrap().tokens;
        let model = load(name);
        assert_eq!(tokens(&moved(model.clone(), device(Precision::F32))), tokens(&model), "{name}");
    }
}

#[test]
fn a_step_moves_lists_up_and_two_numbers_down_and_asks_for_no_memory() {
    for name in ["llama_gqa", "bert_mlm"] {
        let device = device(Precision::Bf16);
        let model = moved(load(name), device);
        let mut batch = batch(&model);
        let mut grads = Gradients::for_params(model.params());
        let mut learner = Learner::new(model, 0.1);
        let mut step = |batch: &Batch| {
            let before = device.traffic();
            learner.step(&mut grads, std::slice::from_ref(batch), None, Update::at(1e-3), &Alone).unwrap();
            let after = device.traffic();
            (
                after.uploads - before.uploads,
                (after.downloads - before.downloads, after.downloaded - before.downloaded),
                after.allocations - before.allocations,
            )
        };
        // Until lists of earlier steps give up their places.
        for shift in 1..40 {
            step(&batch);
            // Other tokens of the same number: nothing of the last step can serve again.
            let tokens = batch.tokens.iter().map(|t| (t + shift) % 37).collect::<Vec<_>>();
            batch.tokens = std::sync::Arc::new(tokens);
            for target in batch.targets.iter_mut().filter(|t| **t >= 0) {
                *target = (*target + i64::from(shift)) % 37;
            }
        }
        let (uploads, downloads, allocations) = step(&batch);
        // Tokens, how their gradients are added, targets, and the optimiser's numbers.
        assert!(uploads <= 5, "{name}: {uploads} copies from the host");
        assert_eq!(downloads, (1, 16), "{name}: loss and norm come down once");
        assert_eq!(allocations, 0, "{name}: memory is used again");
    }
}

#[test]
fn scores_surgery_refit_and_growth_are_those_of_the_cpu() {
    for name in ["llama_gqa", "gpt2"] {
        let cpu = everything(load(name), false);
        let ours = everything(moved(load(name), device(Precision::F32)), false);
        for (ours, cpu) in ours.0.iter().chain(&ours.1).zip(cpu.0.iter().chain(&cpu.1)) {
            for (ours, cpu) in ours.values().zip(cpu.values()) {
                assert!(
                    (ours - cpu).abs() < 2e-3 * cpu.abs() + 1e-7,
                    "{name}: score {ours}, on the CPU {cpu}"
                );
            }
        }
        for (ours, cpu) in ours.4.iter().zip(&cpu.4) {
            assert!(distance(ours, cpu) < 1e-3, "{name}: weights");
        }
    }
}

/// Stops after pruning if it is to, and keeps notices.
#[derive(Default)]
struct Watch {
    stops: bool,
    has_pruned: bool,
    notices: Vec<String>,
}

impl Observer for Watch {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Notice { message, .. } => self.notices.push(message.clone()),
            Event::Pruned { .. } => self.has_pruned = true,
            _ => {}
        }
    }
    fn control(&mut self) -> Control {
        if self.stops && self.has_pruned { Control::Interrupt } else { Control::Continue }
    }
}

const RUN: &str = "num_cycles = 1\nsequence_length = 16\nbatch_size = 2\nmax_steps_per_cycle = 2\n\
    max_eval_windows = 2\nrefit_samples = 6\nstrategy_option = { calibration_samples = 4 }\npruning_ratio = 0.3\ngrowth_ratio = 0.2\n";

fn run(out: &Path, device: Option<Device>) -> Summary {
    let given = Given { device, ..Given::default() };
    let pipeline = Pipeline::with(OptimizeConfig::from_toml(RUN).unwrap(), given).unwrap();
    pipeline.run(out, &mut Watch::default()).unwrap()
}

#[test]
fn a_whole_run_ends_near_that_of_the_cpu_and_goes_on_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let cpu = run(&path("cpu"), Some(Device::cpu()));
    let loss = |summary: &Summary| summary.after.evaluation.loss;
    for (precision, bound) in [(Precision::F32, 1e-3), (Precision::Bf16, 2e-2)] {
        let ours = run(&path(&format!("{precision}")), Some(device(precision)));
        assert_eq!(ours.after.heads.concat().len(), cpu.after.heads.concat().len());
        assert!((loss(&ours) - loss(&cpu)).abs() < bound * loss(&cpu), "{} and {}", loss(&ours), loss(&cpu));
        assert!(ours.gpu.is_some() && cpu.gpu.is_none());
    }
    let model = |name: &str| std::fs::read(path(name).join("model/model.safetensors")).unwrap();
    // Stopped on the GPU, continued there to the same bits, and on the CPU with a notice.
    let given = Given { device: Some(device(Precision::Bf16)), ..Given::default() };
    let pipeline = Pipeline::with(OptimizeConfig::from_toml(RUN).unwrap(), given).unwrap();
    assert!(pipeline.run(&path("cut"), &mut Watch { stops: true, ..Watch::default() }).is_err());
    let copied = std::process::Command::new("cp").arg("-r").args([path("cut"), path("moved")]).status();
    assert!(copied.unwrap().success());
    let resume = |name: &str, device| {
        let mut observer = Watch::default();
        let given = Given { device: Some(device), ..Given::default() };
        let summary = Pipeline::resume_with(&path(name), given, &mut observer).unwrap();
        (summary, observer.notices)
    };
    let (_, notices) = resume("cut", device(Precision::Bf16));
    assert!(model("cut") == model("bf16") && notices.iter().all(|n| !n.contains("goes on on")));
    let (summary, notices) = resume("moved", Device::cpu());
    assert!(notices.iter().any(|n| n.contains("goes on on the CPU")), "{notices:?}");
    assert!((loss(&summary) - loss(&cpu)).abs() < 2e-2 * loss(&cpu));
}
