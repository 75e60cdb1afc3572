//! Every option of a run, by what it is about: the one place where its meaning, type and default stand.

use std::path::PathBuf;

use crate::budget::{Schedule, Scope, Shape};
use crate::files::DType;
use crate::options;
use crate::price::Currency;
use crate::train::LrSchedule;
use crate::units::Sites;

use super::size::Size;
use super::strategy_option::{StrategyOption, from_table, to_table};
use super::target::Target;

options! {
    /// The run as a whole.
    RunOptions {
        /// Model folder, run folder, checkpoint of a run, Hub id (ID@REVISION for a version of it) or builtin; if absent,
        /// the built-in model on built-in text.
        model("DIR|ID"): Option<String> = None;
        /// Family, for a config.json that does not tell.
        family("NAME"): Option<String> = None;
        /// Cycles.
        num_cycles("N"): usize = 3;
        /// Save the run every N steps of learning too, not only after each cycle and when interrupted.
        checkpoint_every("N"): Option<u64> = None;
        /// Seed of every random choice.
        seed("N"): u64 = 42;
        /// Where to compute: auto, cpu, cuda, cuda:N.
        device("DEVICE"): String = "auto".to_owned();
        /// What a GPU multiplies with: bf16, tf32, f32. The CPU computes in f32.
        precision("NAME"): String = "bf16".to_owned();
        /// Threads of the program; all cores if absent.
        threads("N"): Option<usize> = None;
        /// What the program may hold in memory, as in 8GB: weights are then read from their files again and again, what is
        /// changed of them is kept in the run folder, and batches are as large as fits; the same result, to the bit, as with
        /// such batches in memory. CPU only.
        memory("SIZE"): Option<Size> = None;
        /// Element type of all weights of the result; the one that each came in if absent.
        dtype("DTYPE"): Option<DType> = None;
    }
}

options! {
    /// What is learned from and measured on.
    SourceOptions {
        /// File to learn from: .txt, .jsonl, .parquet, .tsv, .csv; with labels for classifiers (repeatable).
        data("FILE"): Vec<PathBuf> = Vec::new();
        /// File to measure on; the last tenth of the data if absent.
        eval_data("FILE"): Option<PathBuf> = None;
        /// Tokens per sequence; 256, or the model's limit if that is less, if absent.
        sequence_length("N"): Option<usize> = None;
    }
}

options! {
    /// What goes.
    PruneOptions {
        /// Which heads go.
        strategy("NAME"): String = "auto".to_owned();
        /// A parameter of the strategy, such as attention_samples=64 (repeatable; in a file a table). docs/strategies.md
        /// says which strategy has which.
        #[serde(serialize_with = "to_table", deserialize_with = "from_table")]
        strategy_option("NAME=VALUE"): Vec<StrategyOption> = Vec::new();
        /// Of the strategy's random choices; the run's seed if absent.
        strategy_seed("N"): Option<u64> = None;
        /// Share of the units that are there (of the model, where the budget is not units) pruned per cycle, 0 ≤ R
        /// < 1.
        pruning_ratio("R"): f64 = 0.3;
        /// What the pruning ratio is a share of.
        budget("NAME"): Currency = Currency::Units;
        /// What the result may have at most, in place of budget, pruning-ratio and schedule: parameters=100M, bytes=200M,
        /// or a share of the unpruned model's as in macs=0.7x.
        target("WHAT=AMOUNT"): Option<Target> = None;
        /// For a budget in latency: the times of the machine that it is meant for, as the run.toml of a run
        /// there has them; measured if absent.
        timings("FILE"): Option<PathBuf> = None;
        /// Heads that every layer keeps, unless all of its attention goes; of channels it keeps one.
        min_heads("N"): usize = 1;
        /// Where units compete; what suits the strategy if absent, mostly layer.
        scope("SCOPE"): Option<Scope> = None;
        /// What may go, a list with commas: heads, kv-groups (key/value heads with their readers), channels (of MLPs),
        /// attention, mlp (all of it in a layer), layers (both), or all (heads and channels).
        units("UNITS"): Sites = Sites::default();
        /// Whether all layers keep the same number of heads and channels (uniform), or each as many as suits it (free).
        shape("SHAPE"): Shape = Shape::Free;
        /// Of which layers keep a multiple in channels, with shape uniform.
        multiple("N"): usize = 8;
        /// How the ratio spreads over the cycles.
        schedule("SCHEDULE"): Schedule = Schedule::PerCycle;
        /// Parts in which a cycle prunes, scoring anew before each; what suits the strategy if absent, mostly
        /// 1.
        pruning_steps("N"): Option<usize> = None;
    }
}

