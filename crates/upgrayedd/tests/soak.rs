//! Many cycles of pruning and growing: books in order, archive exact, memory flat. `UPGRAYEDD_SOAK` says how
//! many, 5 if it is not set; `UPGRAYEDD_SOAK_MODEL` and `UPGRAYEDD_SOAK_DATA` name a model and its text, the
//! built-in ones if they are not set.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Mutex;

use peak_alloc::PeakAlloc;
use upgrayedd::event::{Event, Observer};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::Model;
use upgrayedd::pipeline::Pipeline;
use upgrayedd::units::Sites;
use upgrayedd::{OptimizeConfig, surgery};

/// Counts what is allocated, to the byte: the resident set also holds what the allocator keeps for later.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Held by each test, as the count is the process's.
static ALONE: Mutex<()> = Mutex::new(());

#[derive(Default)]
struct Memory {
    /// MiB allocated at the end of each cycle.
    after: Vec<f32>,
}

impl Observer for Memory {
    fn on_event(&mut self, event: &Event) {
        if let Event::Saved { .. } = event {
            self.after.push(HEAP.current_usage_as_mb());
        }
    }
}

/// `config` with some options changed.
fn with(mut config: OptimizeConfig, change: impl FnOnce(&mut OptimizeConfig)) -> OptimizeConfig {
    change(&mut config);
    config
}

fn config() -> OptimizeConfig {
    let cycles: usize = std::env::var("UPGRAYEDD_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    with(OptimizeConfig::default(), |c| {
        c.run.model = std::env::var("UPGRAYEDD_SOAK_MODEL").ok();
        c.data.data = std::env::var("UPGRAYEDD_SOAK_DATA").ok().into_iter().map(Into::into).collect();
        c.prune.strategy = "random".to_owned();
        c.prune.units = Sites::FINEST;
        c.run.num_cycles = cycles;
        c.prune.pruning_ratio = 0.4;
        // What goes comes back, so that every cycle has as much to do.
        c.grow.growth_ratio = 0.9;
        c.measure.max_eval_windows = Some(8);
        c.learn.batch_size = 2;
        c.refit.refit_samples = 8;
        c.data.sequence_length = Some(64);
    })
}

fn dense() -> Model {
    upgrayedd::open(config().run.model.as_deref().unwrap_or("builtin"), &LoadOptions::default()).unwrap()
}

fn check_books(result: &Path) -> Model {
    let model = upgrayedd::open(&result.to_string_lossy(), &LoadOptions::default()).unwrap();
    for id in model.params().ids() {
        let name = model.params().name(id);
        assert_eq!(model.params().get(id).shape(), model.weight(id).shape(model.units()), "{name}");
    }
    for site in Sites::FINEST.iter() {
        let back: usize = model.archive().restorable(model.units(), site).iter().sum();
        assert_eq!(back, model.units().total_of(site) - model.units().count(site));
    }
    model
}

#[test]
fn heads_that_come_and_go_without_learning_come_back_to_the_bit() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let config = with(config(), |c| {
        c.learn.max_steps_per_cycle = Some(0);
        c.refit.refit = false;
    });
    Pipeline::new(config).unwrap().run(&out, &mut Memory::default()).unwrap();
    let mut model = check_books(&out);
    assert!(Sites::FINEST.iter().all(|site| model.units().count(site) < model.units().total_of(site)));
    let lost = model.units().pruned();
    surgery::restore(&mut model, None, &lost, 1.0).unwrap();
    let dense = dense();
    assert_eq!(model.units(), dense.units());
    for id in dense.params().ids() {
        assert!(model.params().get(id) == dense.params().get(id), "{}", dense.params().name(id));
    }
}

#[test]
fn memory_stays_flat_and_the_model_good() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut memory = Memory::default();
    let config = with(config(), |c| {
        c.learn.max_steps_per_cycle = Some(4);
    });
    let summary = Pipeline::new(config).unwrap().run(&out, &mut memory).unwrap();
    check_books(&out);
    let (before, after) = (summary.before.evaluation.loss, summary.after.evaluation.loss);
    assert!(after < before + 1.0, "{before} became {after}");
    let most = |some: &[f32]| some.iter().copied().fold(0.0, f32::max);
    let cycles = memory.after.len();
    assert!(cycles > 1, "one cycle is no comparison");
    let (early, late) = (most(&memory.after[..=cycles / 2]), most(&memory.after[cycles / 2 + 1..]));
    eprintln!("{cycles} cycles: loss {before:.4} became {after:.4}, {:?} MiB", memory.after);
    assert!(late < early * 1.01, "{:?}", memory.after);
}
