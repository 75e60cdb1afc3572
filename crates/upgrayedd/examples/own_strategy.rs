//! A strategy of one's own: heads go that two scores agree on, and come back where the loss wants them.
//!
//! ```console
//! $ cargo run --release -p upgrayedd --example own_strategy
//! ```
#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::collections::BTreeMap;

use upgrayedd::budget::Scope;
use upgrayedd::event::Silent;
use upgrayedd::pipeline::Given;
use upgrayedd::score::{self, ScoreContext};
use upgrayedd::strategy::{GrowView, PruneView, Strategy, by_gain, within_budget};
use upgrayedd::units::{Scores, Selection};
use upgrayedd::{OptimizeConfig, Pipeline, Result};

/// Sequences to score on.
const SAMPLES: usize = 16;

/// Keeps heads by the sum of their ranks under Fisher information and under the layer-normalised gate
/// gradient.
struct RankSum;

impl Strategy for RankSum {
    fn name(&self) -> &str {
        "rank-sum"
    }

    fn calibration_samples(&self) -> Option<usize> {
        Some(SAMPLES)
    }

    fn scope(&self) -> Scope {
        Scope::Global
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores> {
        let context = ScoreContext { samples: SAMPLES, ..*context };
        let fisher = score::named("fisher")?.compute(&context)?;
        let taylor = score::named("taylor")?.compute(&context)?;
        let (a, b) = (ranks(&fisher), ranks(&taylor));
        let mut sums = a.iter().zip(&b).map(|(a, b)| a + b);
        let layers = fisher.heads().map(|layer| sums.by_ref().take(layer.len()).collect());
        Ok(Scores::of_heads(layers.collect::<Vec<Vec<f64>>>()))
    }

    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection> {
        Ok(within_budget(view, view.importances))
    }

    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        Ok(by_gain(view))
    }
}

/// The place of each value among all, lowest first.
fn ranks(scores: &Scores) -> Vec<f64> {
    let values: Vec<f64> = scores.values().collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for (rank, at) in order.into_iter().enumerate() {
        ranks[at] = rank as f64;
    }
    ranks
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut config = OptimizeConfig::default();
    config.run.num_cycles = 1;
    config.learn.max_steps_per_cycle = Some(4);
    config.measure.max_eval_windows = Some(16);
    config.refit.refit_samples = 32;
    let given = Given { strategy: Some(Box::new(RankSum)), ..Given::default() };
    let scratch = tempfile::tempdir()?;
    let summary = Pipeline::with(config, given)?.run(&scratch.path().join("run"), &mut Silent)?;
    println!(
        "{} of {} heads are left",
        summary.cycles[0].active,
        summary.heads_per_layer.iter().sum::<usize>()
    );
    println!("held-out loss {:.4} → {:.4}", summary.before.evaluation.loss, summary.after.evaluation.loss);
    Ok(())
}