options! {
    /// What comes back.
    GrowOptions {
        /// Share of the pruned units grown back per cycle, 0 ≤ R ≤ 1.
        growth_ratio("R"): f64 = 0.1;
        /// Multiplies the learning rate of regrown units in the cycle of their return.
        growth_lr_multiplier("X"): f64 = 5.0;
        /// Share of a cycle's steps over which regrown units are faded in, where no refit has fitted them in.
        gate_warmup("SHARE"): f64 = 0.25;
    }
}

options! {
    /// Repair by least squares.
    RefitOptions {
        /// Whether the projections that the remaining units write through are solved for anew after pruning and growing.
        #[cfg_attr(feature = "cli", arg(action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true"))]
        refit("BOOL"): bool = true;
        /// Sequences that the last refit of pruning and that of growing read; those set aside for scoring are
        /// read in any case.
        refit_samples("N"): usize = 256;
    }
}

options! {
    /// How the weights learn.
    LearnOptions {
        /// Passes over the training data per cycle.
        epochs_per_cycle("N"): usize = 1;
        /// Optimiser steps per cycle at most; 0 prunes, repairs and grows without learning.
        max_steps_per_cycle("N"): Option<u64> = None;
        /// Peak learning rate; 5e-5, or 1e-3 for the built-in model, if absent.
        learning_rate("X"): Option<f64> = None;
        /// Learning rate within a cycle after the warm-up.
        lr_schedule("NAME"): LrSchedule = LrSchedule::Linear;
        /// Steps of linear warm-up in each cycle, half of its steps at most.
        warmup_steps("N"): u64 = 8;
        /// Decoupled weight decay of matrices.
        weight_decay("X"): f64 = 0.01;
        /// Global gradient norm at most.
        max_gradient_norm("X"): f64 = 1.0;
        /// Sequences per backward pass.
        batch_size("N"): usize = 4;
        /// Backward passes per optimiser step.
        gradient_accumulation("N"): usize = 1;
        /// Keep only each block's input while learning and scoring and compute the rest again: the same bits
        /// for less memory and more time.
        #[cfg_attr(feature = "cli", arg(action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true"))]
        gradient_checkpointing("BOOL"): bool = false;
        /// Share of the loss, 0 to 1, that the teacher's predictions have; 0, or 0.5 with a teacher, if
        /// absent.
        distill("SHARE"): Option<f64> = None;
        /// The model to learn from: a folder, a run folder or a Hub id with the same tokens; the model as
        /// given if absent. For plain encoders the one whose hidden states are to be kept.
        teacher("DIR|ID"): Option<String> = None;
        /// Divides both sides' logits in distillation; not used for regression.
        distill_temperature("T"): f64 = 1.0;
    }
}

options! {
    /// What is measured, and what becomes of it.
    MeasureOptions {
        /// Held-out sequences measured at most.
        max_eval_windows("N"): Option<usize> = None;
        /// Measure before learning and every N steps of it, and keep a cycle's best state; only at its end if
        /// absent.
        eval_every("N"): Option<u64> = None;
        /// With eval_every: measurements in a row without a new best after which a cycle ends early.
        patience("N"): usize = 3;
        /// Roll back a cycle that raises the held-out loss by more nats than this.
        max_loss_increase("X"): Option<f64> = None;
        /// Let the dense model learn the same way at the end, and set it beside the result.
        #[cfg_attr(feature = "cli", arg(action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true"))]
        control("BOOL"): bool = false;
        /// A text that the model continues before and after, for the report (repeatable).
        prompt("TEXT"): Vec<String> = Vec::new();
        /// Beginnings of held-out texts that the model continues before and after, for the report.
        samples("N"): usize = 0;
    }
}
