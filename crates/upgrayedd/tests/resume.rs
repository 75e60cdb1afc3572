//! A run that is stopped anywhere goes on to the same bits, and two processes never share one.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use upgrayedd::event::{Control, Event, Observer, Progress};
use upgrayedd::pipeline::{Given, Pipeline};
use upgrayedd::score::ScoreContext;
use upgrayedd::strategy::{GrowView, PruneView, Strategy, get_strategy};
use upgrayedd::units::{Scores, Selection, Sites};
use upgrayedd::{Error, OptimizeConfig, builtin};

/// Interrupts when it has been asked so many times; remembers what it was told.
struct Stop {
    after: usize,
    notices: Vec<String>,
}

impl Stop {
    fn after(after: usize) -> Self {
        Self { after, notices: Vec::new() }
    }

    fn never() -> Self {
        Self::after(usize::MAX)
    }
}

impl Observer for Stop {
    fn on_event(&mut self, event: &Event) {
        if let Event::Notice { message, .. } = event {
            self.notices.push(message.clone());
        }
    }

    fn control(&mut self) -> Control {
        self.after -= 1;
        if self.after == 0 { Control::Interrupt } else { Control::Continue }
    }
}

/// `config` with some options changed.
fn with(mut config: OptimizeConfig, change: impl FnOnce(&mut OptimizeConfig)) -> OptimizeConfig {
    change(&mut config);
    config
}

/// Every start reads all of its text: a few stories are read quickly.
fn text() -> PathBuf {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let stories: Vec<String> = builtin::stories(1, 60).collect();
        fs::write(folder.path().join("text.txt"), stories.join("\n\n")).unwrap();
        folder
    });
    FOLDER.path().join("text.txt")
}

fn config() -> OptimizeConfig {
    with(OptimizeConfig::default(), |c| {
        c.run.model = Some("builtin".to_owned());
        c.data.data = vec![text()];
        c.refit.refit_samples = 8;
        c.run.num_cycles = 2;
        c.learn.max_steps_per_cycle = Some(7);
        c.measure.max_eval_windows = Some(4);
        c.learn.batch_size = 2;
        c.data.sequence_length = Some(32);
        c.prune.pruning_ratio = 0.3;
        c.grow.growth_ratio = 0.5;
    })
}

/// Every file below `dir` but for those with measured speeds.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !["summary.json", "report.html"].map(Some).contains(&path.file_name().unwrap().to_str())
            {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn same(a: &Path, b: &Path, what: &str) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{what}: {}", name.display());
    }
}

/// Runs to the end, interrupted again and again after so many questions.
fn run_in_pieces(config: &OptimizeConfig, out: &Path, every: usize) -> usize {
    let mut pieces = 1;
    let mut result = Pipeline::new(config.clone()).unwrap().run(out, &mut Stop::after(every));
    while let Err(error) = result {
        assert!(matches!(error, Error::Interrupted), "{error}");
        if !out.exists() {
            return 0;
        }
        pieces += 1;
        assert!(pieces < 200, "it never ends");
        // A little later each time: a run that is stopped before it has anything to save starts anew.
        result = Pipeline::resume(out, &mut Stop::after(every + pieces));
    }
    pieces
}

