//! Weights that are kept out of memory give the same bits, batches are as large as fits, and what does not fit is refused.
#![allow(missing_docs, clippy::unwrap_used)]

mod tiny;

use std::fs;
use std::path::Path;

use upgrayedd::event::{Control, Event, Observer, Silent};
use upgrayedd::files::{DType, Spill};
use upgrayedd::grow::gains;
use upgrayedd::memory::{Learn, Work, fitting_batch, stages};
use upgrayedd::model::Model;
use upgrayedd::pipeline::Pipeline;
use upgrayedd::score::ScoreContext;
use upgrayedd::units::Sites;
use upgrayedd::{Error, OptimizeConfig, builtin, export, surgery};

fn config(memory: Option<&str>, steps: u64) -> OptimizeConfig {
    let mut c = OptimizeConfig::default();
    c.run.num_cycles = 2;
    c.run.memory = memory.map(|memory| memory.parse().unwrap());
    c.learn.max_steps_per_cycle = Some(steps);
    c.learn.batch_size = 2;
    c.measure.max_eval_windows = Some(4);
    c.refit.refit_samples = 8;
    c.prune.strategy_option = vec!["calibration_samples=8".parse().unwrap()];
    c.data.sequence_length = Some(32);
    c.prune.units = Sites::FINEST;
    c.grow.growth_ratio = 0.5;
    c
}

/// What a run leaves behind, but for what measures speed or tells of memory.
fn same(a: &Path, b: &Path) {
    for name in ["model/model.safetensors", "archive.safetensors"] {
        assert!(fs::read(a.join(name)).unwrap() == fs::read(b.join(name)).unwrap(), "{name}");
    }
    // That memory was short is said.
    let events = |run: &Path| {
        let text = fs::read_to_string(run.join("events.jsonl")).unwrap();
        text.lines().filter(|line| !line.contains("memory is")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(events(a), events(b));
}

/// Interrupts the first time that it is asked after a cycle.
struct AfterOne(bool);

impl Observer for AfterOne {
    fn on_event(&mut self, event: &Event) {
        self.0 |= matches!(event, Event::Saved { .. });
    }

    fn control(&mut self) -> Control {
        if self.0 { Control::Interrupt } else { Control::Continue }
    }
}

/// The built-in model in 16 bits, in a folder, and text for it.
fn narrow(dir: &Path, config: &mut OptimizeConfig) {
    let folder = dir.join("narrow");
    if !folder.exists() {
        let model = builtin::model().unwrap();
        export::export(&model, &export::HF, Some(DType::BF16), &folder).unwrap();
        let stories: Vec<String> = builtin::stories(1, 60).collect();
        fs::write(dir.join("text.txt"), stories.join("\n\n")).unwrap();
    }
    config.run.model = Some(folder.to_string_lossy().into_owned());
    config.data.data = vec![dir.join("text.txt")];
}

#[test]
fn a_run_out_of_memory_has_the_bits_of_one_in_memory() {
    for (steps, in_16_bits) in [(0, true), (2, false)] {
        let dir = tempfile::tempdir().unwrap();
        let config = |memory| {
            let mut config = config(memory, steps);
            if in_16_bits {
                narrow(dir.path(), &mut config);
            }
            config
        };
        let run = |name: &str, memory| {
            let out = dir.path().join(name);
            Pipeline::new(config(memory)).unwrap().run(&out, &mut Silent).unwrap();
            out
        };
        let (inside, outside) = (run("inside", None), run("outside", Some("1GB")));
        same(&inside, &outside);
        // Files without names leave none.
        assert!(fs::read_dir(&outside).unwrap().count() == fs::read_dir(&inside).unwrap().count());
        for (name, memory) in [("stopped", None), ("stopped outside", Some("1GB"))] {
            let stopped = dir.path().join(name);
            let mut pipeline = Pipeline::new(config(memory)).unwrap();
            assert!(pipeline.memory().iter().all(|stage| stage.bytes < 1_000_000_000));
            assert!(!pipeline.preview().unwrap().is_empty());
            let error = pipeline.run(&stopped, &mut AfterOne(false)).unwrap_err();
            assert!(matches!(error, Error::Interrupted), "{error}");
            Pipeline::resume(&stopped, &mut Silent).unwrap();
            same(&inside, &stopped);
        }
    }
}

/// The same model with its weights in files.
fn outside(mut outside: Model, dir: &Path) -> Model {
    outside.set_spill(Spill::to(dir)).unwrap();
    let in_files = |id| outside.params().get(id).is_in_file() || outside.params().get(id).shape().len() < 2;
    assert!(outside.params().ids().all(in_files));
    outside
}

#[test]
fn everything_that_is_done_with_a_model_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama_gqa", "gpt2", "gpt_neox", "phi3_long", "bert_mlm", "bert_encoder", "gemma2"] {
        let (inside, outside) = (tiny::load(name), outside(tiny::load(name), dir.path()));
        assert!(
            tiny::everything(inside.clone(), false) == tiny::everything(outside.clone(), false),
            "{name}"
        );
        let data = tiny::data(inside.spec().objective);
        let gains_of = |mut model: Model| {
            surgery::remove(&mut model, None, &tiny::some_units(), 1, None).unwrap();
            gains(&ScoreContext {
                batch_size: 2,
                units: Sites::FINEST,
                ..ScoreContext::new(&model, &data, &(0..4))
            })
            .unwrap()
        };
        assert_eq!(gains_of(inside), gains_of(outside), "{name}");
    }
}

