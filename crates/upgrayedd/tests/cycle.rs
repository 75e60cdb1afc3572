//! What a cycle does between pruning and its last measurement.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;

use upgrayedd::event::{Control, Event, Observer, Phase, Silent, named_units};
use upgrayedd::pipeline::{Given, Pipeline};
use upgrayedd::price::Currency;
use upgrayedd::timings::{PartTimes, Timings};
use upgrayedd::train::LrSchedule;
use upgrayedd::units::{LayerSite, Selection, Site};
use upgrayedd::{Error, OptimizeConfig, builtin, surgery};

/// Remembers losses and notices.
#[derive(Default)]
struct Seen {
    losses: Vec<(Phase, f64)>,
    notices: Vec<String>,
    /// Layer and head.
    pruned: BTreeSet<(String, u64)>,
}

impl Observer for Seen {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Evaluated { phase, evaluation, .. } => self.losses.push((*phase, evaluation.loss)),
            Event::Notice { message, .. } => self.notices.push(message.clone()),
            Event::Pruned { units, .. } => self.pruned.extend(pairs(units)),
            _ => {}
        }
    }
}

fn pairs(units: &serde_json::Map<String, serde_json::Value>) -> Vec<(String, u64)> {
    let of = |(layer, heads): (&String, &serde_json::Value)| {
        heads.as_array().unwrap().iter().map(|h| (layer.clone(), h.as_u64().unwrap())).collect::<Vec<_>>()
    };
    units.get("heads").and_then(|layers| layers.as_object()).into_iter().flatten().flat_map(of).collect()
}

impl Seen {
    fn at(&self, phase: Phase) -> Vec<f64> {
        self.losses.iter().filter(|(p, _)| *p == phase).map(|(_, loss)| *loss).collect()
    }
}

fn run(config: OptimizeConfig) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    Pipeline::new(config).unwrap().run(&dir.path().join("run"), &mut seen).unwrap();
    seen
}

/// `config` with some options changed.
fn with(mut config: OptimizeConfig, change: impl FnOnce(&mut OptimizeConfig)) -> OptimizeConfig {
    change(&mut config);
    config
}

/// One cycle of eight steps, measured at each, without the refit that would change heads as they return.
fn config() -> OptimizeConfig {
    with(OptimizeConfig::default(), |c| {
        c.run.num_cycles = 1;
        c.learn.max_steps_per_cycle = Some(8);
        c.measure.eval_every = Some(1);
        c.measure.patience = 100;
        c.measure.max_eval_windows = Some(4);
        c.learn.batch_size = 2;
        c.data.sequence_length = Some(32);
        c.learn.lr_schedule = LrSchedule::Constant;
        c.learn.warmup_steps = 0;
        c.prune.strategy = "magnitude".into();
        c.refit.refit = false;
    })
}

#[test]
fn restored_heads_are_faded_in_over_their_share_of_the_steps() {
    // Nothing is learned, so that only the gates move.
    let grown = with(config(), |c| {
        c.grow.growth_ratio = 1.0;
        c.learn.learning_rate = Some(1e-12);
    });
    let seen = run(with(grown.clone(), |c| {
        c.grow.gate_warmup = 0.5;
    }));
    let (baseline, pruned, learning) =
        (seen.at(Phase::Baseline)[0], seen.at(Phase::Pruned)[0], seen.at(Phase::Learning));
    assert!((pruned - baseline).abs() > 0.01, "pruning must show: {baseline} {pruned}");
    // Shut in the first step, which changes no bit; open after half of the steps, which makes the model whole
    // again.
    assert_eq!(learning[..2], [pruned; 2]);
    assert!(learning[1..6].windows(2).all(|w| w[0] > w[1]), "{learning:?}");
    assert!(learning[5..].iter().all(|loss| (loss - baseline).abs() < 1e-5), "{baseline} {learning:?}");
    let at_once = run(with(grown, |c| {
        c.grow.gate_warmup = 0.0;
    }))
    .at(Phase::Learning);
    assert!(at_once.iter().all(|loss| (loss - baseline).abs() < 1e-5), "{baseline} {at_once:?}");
}

