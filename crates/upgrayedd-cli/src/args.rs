//! Arguments. Names and defaults are the contract; what they mean is decided in the library.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use upgrayedd::data::DataOptions;

/// Smaller, faster Hugging Face transformers by neural plasticity cycles: score the attention heads, prune, measure,
/// grow back, learn, measure again.
#[derive(Parser)]
#[command(name = "upgrayedd", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Optimise a model: the main job
    Optimize(Box<OptimizeArgs>),
    /// Score the attention heads of a model
    Score(ScoreArgs),
    /// Measure loss and perplexity (or accuracy)
    Evaluate(EvaluateArgs),
    /// Show family, heads, parameters, bytes, arithmetic and KV cache of a model
    Inspect(InspectArgs),
    /// Continue a text
    Generate(GenerateArgs),
    /// Write a model for other programs
    Export(ExportArgs),
    /// Continue an interrupted run to the same result
    Resume(ResumeArgs),
}

const OPTIMIZE_EXAMPLES: &str = "\
Examples:
  upgrayedd optimize
      the whole cycle in about a minute, on a small model and text that are built in
  upgrayedd optimize --model HuggingFaceTB/SmolLM2-135M --data my-text.txt
      3 cycles; the result is in the run folder's model/
  upgrayedd optimize --model ./llama --data a.jsonl --data b.parquet --strategy entropy --pruning-ratio 0.2 --num-cycles 2
  upgrayedd optimize --model ./bert --data train.tsv --text-field sentence --scope global --max-loss-increase 0.05
  upgrayedd optimize --config run.toml --seed 7
      options from a file (same names, with underscores); options given here win
  upgrayedd optimize --model ./llama --data my-text.txt --dry-run
      check everything and show what would be pruned first";

