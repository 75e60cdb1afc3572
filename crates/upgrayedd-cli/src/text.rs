//! Results as text: the before → after table and the map of heads.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use upgrayedd::memory::{Stage, shown};
use upgrayedd::model::Cost;
use upgrayedd::pipeline::Forecast;
use upgrayedd::record::Evaluation;
use upgrayedd::report::{self, grouped};
use upgrayedd::score::Score;
use upgrayedd::units::{LayerUnits, Scores, Site};
use upgrayedd::{Model, Summary};

/// What is there, what is not, titles, and changes for better and worse.
const KEPT: Style = AnsiColor::Blue.on_default();
const GONE: Style = Style::new().dimmed();
const TITLE: Style = Style::new().bold();
const BETTER: Style = AnsiColor::Green.on_default();
const WORSE: Style = AnsiColor::Yellow.on_default();

static SILENT: AtomicBool = AtomicBool::new(false);

/// Whether results are another process's to print.
pub fn set_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Prints to stdout, in colours where that is wanted; a reader that went away is not an error.
pub fn print(text: &str) {
    use std::io::Write;
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    let mut out = anstream::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Aligned columns with a style each: the first to the left, the others to the right.
fn table(rows: &[Vec<(String, Style)>]) -> String {
    let length = |text: &str| text.chars().count();
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|c| rows.iter().map(|row| length(&row[c].0)).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, (text, style)) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c] - length(text));
            let styled = if text.is_empty() { String::new() } else { format!("{style}{text}{style:#}") };
            let _ = if c == 0 { write!(line, "{styled}{pad}") } else { write!(line, "  {pad}{styled}") };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// The outcome of a run.
pub fn summary(summary: &Summary) -> String {
    let after = &summary.after;
    let plain = Style::new();
    let titles = [
        Some(""),
        Some("before"),
        summary.control.as_ref().map(|_| "dense, learned"),
        Some("after"),
        Some("change"),
    ];
    let mut rows =
        vec![titles.into_iter().flatten().map(|title| (title.to_owned(), TITLE)).collect::<Vec<_>>()];
    rows.extend(report::rows(summary).into_iter().map(|row| {
        let style = row.better.map_or(plain, |better| if better { BETTER } else { WORSE });
        let control = summary.control.as_ref().map(|_| (row.control.unwrap_or_default(), plain));
        let cells = [
            Some((row.name.to_owned(), plain)),
            Some((row.before, plain)),
            control,
            Some((row.after, plain)),
            Some((row.change, style)),
        ];
        cells.into_iter().flatten().collect()
    }));
    let mut text = format!(
        "{}\n{}\n\n{}\n",
        table(&rows),
        report::measured_on(summary),
        unit_map((&after.heads, &summary.heads_per_layer), (&after.channels, &summary.channels_per_layer)),
    );
    for sample in &summary.samples {
        let _ = writeln!(
            text,
            "{TITLE}{}{TITLE:#}\n  before: {}\n  after:  {}\n",
            sample.prompt.trim(),
            sample.before.trim(),
            sample.after.trim()
        );
    }
    let _ = write!(
        text,
        "Result: {}\nIt is {}.\nPage:   {}",
        summary.run.join("model").display(),
        summary.loads,
        summary.run.join(report::REPORT_FILE).display()
    );
    text
}

/// A row per layer: █ a head that is there, · one that is gone; and how many channels of how many, where some
/// have gone.
fn unit_map(
    (heads, head_totals): (&[Vec<usize>], &[usize]),
    (channels, channel_totals): (&[usize], &[usize]),
) -> String {
    let narrower = channels != channel_totals;
    let title = if narrower { ", and channels" } else { "" };
    let mut out = format!("Heads (█ kept, · pruned){title}:\n");
    for (layer, (active, &total)) in heads.iter().zip(head_totals).enumerate() {
        let cell = |h| {
            if active.contains(&h) { format!("{KEPT}█{KEPT:#}") } else { format!("{GONE}·{GONE:#}") }
        };
        let row: String = (0..total).map(cell).collect();
        let _ = write!(out, "  layer {layer:>3} {row} {}", active.len());
        if let (true, Some(left), Some(of)) = (narrower, channels.get(layer), channel_totals.get(layer)) {
            let _ = write!(
                out,
                "{:pad$}  {left} of {of} channels",
                "",
                pad = total.to_string().len() - active.len().to_string().len()
            );
        }
        let _ = writeln!(out);
    }
    out
}

/// A held-out measurement.
pub fn evaluation(e: &Evaluation) -> String {
    let mut out = format!("loss        {:.6}\n", e.loss);
    if let Some(perplexity) = e.perplexity {
        let _ = writeln!(out, "perplexity  {perplexity:.4}");
    }
    if let Some(accuracy) = e.accuracy {
        let _ = writeln!(out, "accuracy    {:.2} %", 100.0 * accuracy);
    }
    if let Some(f1) = e.f1 {
        let _ = writeln!(out, "F1          {:.2} %", 100.0 * f1);
    }
    if let Some(spearman) = e.spearman {
        let _ = writeln!(out, "Spearman    {spearman:.4}");
    }
    let _ = write!(
        out,
        "targets     {}\nsequences   {}\nprotocol    {}, window {}\ndata        {}",
        e.tokens, e.sequences, e.protocol, e.window, e.data_hash
    );
    out
}