#[test]
fn a_refit_does_not_cancel_heads_that_return() {
    let still = with(config(), |c| {
        c.refit.refit = true;
        c.learn.max_steps_per_cycle = Some(0);
        c.measure.eval_every = None;
    });
    // Everything that went in this cycle comes back: the model as it was, without what the repair had put in
    // its place.
    let seen = run(with(still.clone(), |c| {
        c.grow.growth_ratio = 1.0;
    }));
    assert_ne!(seen.at(Phase::Pruned), seen.at(Phase::Baseline));
    assert_eq!(seen.at(Phase::Result), seen.at(Phase::Baseline));
    // What had gone before comes back as without a refit, and half-shut first, while the model learns.
    let folder = tempfile::tempdir().unwrap();
    let mut model = builtin::model().unwrap();
    surgery::remove(
        &mut model,
        None,
        &Selection::from([(LayerSite::heads(0), vec![1, 2]), (LayerSite::heads(2), vec![5])]),
        1,
        None,
    )
    .unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(
        &text,
        (0..300)
            .map(|i| format!("Dog {i} ran to the park and saw {} cats.\n", i * 7 % 11))
            .collect::<String>(),
    )
    .unwrap();
    let grown = |refit, max_steps_per_cycle| {
        let (learning_rate, data) = (Some(1e-12), vec![text.clone()]);
        let config = with(config(), |c| {
            c.prune.pruning_ratio = 0.0;
            c.grow.growth_ratio = 1.0;
            c.refit.refit = refit;
            c.learn.max_steps_per_cycle = max_steps_per_cycle;
            c.learn.learning_rate = learning_rate;
            c.data.data = data;
        });
        let out = folder.path().join(format!("{refit}-{max_steps_per_cycle:?}"));
        let mut seen = Seen::default();
        let given = Given { model: Some(model.clone()), ..Given::default() };
        Pipeline::with(config, given).unwrap().run(&out, &mut seen).unwrap();
        seen
    };
    let (with, without) = (grown(true, Some(0)), grown(false, Some(0)));
    assert_eq!(with.at(Phase::Result), without.at(Phase::Result));
    assert!((with.at(Phase::Result)[0] - with.at(Phase::Pruned)[0]).abs() > 0.01);
    let fading = grown(true, Some(8));
    let (pruned, learning) = (fading.at(Phase::Pruned)[0], fading.at(Phase::Learning));
    assert!(learning[0] == pruned && (learning[1] - pruned).abs() < 1e-6, "{pruned} {learning:?}");
}

#[test]
fn a_cycle_that_is_stopped_keeps_no_half_open_heads() {
    struct Stops(Seen);
    impl Observer for Stops {
        fn on_event(&mut self, event: &Event) {
            self.0.on_event(event);
        }
        fn control(&mut self) -> Control {
            Control::Finish
        }
    }
    let config = with(config(), |c| {
        c.grow.growth_ratio = 1.0;
        c.grow.gate_warmup = 1.0;
        c.learn.learning_rate = Some(1e-12);
        c.measure.eval_every = None;
    });
    let folder = tempfile::tempdir().unwrap();
    let mut stops = Stops(Seen::default());
    Pipeline::new(config).unwrap().run(&folder.path().join("run"), &mut stops).unwrap();
    let (baseline, learned) = (stops.0.at(Phase::Baseline)[0], stops.0.at(Phase::Learned)[0]);
    assert!((baseline - learned).abs() < 1e-5, "{baseline} {learned}");
}

