//! What a cycle does between pruning and its last measurement.
#![allow(missing_docs, clippy::unwrap_used)]

use upgrayedd::OptimizeConfig;
use upgrayedd::event::{Event, Observer, Phase};
use upgrayedd::grow::GrowthInit;
use upgrayedd::pipeline::Pipeline;
use upgrayedd::train::LrSchedule;

/// Remembers losses and notices.
#[derive(Default)]
struct Seen {
    losses: Vec<(Phase, f64)>,
    notices: Vec<String>,
}

impl Observer for Seen {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Evaluated { phase, evaluation, .. } => self.losses.push((*phase, evaluation.loss)),
            Event::Notice { message, .. } => self.notices.push(message.clone()),
            _ => {}
        }
    }
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

/// One cycle of eight steps, measured at each, without the refit that would change heads as they return.
fn config() -> OptimizeConfig {
    OptimizeConfig {
        num_cycles: 1,
        max_steps_per_cycle: Some(8),
        eval_every: Some(1),
        patience: 100,
        max_eval_windows: Some(4),
        batch_size: 2,
        sequence_length: Some(32),
        lr_schedule: LrSchedule::Constant,
        warmup_steps: 0,
        pruning_ratio: 0.3,
        refit: false,
        ..OptimizeConfig::default()
    }
}

#[test]
fn restored_heads_are_faded_in_over_their_share_of_the_steps() {
    // Nothing is learned, so that only the gates move.
    let grown = OptimizeConfig { growth_ratio: 1.0, learning_rate: Some(1e-12), ..config() };
    let seen = run(OptimizeConfig { gate_warmup: 0.5, ..grown.clone() });
    let (baseline, pruned, learning) = (seen.at(Phase::Baseline)[0], seen.at(Phase::Pruned)[0], seen.at(Phase::Learning));
    assert!((pruned - baseline).abs() > 0.01, "pruning must show: {baseline} {pruned}");
    // Shut in the first step, which changes no bit; open after half of the steps, which makes the model whole again.
    assert_eq!(learning[..2], [pruned; 2]);
    assert!(learning[1..6].windows(2).all(|w| w[0] > w[1]), "{learning:?}");
    assert!(learning[5..].iter().all(|loss| (loss - baseline).abs() < 1e-5), "{baseline} {learning:?}");
    let at_once = run(OptimizeConfig { gate_warmup: 0.0, ..grown }).at(Phase::Learning);
    assert!(at_once.iter().all(|loss| (loss - baseline).abs() < 1e-5), "{baseline} {at_once:?}");
}

#[test]
fn heads_that_change_nothing_are_not_faded_in() {
    for growth_init in [GrowthInit::Split, GrowthInit::Fresh] {
        let seen = run(OptimizeConfig { growth_ratio: 1.0, growth_init, learning_rate: Some(1e-12), ..config() });
        let pruned = seen.at(Phase::Pruned)[0];
        let learning = seen.at(Phase::Learning);
        assert!(learning.iter().all(|loss| (loss - pruned).abs() < 1e-5), "{growth_init:?}: {pruned} {learning:?}");
    }
}

#[test]
fn learning_that_only_harms_is_not_kept() {
    let seen = run(OptimizeConfig { growth_ratio: 0.0, learning_rate: Some(0.3), patience: 2, ..config() });
    let (pruned, learning, learned) = (seen.at(Phase::Pruned)[0], seen.at(Phase::Learning), seen.at(Phase::Learned)[0]);
    assert!(learning.len() == 3 && learning[0] == pruned && learning[1..].iter().all(|l| *l > pruned), "{pruned} {learning:?}");
    assert_eq!(learned, pruned);
    assert!(seen.notices.iter().any(|n| n.contains("after step 0 was the best")), "{:?}", seen.notices);
}

#[test]
fn heads_that_returned_learn_at_their_own_rate() {
    let learned = |growth_ratio, growth_lr_multiplier| {
        let config = OptimizeConfig { growth_ratio, growth_lr_multiplier, eval_every: None, ..config() };
        run(config).at(Phase::Learned)[0]
    };
    assert_ne!(learned(1.0, 1.0), learned(1.0, 5.0));
    assert_eq!(learned(0.0, 1.0), learned(0.0, 5.0));
}

#[test]
fn damage_is_told_at_once_and_the_recommended_strategy_named() {
    let harmful = OptimizeConfig { pruning_ratio: 0.8, growth_ratio: 0.0, max_steps_per_cycle: Some(0), ..config() };
    let warned = |config: OptimizeConfig| {
        let seen = run(config);
        let lost = seen.at(Phase::Pruned)[0] - seen.at(Phase::Baseline)[0];
        (lost, seen.notices.into_iter().find(|n| n.contains("raised the held-out loss")))
    };
    let (lost, notice) = warned(OptimizeConfig { strategy: "random".into(), ..harmful.clone() });
    let notice = notice.unwrap();
    assert!(notice.contains(&format!("{lost:.2} nats")) && notice.contains("strategy auto"), "{lost}: {notice}");
    let (lost, notice) = warned(OptimizeConfig { pruning_ratio: 0.1, strategy: "auto".into(), ..harmful });
    assert!(lost < 0.1 && notice.is_none(), "{lost}: {notice:?}");
}