#[test]
fn a_run_in_pieces_has_the_same_bits_as_a_whole_one() {
    let variants = [
        ("plain", config()),
        (
            "measured",
            with(config(), |c| {
                c.measure.eval_every = Some(2);
                c.measure.patience = 2;
                c.learn.learning_rate = Some(0.05);
            }),
        ),
        (
            "faded in, in groups, over epochs",
            with(config(), |c| {
                c.refit.refit = false;
                c.grow.gate_warmup = 1.0;
                c.learn.gradient_accumulation = 2;
                c.run.checkpoint_every = Some(2);
                c.learn.epochs_per_cycle = 2;
            }),
        ),
        (
            "heads and channels",
            with(config(), |c| {
                c.prune.units = Sites::FINEST;
                c.prune.target = Some("parameters=0.8x".parse().unwrap());
                c.refit.refit = false;
                c.run.checkpoint_every = Some(3);
            }),
        ),
        (
            "whole blocks",
            with(config(), |c| {
                c.prune.units = "attention,mlp".parse().unwrap();
                c.prune.strategy = "fisher".to_owned();
                c.prune.pruning_ratio = 0.3;
                c.grow.growth_ratio = 0.5;
                c.run.checkpoint_every = Some(3);
            }),
        ),
        (
            "beside the dense model",
            with(config(), |c| {
                c.measure.control = true;
                c.run.num_cycles = 1;
                c.prune.strategy = "fisher".to_owned();
                c.learn.max_steps_per_cycle = Some(3);
            }),
        ),
        (
            "rolled back",
            with(config(), |c| {
                c.measure.max_loss_increase = Some(0.0);
                c.learn.learning_rate = Some(0.3);
            }),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in variants {
        let whole = dir.path().join(format!("{name} whole"));
        let summary = Pipeline::new(config.clone()).unwrap().run(&whole, &mut Stop::never()).unwrap();
        assert_eq!(summary.cycles.iter().any(|c| !c.accepted), name == "rolled back");
        for every in [5, 11] {
            let cut = dir.path().join(format!("{name} {every}"));
            let pieces = run_in_pieces(&config, &cut, every);
            assert!(pieces > 2, "{name}: stopped {pieces} times");
            same(&whole, &cut, name);
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_reported_and_the_one_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let config = with(config(), |c| {
        c.run.num_cycles = 3;
    });
    Pipeline::new(config.clone()).unwrap().run(&whole, &mut Stop::never()).unwrap();
    let summary = Pipeline::new(config).unwrap().run(&cut, &mut Stop::never()).unwrap();
    fs::remove_dir_all(cut.join("model")).unwrap();
    let checkpoints = || {
        let mut found: Vec<PathBuf> =
            fs::read_dir(cut.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let newest = checkpoints().pop().unwrap();
    // The first, the newest, and the one with the lowest loss, if it is another.
    let kept: Vec<String> =
        checkpoints().iter().map(|c| c.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let losses: Vec<f64> = summary.cycles.iter().filter_map(|c| c.loss_learned).collect();
    let best = (0..3).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap() + 1;
    let mut wanted = vec!["cycle-0001".to_owned(), format!("cycle-{best:04}"), "cycle-0003".to_owned()];
    wanted.dedup();
    assert_eq!(kept, wanted);
    for file in ["weights.safetensors", "state.json", "BLAKE3SUMS"] {
        let path = newest.join(file);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let mut observer = Stop::never();
        Pipeline::resume(&cut, &mut observer).unwrap();
        assert!(
            observer.notices.iter().any(|n| n.contains("cycle-0003") && n.contains("damaged")),
            "{:?}",
            observer.notices
        );
        same(&whole, &cut, file);
        fs::remove_dir_all(cut.join("model")).unwrap();
    }
    for checkpoint in checkpoints() {
        fs::write(checkpoint.join("optimizer.safetensors"), b"nothing").unwrap();
    }
    let error = Pipeline::resume(&cut, &mut Stop::never()).unwrap_err();
    assert!(matches!(&error, Error::File { path, .. } if path.starts_with(&cut)), "{error:?}");
}

#[test]
fn events_that_end_too_early_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    for out in [&whole, &cut] {
        Pipeline::new(config()).unwrap().run(out, &mut Stop::never()).unwrap();
    }
    fs::remove_dir_all(cut.join("model")).unwrap();
    let events = fs::read(cut.join("events.jsonl")).unwrap();
    let first_cycle = events.windows(10).position(|w| w == b"\"accepted\"").unwrap();
    let end = first_cycle + events[first_cycle..].iter().position(|b| *b == b'\n').unwrap() + 1;
    fs::write(cut.join("events.jsonl"), &events[..end]).unwrap();
    let mut observer = Stop::never();
    Pipeline::resume(&cut, &mut observer).unwrap();
    assert!(observer.notices.iter().any(|n| n.contains("does not reach")), "{:?}", observer.notices);
    same(&whole, &cut, "short events");
}

#[test]
fn the_second_process_is_refused() {
    struct Meddler(PathBuf, Option<String>);
    impl Observer for Meddler {
        fn control(&mut self) -> Control {
            if self.0.join("events.jsonl").exists() {
                self.1 = Pipeline::resume(&self.0, &mut Stop::never()).err().map(|e| e.to_string());
            }
            Control::Continue
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut observer = Meddler(out.clone(), None);
    Pipeline::new(config()).unwrap().run(&out, &mut observer).unwrap();
    assert!(observer.1.unwrap().contains("is in use"));
}

#[test]
fn numbers_that_blow_up_stop_the_run_or_are_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = with(config(), |c| {
        c.learn.learning_rate = Some(1e30);
        c.learn.warmup_steps = 0;
        c.run.num_cycles = 1;
    });
    let out = dir.path().join("stopped");
    let error = Pipeline::new(config.clone()).unwrap().run(&out, &mut Stop::never()).unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)), "{error:?}");
    assert!(!out.exists());
    let out = dir.path().join("rolled back");
    let kept = with(config, |c| {
        c.measure.max_loss_increase = Some(0.1);
        c.run.num_cycles = 2;
    });
    let mut observer = Stop::never();
    let summary = Pipeline::new(kept).unwrap().run(&out, &mut observer).unwrap();
    assert!(!summary.cycles[0].accepted && summary.after.evaluation == summary.before.evaluation);
    assert!(observer.notices.iter().any(|n| n.contains("first not finite")), "{:?}", observer.notices);
    // What was not measured has no number, and the next cycle does not repeat the same steps.
    assert!(summary.cycles.iter().all(|c| c.loss_learned.is_none()), "{:?}", summary.cycles);
    let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rolled_back: Vec<_> = events.iter().filter(|e| e["event"] == "rolled_back").collect();
    assert!(
        rolled_back.len() == 2 && rolled_back.iter().all(|e| e["loss_change"].is_null()),
        "{rolled_back:?}"
    );
    let first: Vec<_> =
        events.iter().filter(|e| e["event"] == "step" && e["step"] == 1).map(|e| &e["loss"]).collect();
    assert!(first.len() == 2 && first[0] != first[1], "{first:?}");
}

/// Follows magnitudes, but in the first cycle has no finite number to score by, or to grow by.
struct Lost {
    sane: Box<dyn Strategy>,
    scores: bool,
    grows: bool,
}

impl Strategy for Lost {
    fn name(&self) -> &str {
        "lost"
    }
    fn importances(&mut self, context: &ScoreContext<'_>) -> upgrayedd::Result<Scores> {
        let scores = self.sane.importances(context)?;
        Ok(if std::mem::replace(&mut self.scores, true) { scores } else { scores.map(|_| f64::NAN) })
    }
    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> upgrayedd::Result<Selection> {
        self.sane.select_units_to_prune(view)
    }
    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> upgrayedd::Result<BTreeMap<usize, usize>> {
        if std::mem::replace(&mut self.grows, true) {
            return self.sane.select_units_to_grow(view);
        }
        Err(Error::NotFinite("a gain is NaN".to_owned()))
    }
}

#[test]
fn a_cycle_whose_pruning_blows_up_is_rolled_back_too() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, scores, max_loss_increase| {
        let sane = get_strategy("magnitude", BTreeMap::new()).unwrap();
        let lost = Lost { sane, scores, grows: !scores };
        let given = Given { strategy: Some(Box::new(lost)), ..Given::default() };
        let config = with(config(), |c| {
            c.measure.max_loss_increase = max_loss_increase;
            c.run.num_cycles = 2;
        });
        let mut observer = Stop::never();
        let summary = Pipeline::with(config, given).unwrap().run(&dir.path().join(name), &mut observer);
        (summary, observer.notices)
    };
    // Nothing to roll back to, or nothing that had changed: the next cycle would come to the same.
    for (scores, limit) in [(true, None), (false, Some(100.0))] {
        assert!(matches!(run("stopped", scores, limit).0, Err(Error::NotFinite(_))));
    }
    let (summary, notices) = run("rolled back", true, Some(100.0));
    let cycles = summary.unwrap().cycles;
    assert!(notices.iter().any(|n| n.contains("is NaN")), "{notices:?}");
    assert!(!cycles[0].accepted && cycles[0].loss_pruned.is_none() && cycles[0].pruned == 0, "{cycles:?}");
    // The next one goes on from the model as it was.
    assert!(cycles[1].accepted && cycles[1].loss_pruned.is_some() && cycles[1].pruned > 0, "{cycles:?}");
}

#[test]
fn a_run_that_was_asked_for_its_result_remembers_it() {
    /// Asks for the result after the first cycle, or after a step of it, and interrupts when that is
    /// measured.
    #[derive(Default)]
    struct Enough {
        after_step: Option<u64>,
        interrupts: bool,
        asked: bool,
        measuring: bool,
    }
    impl Observer for Enough {
        fn on_event(&mut self, event: &Event) {
            self.asked |= match event {
                Event::Saved { .. } => true,
                Event::Step { step, .. } => self.after_step == Some(*step),
                _ => false,
            };
        }
        fn on_progress(&mut self, progress: Progress<'_>) {
            self.measuring |= progress.task == "result";
        }
        fn control(&mut self) -> Control {
            match (self.measuring && self.interrupts, self.asked) {
                (true, _) => Control::Interrupt,
                (_, true) => Control::Finish,
                _ => Control::Continue,
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for after_step in [None, Some(3)] {
        let (whole, cut) = (
            dir.path().join(format!("whole {after_step:?}")),
            dir.path().join(format!("cut {after_step:?}")),
        );
        let config = with(config(), |c| {
            c.run.num_cycles = 4;
            c.run.checkpoint_every = Some(1);
        });
        let enough = |interrupts| Enough { after_step, interrupts, ..Enough::default() };
        let summary = Pipeline::new(config.clone()).unwrap().run(&whole, &mut enough(false)).unwrap();
        assert_eq!(summary.cycles.len(), 1);
        let error = Pipeline::new(config).unwrap().run(&cut, &mut enough(true)).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        Pipeline::resume(&cut, &mut Stop::never()).unwrap();
        same(&whole, &cut, "finished early");
    }
}
