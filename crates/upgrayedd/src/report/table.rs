//! Before and after, row by row, for every place that shows them.

use super::show::grouped;
use crate::record::{Snapshot, Summary};

/// What else is to be known of the table: on what it was measured, and what learning alone has done.
pub fn measured_on(summary: &Summary) -> String {
    let (e, speed) = (&summary.after.evaluation, &summary.after.speed);
    let learned = grouped(summary.tokens_learned);
    let learning = match &summary.control {
        Some(control) => {
            let excess = e.loss - control.evaluation.loss;
            let than = if excess < 0.0 { "less" } else { "more" };
            let same = summary.control_tokens_learned.unwrap_or(summary.tokens_learned);
            let learned = if same == summary.tokens_learned {
                format!("Both learned from {learned} targets of this text")
            } else {
                format!(
                    "The result learned from {learned} targets of this text, the dense model, which stopped by itself, from {}",
                    grouped(same)
                )
            };
            format!(
                "{learned}: the result's loss is {:.4} {than} than that of the dense model that learned the same way.",
                excess.abs()
            )
        }
        None => {
            format!("The model learned from {learned} targets of this text, which lowers its loss by itself.")
        }
    };
    format!(
        "Measured on {} held-out targets in {} sequences (protocol {}, window {}); speed at batch {} × {} on {}.\n{learning}",
        grouped(e.tokens),
        e.sequences,
        e.protocol,
        e.window,
        speed.batch,
        speed.length,
        summary.gpu.as_ref().map_or("this machine".to_owned(), ToString::to_string),
    )
}

/// What was measured or counted, on the model as given and on the result.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Row {
    /// Of what.
    pub name: &'static str,
    /// The model as given.
    pub before: String,
    /// The result.
    pub after: String,
    /// The dense model after learning the same way, where that was asked for.
    pub control: Option<String>,
    /// The change from before to after in percent; empty where there was nothing before.
    pub change: String,
    /// Whether it has become better; `None` where it is the same, or neither better nor worse.
    pub better: Option<bool>,
}

/// Which way is better.
#[derive(Clone, Copy)]
enum Wanted {
    Less,
    More,
    Either,
}

/// A name, digits behind the point, what is wanted, and where the value is.
type Measure<'a> = (&'static str, usize, Wanted, &'a dyn Fn(&Snapshot) -> Option<f64>);

/// What a loss is called that was measured so.
pub(super) fn loss_name(protocol: &str) -> &'static str {
    match protocol {
        "hidden states" => "distance of hidden states",
        "numbers" => "mean squared error",
        _ => "held-out loss (nats)",
    }
}

/// The table of a run's outcome.
pub fn rows(summary: &Summary) -> Vec<Row> {
    use Wanted::{Either, Less, More};
    let loss = loss_name(&summary.before.evaluation.protocol);
    let percent = |share: Option<f64>| share.map(|share| 100.0 * share);
    let count = |n: usize| Some(n as f64);
    let measures: [Measure<'_>; 13] = [
        (loss, 4, Less, &|s| Some(s.evaluation.loss)),
        ("perplexity", 3, Less, &|s| s.evaluation.perplexity),
        ("accuracy (%)", 2, More, &|s| percent(s.evaluation.accuracy)),
        ("F1 (%)", 2, More, &|s| percent(s.evaluation.f1)),
        ("Spearman correlation", 4, More, &|s| s.evaluation.spearman),
        ("heads", 0, Either, &|s| count(s.heads.iter().map(Vec::len).sum())),
        ("channels", 0, Either, &|s| count(s.channels.iter().sum())),
        ("parameters", 0, Less, &|s| count(s.cost.parameters)),
        ("bytes", 0, Less, &|s| count(s.cost.bytes)),
        ("MACs per token", 0, Less, &|s| Some(s.cost.macs_per_token as f64)),
        ("KV cache bytes per token", 0, Less, &|s| {
            count(s.cost.kv_cache_bytes_per_token).filter(|bytes| *bytes > 0.0)
        }),
        ("tokens per second, forward", 0, More, &|s| Some(s.speed.forward)),
        ("tokens per second, decoding", 1, More, &|s| s.speed.decode),
    ];
    measures.iter().filter_map(|measure| row(measure, summary)).collect()
}

fn row((name, digits, wanted, get): &Measure<'_>, summary: &Summary) -> Option<Row> {
    let (before, after) = (get(&summary.before)?, get(&summary.after)?);
    let show = |v: f64| if *digits == 0 { grouped(v.round() as u64) } else { format!("{v:.digits$}") };
    let change =
        if before > 0.0 { format!("{:+.1} %", 100.0 * (after / before - 1.0)) } else { String::new() };
    let better = match wanted {
        _ if show(before) == show(after) => None,
        Wanted::Less => Some(after < before),
        Wanted::More => Some(after > before),
        Wanted::Either => None,
    };
    let control = summary.control.as_ref().and_then(get).map(show);
    Some(Row { name, before: show(before), after: show(after), control, change, better })
}
