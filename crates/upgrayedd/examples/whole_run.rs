//! A whole run on the model and text that are built in: three cycles of pruning, growing and learning, told
//! as they happen.
//!
//! ```console
//! $ cargo run --release -p upgrayedd --example whole_run -- OUT_DIR
//! ```
//!
//! With a model and text of one's own, `config.run.model` and `config.data.data` name them.
#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::path::PathBuf;

use upgrayedd::event::{Event, Observer, Phase};
use upgrayedd::{OptimizeConfig, Pipeline};

/// Prints what happens.
struct Printer;

impl Observer for Printer {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Pruned { cycle, active, .. } => println!("cycle {cycle}: {active} heads left"),
            Event::Evaluated { cycle, phase: Phase::Learned, evaluation } => {
                println!("cycle {cycle}: held-out loss {:.4} after learning", evaluation.loss);
            }
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let out = std::env::args().nth(1).map_or_else(|| scratch.path().join("run"), PathBuf::from);
    let mut config = OptimizeConfig::default();
    config.prune.pruning_ratio = 0.2;
    config.learn.max_steps_per_cycle = Some(10);
    config.measure.max_eval_windows = Some(16);
    // Less than usual, to be done in half a minute.
    config.refit.refit_samples = 32;
    let pipeline = Pipeline::new(config)?;
    println!(
        "{} steps per cycle, {:?} for heads to compete in",
        pipeline.steps_per_cycle(),
        pipeline.plan().scope
    );
    let summary = pipeline.run(&out, &mut Printer)?;
    let (before, after) = (&summary.before, &summary.after);
    println!("loss {:.4} → {:.4}", before.evaluation.loss, after.evaluation.loss);
    println!(
        "parameters {} → {}, the result is in {}",
        before.cost.parameters,
        after.cost.parameters,
        out.join("model").display()
    );
    Ok(())
}