#[derive(Args)]
#[command(after_help = OPTIMIZE_EXAMPLES)]
pub struct OptimizeArgs {
    /// Model folder, run folder or Hub id, of which ID@REVISION names a version [default: a small built-in model]
    #[arg(long, value_name = "DIR|ID")]
    pub model: Option<String>,
    /// File to learn from: .txt, .jsonl, .parquet, .tsv, .csv; with labels for classifiers (repeatable)
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// File to measure on [default: the last tenth of the data]
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    #[arg(long, value_name = "NAME", help = strategy_help())]
    pub strategy: Option<String>,
    /// A parameter of the strategy, such as attention_samples=64 or weight_threshold=0.02 (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    pub strategy_option: Vec<String>,
    /// Share of the active heads pruned per cycle, 0 ≤ r < 1 [default: 0.3]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub pruning_ratio: Option<f64>,
    /// What the pruning ratio is a share of: heads, parameters, macs, or latency measured on this machine [default: heads]
    #[arg(long, value_name = "NAME")]
    pub budget: Option<String>,
    /// Share of the pruned heads grown back per cycle, 0 ≤ r ≤ 1 [default: 0.1]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub growth_ratio: Option<f64>,
    /// Heads that every layer keeps [default: 1]
    #[arg(long, value_name = "N")]
    pub min_heads: Option<usize>,
    /// Where heads compete: layer or global [default: what suits the strategy, mostly layer]
    #[arg(long, value_name = "SCOPE")]
    pub scope: Option<String>,
    #[arg(long, value_name = "UNITS", help = units_help())]
    pub units: Option<String>,
    /// per-cycle: the ratio in every cycle; target: the ratio of the original heads at the end [default: per-cycle]
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// Prune each cycle in this many parts, scoring anew before each [default: what suits the strategy, mostly 1]
    #[arg(long, value_name = "N")]
    pub steps_per_cycle: Option<usize>,
    /// Do not repair the remaining heads' output projections by least squares after pruning
    #[arg(long)]
    pub no_refit: bool,
    /// Sequences that the last refit of a cycle reads; those to score on are read in any case [default: 256]
    #[arg(long, value_name = "N")]
    pub refit_samples: Option<usize>,
    /// Cycles [default: 3]
    #[arg(long, value_name = "N")]
    pub num_cycles: Option<usize>,
    /// Passes over the training data per cycle [default: 1]
    #[arg(long, value_name = "N")]
    pub epochs_per_cycle: Option<usize>,
    /// Optimiser steps per cycle at most; 0 prunes, repairs and grows without learning
    #[arg(long, value_name = "N")]
    pub max_steps_per_cycle: Option<u64>,
    /// Peak learning rate [default: 5e-5; 1e-3 for the built-in model]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Learning rate within a cycle: linear, cosine or constant [default: linear]
    #[arg(long, value_name = "NAME")]
    pub lr_schedule: Option<String>,
    /// Steps of learning-rate warm-up per cycle, half of its steps at most [default: 8]
    #[arg(long, value_name = "N")]
    pub warmup_steps: Option<u64>,
    /// Sequences per backward pass [default: 4]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Backward passes per optimiser step [default: 1]
    #[arg(long, value_name = "N")]
    pub gradient_accumulation: Option<usize>,
    /// Keep only each block's input while learning and scoring and compute the rest again: the same result for less memory and more
    /// time
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Tokens per sequence [default: 256, or the model's limit]
    #[arg(long, value_name = "N")]
    pub sequence_length: Option<usize>,
    /// Held-out sequences measured at most
    #[arg(long, value_name = "N")]
    pub max_eval_windows: Option<usize>,
    /// Share of the loss, 0 to 1, that the teacher's predictions have while learning [default: 0; 0.5 with --teacher]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub distill: Option<f64>,
    /// The model to learn from: a folder, a run folder or a Hub id (ID@REVISION for a version of it) with the same tokens [default: the model as given]
    #[arg(long, value_name = "DIR|ID")]
    pub teacher: Option<String>,
    /// With --distill or --teacher: divides the logits in distillation [default: 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub distill_temperature: Option<f64>,
    /// Measure before learning and every N steps of it, keep the best state, and stop early when none is better
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Save the run every N steps of learning too, not only after each cycle and when interrupted
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<u64>,
    /// With --eval-every: measurements without a new best before a cycle ends [default: 3]
    #[arg(long, value_name = "N")]
    pub patience: Option<usize>,
    /// Roll a cycle back that raises the held-out loss by more nats than this
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub max_loss_increase: Option<f64>,
    /// Of every random choice [default: 42]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where to compute: auto, cpu, cuda, cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Element type of all weights of the result: float32, float16 or bfloat16 [default: the one that each came in]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<String>,
    /// Field or column with the text [default: text, then sentence]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Field or column with a second text, which a classifier reads after the first
    #[arg(long, value_name = "NAME")]
    pub text_pair_field: Option<String>,
    /// Field or column with the label, or the number for regression [default: label]
    #[arg(long, value_name = "NAME")]
    pub label_field: Option<String>,
    /// What stands between the cells of a .tsv or .csv file, or tab [default: tabs, or what a .csv file begins with]
    #[arg(long, value_name = "CHAR", value_parser = upgrayedd::data::delimiter)]
    pub delimiter: Option<char>,
    /// Names of the columns of a .tsv or .csv file that has no line with them; cells beyond them are not read
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// packed: documents end to end; separate: each a padded sequence, .txt by lines [default: packed]
    #[arg(long, value_name = "MODE")]
    pub documents: Option<String>,
    #[arg(long, value_name = "NAME", help = family_help())]
    pub family: Option<String>,
    /// Run folder, which must not exist [default: runs/MODEL-STRATEGY-N]
    #[arg(long, value_name = "RUN_DIR")]
    pub out: Option<PathBuf>,
    /// Options from a TOML file: the run.toml of another run, or options by themselves
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    /// Check everything, show what the first cycle would prune and what each ratio would cost before learning; writes nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct ModelArgs {
    /// Model folder, run folder or Hub id (ID@REVISION for a version of it)
    #[arg(long, value_name = "DIR|ID")]
    pub model: String,
    #[arg(long, value_name = "NAME", help = family_help())]
    pub family: Option<String>,
    /// Where to compute: auto, cpu, cuda, cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct DataArgs {
    /// File: .txt, .jsonl, .parquet, .tsv, .csv; with labels for classifiers (repeatable)
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// Field or column with the text [default: text, then sentence]
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Field or column with a second text, which a classifier reads after the first
    #[arg(long, value_name = "NAME")]
    pub text_pair_field: Option<String>,
    /// Field or column with the label, or the number for regression
    #[arg(long, value_name = "NAME", default_value = "label")]
    pub label_field: String,
    /// What stands between the cells of a .tsv or .csv file, or tab [default: tabs, or what a .csv file begins with]
    #[arg(long, value_name = "CHAR", value_parser = upgrayedd::data::delimiter)]
    pub delimiter: Option<char>,
    /// Names of the columns of a .tsv or .csv file that has no line with them; cells beyond them are not read
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// packed: documents end to end; separate: each a padded sequence, .txt by lines
    #[arg(long, value_name = "MODE", default_value = "packed")]
    pub documents: String,
    /// For masking and random scores
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

impl DataArgs {
    pub fn options(&self, sequence_length: usize, seed: u64) -> upgrayedd::Result<DataOptions> {
        Ok(DataOptions {
            sequence_length,
            text_field: self.text_field.clone(),
            text_pair_field: self.text_pair_field.clone(),
            label_field: self.label_field.clone(),
            delimiter: self.delimiter,
            columns: self.columns.clone(),
            documents: self.documents.parse()?,
            seed,
        })
    }
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  upgrayedd score --model ./llama --data my-text.txt --score fisher --json\n  upgrayedd score --model ./llama --data my-text.txt --all"
)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[arg(long, value_name = "NAME", required_unless_present = "all", help = score_help())]
    pub score: Option<String>,
    /// Every score, and the rank correlation of each with exact ablation (loss_impact)
    #[arg(long, conflicts_with = "score")]
    pub all: bool,
    /// With --all: sequences that ablation measures each head on [default: 16]
    #[arg(long, value_name = "N")]
    pub ablation_samples: Option<usize>,
    /// Keep one block's activations at a time and compute the rest again: the same scores for less memory and more time
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Tokens per sequence [default: 256, or the model's limit]
    #[arg(long, value_name = "N")]
    pub sequence_length: Option<usize>,
    /// Sequences per batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batch_size: usize,
    /// Sequences to score on at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub samples: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Example:\n  upgrayedd evaluate --model runs/llama-magnitude-1 --data held-out.txt --json")]
pub struct EvaluateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    /// For plain encoders: the model whose hidden states these are compared with
    #[arg(long, value_name = "DIR|ID")]
    pub reference: Option<String>,
    /// Tokens per window [default: 512, or the model's limit]
    #[arg(long, value_name = "N")]
    pub sequence_length: Option<usize>,
    /// Windows measured at most
    #[arg(long, value_name = "N")]
    pub max_eval_windows: Option<usize>,
    /// Sequences per batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batch_size: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Example:\n  upgrayedd inspect runs/llama-magnitude-1 --json")]
pub struct InspectArgs {
    /// Model folder, run folder or Hub id (ID@REVISION for a version of it)
    #[arg(value_name = "MODEL")]
    pub model: String,
    #[arg(long, value_name = "NAME", help = family_help())]
    pub family: Option<String>,
    /// Visible keys that attention's arithmetic is counted for
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub context: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  upgrayedd generate --model ./llama --prompt \"Once upon a time\" --temperature 0.8 --top-p 0.95"
)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Tokens to add at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,
    /// With --temperature: samples among the likeliest tokens that make up this probability [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// For sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Print JSON with token ids and speed
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Example:\n  upgrayedd export --model runs/llama-magnitude-1 --format hf-dense --out dense/")]
pub struct ExportArgs {
    /// Model folder, run folder or Hub id (ID@REVISION for a version of it)
    #[arg(long, value_name = "DIR|ID")]
    pub model: String,
    #[arg(long, value_name = "FORMAT", help = format_help())]
    pub format: String,
    /// Folder to write, which must not exist
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// float32, float16 or bfloat16 for all weights [default: the one that each came in]
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<String>,
    #[arg(long, value_name = "NAME", help = family_help())]
    pub family: Option<String>,
}

#[derive(Args)]
#[command(after_help = "Example:\n  upgrayedd resume runs/llama-magnitude-1")]
pub struct ResumeArgs {
    /// Folder of a run that was interrupted
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,
    /// Threads; the result does not depend on them [default: as the run was started]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

/// `a, b or c`.
fn listed(names: &[&str]) -> String {
    match names {
        [front @ .., last] if !front.is_empty() => format!("{} or {last}", front.join(", ")),
        names => names.concat(),
    }
}

fn family_help() -> String {
    format!("Family, for a config.json that does not tell: {}", listed(&upgrayedd::family::names()))
}

fn format_help() -> String {
    let formats = upgrayedd::export::all();
    formats.iter().map(|format| format!("{}: {}", format.name, format.summary)).collect::<Vec<_>>().join("; ")
}

fn strategy_help() -> String {
    format!(
        "Which heads go: {} [default: {}; recommended: auto]",
        listed(&upgrayedd::strategy::ALL.map(|strategy| strategy.name)),
        upgrayedd::config::OptimizeConfig::default().strategy
    )
}

fn score_help() -> String {
    listed(&upgrayedd::score::ALL.map(|score| score.name))
}

fn units_help() -> String {
    format!("What goes at once: {} [default: heads]", listed(&upgrayedd::units::Site::PRUNABLE.map(upgrayedd::units::Site::name)))
}
