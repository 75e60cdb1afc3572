//! The story of a run for its result's model card: what was measured, and how to make it again.

use std::fmt::Write as _;

use crate::export::{HF, Story, card_of};
use crate::model::Model;
use crate::record::Summary;
use crate::run_dir::RunRecord;

/// The text of `README.md` for the result of a run.
pub(super) fn card(record: &RunRecord, model: &Model, summary: &Summary) -> String {
    let named = record.config.run.model.as_deref().unwrap_or("builtin");
    let base = match &model.origin {
        Some(origin) => Some(origin.clone()),
        None if record.given.model => None,
        // The path on somebody's machine is nobody else's business.
        None => Some(named.rsplit(['/', '\\']).next().unwrap_or(named).to_owned()),
    };
    let story =
        Story { base, on_hub: model.origin.is_some(), measured: measured(summary), made: made(record) };
    card_of(model, &[&HF], &story)
}

fn measured(summary: &Summary) -> String {
    let (before, after) = (&summary.before, &summary.after);
    let heads = |heads: &[Vec<usize>]| heads.iter().map(Vec::len).sum::<usize>();
    let mut text = "| | before | after |\n|---|---|---|\n".to_owned();
    let mut row = |name: &str, before: String, after: String| {
        let _ = writeln!(text, "| {name} | {before} | {after} |");
    };
    let of = format!("held-out loss ({})", after.evaluation.protocol);
    row(&of, format!("{:.4}", before.evaluation.loss), format!("{:.4}", after.evaluation.loss));
    let scores = [
        ("accuracy", before.evaluation.accuracy, after.evaluation.accuracy),
        ("F1", before.evaluation.f1, after.evaluation.f1),
        ("Spearman's correlation", before.evaluation.spearman, after.evaluation.spearman),
    ];
    for (name, before, after) in scores {
        if let (Some(before), Some(after)) = (before, after) {
            row(name, format!("{before:.4}"), format!("{after:.4}"));
        }
    }
    row("attention heads", heads(&before.heads).to_string(), heads(&after.heads).to_string());
    let channels = |channels: &[usize]| channels.iter().sum::<usize>().to_string();
    row("MLP channels", channels(&before.channels), channels(&after.channels));
    row("parameters", before.cost.parameters.to_string(), after.cost.parameters.to_string());
    let macs = |macs: u64| format!("{:.1} M", macs as f64 / 1e6);
    row("multiply-adds per token", macs(before.cost.macs_per_token), macs(after.cost.macs_per_token));
    let _ = write!(
        text,
        "\nMeasured on {} sequences of up to {} tokens that nothing was learned from. {} tokens were learned.\n",
        after.evaluation.sequences, after.evaluation.window, summary.tokens_learned
    );
    if let Some(control) = &summary.control {
        let loss = control.evaluation.loss;
        let _ = writeln!(text, "The dense model that learned the same way has a held-out loss of {loss:.4}.");
    }
    text
}

fn made(record: &RunRecord) -> String {
    let mut text = "## How it was made\n\n".to_owned();
    if record.given.model || record.given.data || record.given.strategy {
        text.push_str(
            "From Python, with parts that were in memory; the options of the run beside these:\n\n",
        );
    }
    let _ = writeln!(text, "```sh\n{}\n```\n", record.config.command());
    let _ = writeln!(text, "- Upgrayedd {}", record.program_version);
    let _ = writeln!(text, "- BLAKE3 of the model as it was given: `{}`", record.model_hash);
    let _ = writeln!(text, "- BLAKE3 of the data: `{}`", record.data_hash);
    if let Some(hash) = &record.eval_data_hash {
        let _ = writeln!(text, "- BLAKE3 of the data that was measured on: `{hash}`");
    }
    text
}