/// What `inspect` shows.
pub fn inspection(model: &Model, cost: &Cost) -> String {
    let units = model.units();
    let heads: Vec<Vec<usize>> = units.layers().iter().map(|l| l.active().to_vec()).collect();
    let of =
        |count: &dyn Fn(&LayerUnits) -> usize| -> Vec<usize> { units.layers().iter().map(count).collect() };
    let totals = of(&LayerUnits::total);
    let (channels, channel_totals) = (of(&|l| l.count(Site::Channel)), of(&|l| l.total_of(Site::Channel)));
    let kv = units.count(Site::KvGroup);
    let mut out = format!(
        "family          {} ({})\nlayers          {}\nheads           {} of {} (head_dim {})\nKV heads        {kv} of {}\n\
         channels        {} of {}\nparameters      {}\nbytes           {} ({})\nMACs per token  {} (at {} visible keys)\n",
        model.family().model_type,
        model.spec().objective.name(),
        model.spec().num_layers(),
        model.units().num_active(),
        model.units().total(),
        model.spec().head_dim,
        units.total_of(Site::KvGroup),
        grouped(units.count(Site::Channel) as u64),
        grouped(units.total_of(Site::Channel) as u64),
        grouped(cost.parameters as u64),
        grouped(cost.bytes as u64),
        model.dtype().name(),
        grouped(cost.macs_per_token),
        cost.context,
    );
    if cost.kv_cache_bytes_per_token > 0 {
        let _ = writeln!(
            out,
            "KV cache        {} bytes per token",
            grouped(cost.kv_cache_bytes_per_token as u64)
        );
    }
    let _ = write!(out, "\n{}", unit_map((&heads, &totals), (&channels, &channel_totals)).trim_end());
    out
}

/// A row of scores per layer.
pub fn scores(score: &Score, model: &Model, scores: &Scores) -> String {
    let direction = if score.shown_negated { "higher = prune" } else { "higher = keep" };
    let mut out = format!("{}: {} ({direction})\n", score.name, score.summary);
    // Four digits of the largest score: those of a loss's gradients are small.
    let largest = scores.values().map(f64::abs).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let decimals = if largest > 0.0 { (3.0 - largest.log10().floor()).clamp(4.0, 16.0) as usize } else { 4 };
    let paths = model.paths();
    for (place, values) in scores.iter() {
        let units = model.units().layers()[place.layer].units(place.site);
        let row = if place.site == Site::Head {
            let each = units.iter().zip(values).map(|(unit, v)| format!("{unit}:{v:.decimals$}"));
            each.collect::<Vec<String>>().join("  ")
        } else if place.site.is_block() {
            let each = values.iter().map(|v| format!("{} {v:.decimals$}", place.site.one()));
            each.collect::<String>()
        } else {
            // There are too many to be named.
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            let at =
                |share: f64| sorted.get((share * (sorted.len().max(1) - 1) as f64) as usize).unwrap_or(&0.0);
            let shown = [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| format!("{:.2e}", at(share)));
            format!("{} {}: least, quartiles and most {}", units.len(), place.site.name(), shown.join("  "))
        };
        let _ = writeln!(out, "  {}  {row}", paths.of(place.site)[place.layer]);
    }
    out.trim_end().to_owned()
}

/// How well each score's order agrees with exact ablation, best first.
pub fn correlations(rows: &[(&str, Option<f64>)]) -> String {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| b.1.unwrap_or(-2.0).total_cmp(&a.1.unwrap_or(-2.0)));
    let mut out = "Rank correlation with exact ablation (loss_impact), 1 at best:\n".to_owned();
    for (name, correlation) in rows {
        let value =
            correlation.map_or("undefined: all heads score the same".to_owned(), |c| format!("{c:+.3}"));
        let _ = writeln!(out, "  {name:<12}{value}");
    }
    out.trim_end().to_owned()
}

/// What a run with `--memory` would hold.
pub fn memory(stages: &[Stage]) -> String {
    let each: Vec<String> =
        stages.iter().map(|stage| format!("{} {}", stage.name, shown(stage.bytes))).collect();
    let most = stages.iter().map(|stage| stage.bytes).max().unwrap_or(0);
    format!(
        "In memory at most, with --memory, which keeps weights out of it: {} ({}).\n",
        shown(most),
        each.join(", ")
    )
}

/// What each ratio of what `budget` counts would cost.
pub fn forecast(budget: &str, before: f64, rows: &[Forecast]) -> String {
    let mut out = format!(
        "What pruning a share of the {budget} would cost before learning, each built on the one before (held-out loss now \
         {before:.4}):\n"
    );
    let _ = writeln!(
        out,
        "  {:>6}  {:>6}  {:>9}  {:>14}  {:>8}  {:>8}",
        "ratio", "heads", "channels", "parameters", "loss", "excess"
    );
    for row in rows {
        let (percent, excess) = (100.0 * row.ratio, row.loss - before);
        let (channels, parameters) = (grouped(row.channels as u64), grouped(row.parameters as u64));
        let _ = writeln!(
            out,
            "  {percent:>4.0} %  {:>6}  {channels:>9}  {parameters:>14}  {:>8.4}  {excess:>+8.4}",
            row.active, row.loss
        );
    }
    out.trim_end().to_owned()
}