#[test]
fn learning_that_only_harms_is_not_kept() {
    let seen = run(with(config(), |c| {
        c.grow.growth_ratio = 0.0;
        c.learn.learning_rate = Some(0.3);
        c.measure.patience = 2;
    }));
    let (pruned, learning, learned) =
        (seen.at(Phase::Pruned)[0], seen.at(Phase::Learning), seen.at(Phase::Learned)[0]);
    assert!(
        learning.len() == 3 && learning[0] == pruned && learning[1..].iter().all(|l| *l > pruned),
        "{pruned} {learning:?}"
    );
    assert_eq!(learned, pruned);
    assert!(seen.notices.iter().any(|n| n.contains("after step 0 was the best")), "{:?}", seen.notices);
}

#[test]
fn a_state_with_heads_that_are_not_there_yet_is_not_kept() {
    // Eight steps, of which the first four fade in; whatever they cost, nothing before counts.
    let seen = run(with(config(), |c| {
        c.grow.growth_ratio = 1.0;
        c.grow.gate_warmup = 0.5;
        c.learn.learning_rate = Some(0.3);
        c.measure.patience = 1;
    }));
    let (learning, learned) = (seen.at(Phase::Learning), seen.at(Phase::Learned)[0]);
    assert!(learning.len() >= 7 && learning[5..].iter().all(|loss| *loss > learning[0]), "{learning:?}");
    assert!(learning[5..].contains(&learned), "{learned} {learning:?}");
}

#[test]
fn a_dry_run_names_the_heads_that_the_run_prunes() {
    let config = with(config(), |c| {
        c.prune.strategy = "fisher".into();
        c.prune.pruning_steps = Some(4);
        c.prune.pruning_ratio = 0.5;
        c.grow.growth_ratio = 0.0;
        c.refit.refit = true;
        c.learn.max_steps_per_cycle = Some(0);
        c.measure.eval_every = None;
    });
    let mut pipeline = Pipeline::new(config.clone()).unwrap();
    let before = pipeline.model().units().clone();
    let heads = pipeline.preview().unwrap();
    assert!(*pipeline.model().units() == before);
    let named: BTreeSet<_> = pairs(&named_units(pipeline.model(), &heads)).into_iter().collect();
    assert_eq!(named, run(config.clone()).pruned);
    let at_once = Pipeline::new(with(config, |c| {
        c.prune.pruning_steps = Some(1);
    }))
    .unwrap()
    .preview()
    .unwrap();
    assert_ne!(heads, at_once, "the steps make no difference here: the test shows nothing");
}

#[test]
fn a_forecast_names_no_ratio_that_cannot_be_reached() {
    // 2 of 8 heads a layer may go.
    let mut pipeline = Pipeline::new(with(config(), |c| {
        c.prune.min_heads = 6;
    }))
    .unwrap();
    let (_, rows) = pipeline.forecast(&mut Silent).unwrap();
    assert_eq!(rows.iter().map(|row| (row.ratio, row.active)).collect::<Vec<_>>(), [(0.1, 29), (0.2, 26)]);
}

