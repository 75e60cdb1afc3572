//! Arguments. Names and defaults are the contract; what they mean is decided in the library.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use upgrayedd::OptimizeConfig;
use upgrayedd::config::Size;
use upgrayedd::data::{DataOptions, ReadOptions};
use upgrayedd::units::Sites;

use crate::given::{Given, listed};

/// Smaller, faster Hugging Face transformers by neural plasticity cycles: score the attention heads, prune,
/// measure, grow back, learn, measure again.
#[derive(Parser)]
#[command(name = "upgrayedd", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub color: colorchoice_clap::Color,
    /// Say nothing but results and errors
    #[arg(long, global = true)]
    pub quiet: bool,
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
    /// Write a page about a run, or about several side by side
    Report(ReportArgs),
    /// Show that page while a run goes on
    Watch(WatchArgs),
    /// Print what makes a shell complete commands and options
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManArgs),
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
    /// Options from a TOML file: the run.toml of another run, or options by themselves; those given here win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run folder, which must not exist [default: runs/MODEL-STRATEGY-N]
    #[arg(long, value_name = "RUN_DIR")]
    pub out: Option<PathBuf>,
    /// Check everything, show what the first cycle would prune and what each ratio would cost before
    /// learning; writes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub options: Given<OptimizeConfig>,
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
    /// What a GPU multiplies with: bf16, tf32, f32
    #[arg(long, value_name = "NAME", default_value = "bf16")]
    pub precision: String,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct MemoryArgs {
    /// What the program may hold in memory, as in 8GB: weights are read from their files again and again, and batches are as
    /// large as fits; CPU only
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
}

#[derive(Args)]
pub struct DataArgs {
    /// File: .txt, .jsonl, .parquet, .tsv, .csv; with labels for classifiers (repeatable)
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    #[command(flatten)]
    pub read: Given<ReadOptions>,
    /// For masking and random scores
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

impl DataArgs {
    pub fn options(&self, sequence_length: usize, seed: u64) -> anyhow::Result<DataOptions> {
        Ok(DataOptions { sequence_length, read: self.read.over_defaults()?, seed })
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
    /// What is scored, a list with commas: heads, channels, attention, mlp, layers, or all (heads and channels)
    #[arg(long, value_name = "UNITS", default_value = "heads", conflicts_with = "all")]
    pub units: Sites,
    /// With --all: sequences that ablation measures each head on [default: 16]
    #[arg(long, value_name = "N")]
    pub ablation_samples: Option<usize>,
    /// Keep one block's activations at a time and compute the rest again: the same scores for less memory and
    /// more time
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// Tokens per sequence [default: 256, or the model's limit]
    #[arg(long, value_name = "N")]
    pub sequence_length: Option<usize>,
    /// Sequences per batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub batch_size: usize,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Sequences to score on at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub samples: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  upgrayedd evaluate --model runs/llama-magnitude-1 --data held-out.txt --json"
)]
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
    #[command(flatten)]
    pub memory: MemoryArgs,
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
#[command(
    after_help = "Example:\n  upgrayedd export --model runs/llama-magnitude-1 --format hf,gguf --out served/"
)]
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
    /// Where to compute: auto, cpu, cuda, cuda:N; elsewhere the last bits differ [default: as the run was started]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// What a GPU multiplies with: bf16, tf32, f32 [default: as the run was started]
    #[arg(long, value_name = "NAME")]
    pub precision: Option<String>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  upgrayedd report runs/llama-magnitude-1 runs/llama-auto-1 --out both.html"
)]
pub struct ReportArgs {
    /// Run folders, complete or not
    #[arg(value_name = "RUN_DIR", required = true)]
    pub runs: Vec<PathBuf>,
    /// File to write [default: RUN_DIR/report.html; of several, it must be given]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Args)]
#[command(after_help = "Example:\n  upgrayedd watch runs/llama-magnitude-1")]
pub struct WatchArgs {
    /// Run folders, complete or not
    #[arg(value_name = "RUN_DIR", required = true)]
    pub runs: Vec<PathBuf>,
    /// Port on 127.0.0.1, the only address that it can be seen from [default: one that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub port: u16,
}

#[derive(Args)]
#[command(
    after_help = "Example:\n  upgrayedd completions bash > ~/.local/share/bash-completion/completions/upgrayedd"
)]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[derive(Args)]
#[command(after_help = "Example:\n  upgrayedd man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder for a page about each command [default: the page of the program itself goes to stdout]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

fn family_help() -> String {
    format!("Family, for a config.json that does not tell: {}", listed(&upgrayedd::family::names()))
}

fn format_help() -> String {
    let formats = upgrayedd::export::all();
    let lines = formats.iter().map(|format| format!("- {}: {}", format.name, format.summary));
    format!("One of these, or several in one folder (hf,onnx):\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn score_help() -> String {
    listed(&upgrayedd::score::ALL.map(|score| score.name))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Of an invocation rather than of a run.
    const INVOCATION: [&str; 7] = ["config", "out", "dry_run", "json", "help", "quiet", "color"];

    #[test]
    fn every_option_is_an_argument_and_a_key_under_the_same_name() {
        let mut cli = Cli::command();
        cli.build();
        let optimize = cli.find_subcommand("optimize").expect("the main job");
        let long = |arg: &clap::Arg| arg.get_long().expect("all have names").replace('-', "_");
        let mut arguments: Vec<String> = optimize.get_arguments().map(long).collect();
        arguments.retain(|name| !INVOCATION.contains(&name.as_str()));
        let mut names = OptimizeConfig::names();
        arguments.sort_unstable();
        names.sort_unstable();
        assert_eq!(arguments, names);
        // As keys: what an option is refused for is its value, not its name.
        for name in names {
            let refused = OptimizeConfig::from_toml(&format!("{name} = {{ a = 1979-05-27 }}"));
            assert!(
                refused.is_ok() && name == "strategy_option"
                    || refused.is_err_and(|e| e.to_string().starts_with(name)),
                "{name}"
            );
        }
        let written = toml::Table::try_from(OptimizeConfig::default()).expect("TOML");
        assert!(!written.is_empty() && written.keys().all(|key| arguments.contains(key)), "{written:?}");
    }

    #[test]
    fn defaults_stand_in_the_help() {
        let mut cli = Cli::command();
        let help = cli.find_subcommand_mut("optimize").expect("the main job").render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            help.contains("grown back per cycle, 0 ≤ R ≤ 1 [default: 0.1]")
                && help.contains("loss_impact [default: auto]"),
            "{help}"
        );
    }
}