#[test]
fn batches_are_as_large_as_fits_and_what_does_not_fit_is_refused() {
    let model = builtin::model().unwrap();
    let work = Work {
        length: 256,
        batch: 64,
        units: Sites::FINEST,
        score: true,
        curvature: true,
        refit: true,
        write: true,
        another: true,
        learn: None,
    };
    let most = |work| stages(&model, work).iter().map(|stage| stage.bytes).max().unwrap();
    let whole = most(work);
    assert_eq!(fitting_batch(&model, work, whole).unwrap(), 64);
    let fitting = fitting_batch(&model, work, whole / 2).unwrap();
    assert!(
        most(Work { batch: fitting, ..work }) <= whole / 2
            && most(Work { batch: fitting + 1, ..work }) > whole / 2
    );
    let refused = |work, limit| fitting_batch(&model, work, limit).unwrap_err().to_string();
    let error = refused(work, 1_000_000);
    assert!(
        error.starts_with("memory is 1 MB, and this model and batch_size 64 take")
            && error.contains("one sequence at a time"),
        "{error}"
    );
    // Learning keeps the batch that was asked for.
    let learn = Learn { checkpointing: false, copies: 0, teacher: false };
    let learning = Work { learn: Some(learn), ..work };
    let error = refused(learning, whole);
    assert!(error.contains("to learn: gradient_checkpointing, or with it a smaller batch_size"), "{error}");
    let again = Learn { checkpointing: true, copies: 3, teacher: true };
    let error =
        refused(Work { learn: Some(again), ..work }, most(Work { batch: 1, learn: Some(again), ..work }));
    assert!(error.contains("to learn: a smaller batch_size"), "{error}");
    let error = refused(Work { batch: 1, ..learning }, most(Work { batch: 1, ..work }));
    assert!(error.contains("max_steps_per_cycle 0"), "{error}");
    // What nobody can mean does no harm.
    let absurd = Work { length: usize::MAX, batch: 1 << 40, ..work };
    assert!(refused(absurd, 1 << 40).contains("at least"));
    let mut latency = config(Some("1GB"), 0);
    latency.prune.target = Some("latency=0.7x".parse().unwrap());
    let error = Pipeline::new(latency).err().unwrap().to_string();
    assert!(error.contains("with memory, a budget in latency needs the timings"), "{error}");
    let mut config = config(Some("500MB"), 0);
    config.learn.batch_size = 512;
    let pipeline = Pipeline::new(config).unwrap();
    let batch = pipeline.plan().config().learn.batch_size;
    assert!(
        batch < 512
            && pipeline.notices().iter().any(|n| n.contains(&format!("batches of {batch} of the 512"))),
        "{batch}"
    );
}