#[test]
fn lengths_and_times_that_mean_nothing_are_refused() {
    let latency = with(config(), |c| {
        c.prune.budget = Currency::Latency;
    });
    for sequence_length in [0, 1, 1 << 20] {
        let config = with(latency.clone(), |c| {
            c.data.sequence_length = Some(sequence_length);
        });
        let error = Pipeline::new(config).err().unwrap();
        assert!(matches!(error, Error::DoesNotFit(_)), "{error:?}");
    }
    for timings in [
        (f64::NAN, vec![0.0; 9]),
        (1.0, vec![0.1; 8]),
        (1.0, vec![0.2, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ] {
        let model = builtin::model().unwrap();
        let part = |units, counts: Vec<usize>, seconds| PartTimes {
            units,
            layers: model.paths().of(units).to_vec(),
            counts,
            seconds,
        };
        let heads = part(Site::Head, (0..timings.1.len()).collect(), timings.1);
        let channels = part(Site::Channel, vec![0, model.spec().layers[0].intermediate_size], vec![0.0, 1.0]);
        let timings = Some(Timings { rest: timings.0, parts: vec![heads, channels] });
        let given = Given { timings, ..Given::default() };
        let error = Pipeline::with(latency.clone(), given).err().unwrap();
        assert!(matches!(error, Error::DoesNotFit(_)), "{error:?}");
    }
}

#[test]
fn heads_that_returned_learn_at_their_own_rate() {
    let learned = |growth_ratio, growth_lr_multiplier| {
        let config = with(config(), |c| {
            c.grow.growth_ratio = growth_ratio;
            c.grow.growth_lr_multiplier = growth_lr_multiplier;
            c.measure.eval_every = None;
        });
        run(config).at(Phase::Learned)[0]
    };
    assert_ne!(learned(1.0, 1.0), learned(1.0, 5.0));
    assert_eq!(learned(0.0, 1.0), learned(0.0, 5.0));
}

#[test]
fn damage_is_told_at_once_and_the_recommended_strategy_named() {
    let harmful = with(config(), |c| {
        c.prune.pruning_ratio = 0.8;
        c.grow.growth_ratio = 0.0;
        c.learn.max_steps_per_cycle = Some(0);
    });
    let warned = |config: OptimizeConfig| {
        let seen = run(config);
        let lost = seen.at(Phase::Pruned)[0] - seen.at(Phase::Baseline)[0];
        (lost, seen.notices.into_iter().find(|n| n.contains("raised the held-out loss")))
    };
    let (lost, notice) = warned(with(harmful.clone(), |c| {
        c.prune.strategy = "random".into();
    }));
    let notice = notice.unwrap();
    assert!(
        notice.contains(&format!("{lost:.2} nats")) && notice.contains("strategy auto"),
        "{lost}: {notice}"
    );
    let (lost, notice) = warned(with(harmful, |c| {
        c.prune.pruning_ratio = 0.1;
        c.prune.strategy = "auto".into();
    }));
    assert!(lost < 0.1 && notice.is_none(), "{lost}: {notice:?}");
}

#[test]
fn the_control_is_the_dense_model_that_learned_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let plain = with(config(), |c| {
        c.run.num_cycles = 2;
        c.learn.max_steps_per_cycle = Some(3);
        c.measure.eval_every = None;
    });
    let asked = with(plain.clone(), |c| {
        // Sets fewer sequences aside for scoring than others do: what is learned from is the same all the same.
        c.prune.strategy = "fisher".into();
        c.measure.control = true;
        c.measure.samples = 1;
        c.measure.prompt = vec!["Mia was".into()];
    });
    let run =
        |config, name: &str| Pipeline::new(config).unwrap().run(&dir.path().join(name), &mut Silent).unwrap();
    let summary = run(asked, "asked");
    let control = summary.control.unwrap();
    let dense = run(
        with(plain, |c| {
            c.prune.pruning_ratio = 0.0;
            c.grow.growth_ratio = 0.0;
        }),
        "dense",
    );
    assert_eq!(control.evaluation, dense.after.evaluation);
    assert_eq!(control.heads, summary.before.heads);
    assert!(summary.after.evaluation.loss != control.evaluation.loss);
    assert_eq!(dense.control, None);
    // Both continue the same texts.
    let [asked, held_out] = &summary.samples[..] else { panic!("{:?}", summary.samples) };
    assert_eq!(asked.prompt.trim(), "Mia was");
    let dense = upgrayedd::builtin::model().unwrap();
    let tokens = dense.tokenizer().unwrap().encode(&held_out.prompt).unwrap();
    assert!(!tokens.is_empty() && held_out.before != held_out.after);
    let refused = with(config(), |c| c.measure.samples = 1001);
    assert!(matches!(Pipeline::new(refused), Err(Error::OutOfRange { .. })));
}
