//! The page: what the template is given, and the template.

use std::path::Path;
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;

use super::chart::{Chart, chart};
use super::importance::{Importance, importance};
use super::log::{Cycle, Log};
use super::map::{UnitMap, map};
use super::show::{counted, grouped, without_folders};
use super::table::{Row, loss_name, measured_on, rows};
use crate::config::shown_name;
use crate::record::{LayerRefit, Sample};
use crate::{Error, Result};

static TEMPLATES: LazyLock<std::result::Result<Environment<'static>, minijinja::Error>> =
    LazyLock::new(|| {
        let mut templates = Environment::new();
        templates.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        templates.add_template("page.html", include_str!("page.html"))?;
        templates.add_template("body.html", include_str!("body.html"))?;
        Ok(templates)
    });

/// What becomes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// It is kept as it is.
    Kept,
    /// It is shown by a server, beside which its script and its events are: `live.js` and `events`.
    Live,
}

/// The page of one run, or of several side by side.
///
/// # Errors
/// Returns [`Error::Malformed`] if the template cannot be filled.
pub fn page(runs: &[Log], page: Page) -> Result<String> {
    let names: Vec<String> = runs.iter().map(Log::name).collect();
    let style = include_str!("page.css");
    let live = page == Page::Live;
    let body = minijinja::Value::from_safe_string(body(runs)?);
    render(
        "page.html",
        context! { title => names.join(", "), style, live, body, version => env!("CARGO_PKG_VERSION") },
    )
}

/// What of the page changes while a run goes on.
///
/// # Errors
/// Returns what [`page`] returns.
pub fn body(runs: &[Log]) -> Result<String> {
    let shown: Vec<Run> = runs.iter().enumerate().map(|(index, log)| Run::new(log, index)).collect();
    let side_by_side = if shown.len() > 1 { side_by_side(&shown) } else { Vec::new() };
    render("body.html", context! { runs => Serde(shown), side_by_side => Serde(side_by_side) })
}

fn render(name: &str, context: minijinja::Value) -> Result<String> {
    let cannot =
        |e: minijinja::Error| Error::malformed(format!("cannot fill the page's template {name}: {e:#}"));
    let templates =
        TEMPLATES.as_ref().map_err(|e| Error::malformed(format!("the page's templates: {e:#}")))?;
    templates.get_template(name).and_then(|template| template.render(context)).map_err(cannot)
}

/// A run as the template shows it.
#[derive(Serialize)]
struct Run {
    id: String,
    name: String,
    model: String,
    state: String,
    complete: bool,
    intro: String,
    rows: Vec<Row>,
    measured: String,
    has_control: bool,
    samples: Vec<Sample>,
    map: UnitMap,
    cycles: Vec<CycleRow>,
    chart: Option<Chart>,
    importance: Option<Importance>,
    refit: Option<Refit>,
    loads: String,
    warnings: Vec<String>,
    command: String,
    facts: Vec<(&'static str, String)>,
}

#[derive(Serialize)]
struct CycleRow {
    number: usize,
    pruned: String,
    grown: String,
    loss_pruned: String,
    steps: String,
    loss_learned: String,
    outcome: &'static str,
    change: String,
    map: Option<UnitMap>,
}

#[derive(Serialize)]
struct Refit {
    cycles: Vec<usize>,
    has_attention: bool,
    has_mlp: bool,
    /// Layer → cycle → attention's and the MLP's percent.
    rows: Vec<Vec<[Option<f64>; 2]>>,
}

impl Run {
    fn new(log: &Log, index: usize) -> Self {
        let record = &log.record;
        let (config, given) = (&record.config, record.given);
        let model = match &config.run.model {
            _ if given.model => "a model in memory".to_owned(),
            Some(name) => shown_name("model", name),
            None => "the built-in model".to_owned(),
        };
        let mut known: Vec<&Path> =
            config.data.data.iter().chain(&config.data.eval_data).map(AsRef::as_ref).collect();
        known.extend(config.run.model.iter().chain(&config.learn.teacher).map(Path::new));
        let warnings = log.told.notices.iter().map(|notice| without_folders(notice, &known)).collect();
        Self {
            id: format!("run{index}"),
            name: log.name(),
            model,
            state: state(log),
            complete: log.summary.is_some(),
            intro: intro(log),
            rows: log.summary.as_ref().map_or_else(|| so_far(log), rows),
            measured: log.summary.as_ref().map(measured_on).unwrap_or_default(),
            has_control: log.summary.as_ref().is_some_and(|s| s.control.is_some()),
            samples: log.summary.as_ref().map(|s| s.samples.clone()).unwrap_or_default(),
            map: map(&log.told.layers),
            cycles: log.told.cycles.iter().map(cycle_row).collect(),
            chart: chart(log),
            importance: importance(log),
            refit: refit(log),
            loads: log.summary.as_ref().map(|s| s.loads.clone()).unwrap_or_default(),
            warnings,
            command: config.command(),
            facts: facts(log),
        }
    }
}

fn state(log: &Log) -> String {
    let planned = log.record.config.run.num_cycles;
    let Some(cycle) = log.told.cycles.last() else { return "has just begun".to_owned() };
    if log.summary.is_some() {
        return "complete".to_owned();
    }
    let steps = log.told.started.as_ref().map_or(0, |s| s.steps_per_cycle);
    let of = if planned == crate::config::OPEN_ENDED { String::new() } else { format!(" of {planned}") };
    if log.told.finished || (cycle.outcome.is_some() && cycle.number == planned) {
        return "all cycles are done, the result is being measured and written".to_owned();
    }
    let what = match (cycle.outcome, cycle.steps.last()) {
        (Some(_), _) => "done".to_owned(),
        (None, Some(step)) => format!("step {} of {}", grouped(step.step), grouped(steps)),
        (None, None) => "pruning and repairing".to_owned(),
    };
    format!("not complete: cycle {}{of}, {what}", cycle.number)
}

fn intro(log: &Log) -> String {
    let Some(started) = &log.told.started else { return String::new() };
    let [train, calibration, held_out] = started.sequences;
    let on = started.gpu.as_ref().map(|gpu| format!("; computed on {gpu}")).unwrap_or_default();
    format!(
        "{}, {} parameters, {} heads; strategy {}; {} sequences to learn from, {} to score on, {} to measure on; {} optimiser steps \
         a cycle{on}.",
        started.family,
        grouped(started.parameters as u64),
        grouped(started.heads as u64),
        log.record.config.prune.strategy,
        grouped(train as u64),
        grouped(calibration as u64),
        grouped(held_out as u64),
        grouped(started.steps_per_cycle),
    )
}

/// The table of a run that is not complete: the loss, from what has been measured last.
fn so_far(log: &Log) -> Vec<Row> {
    // Of a cycle that was rolled back nothing is left.
    let kept = |cycle: &&Cycle| cycle.outcome.is_none_or(|(accepted, _)| accepted);
    let last = log.told.cycles.iter().rev().filter(kept).find_map(|cycle| cycle.measured.last());
    let (Some(before), Some((_, _, now))) = (&log.told.baseline, last) else { return Vec::new() };
    let change = if before.loss > 0.0 {
        format!("{:+.1} %", 100.0 * (now.loss / before.loss - 1.0))
    } else {
        String::new()
    };
    let (before, after) = (format!("{:.4}", before.loss), format!("{:.4}", now.loss));
    vec![Row { name: loss_name(&now.protocol), before, after, control: None, change, better: None }]
}

fn cycle_row(cycle: &Cycle) -> CycleRow {
    use crate::event::Phase;
    let loss = |wanted: Phase| {
        let found = cycle.measured.iter().rev().find(|(phase, ..)| *phase == wanted);
        found.map(|(_, _, e)| format!("{:.4}", e.loss)).unwrap_or_default()
    };
    let (outcome, change) = match cycle.outcome {
        Some((true, change)) => ("kept", change),
        Some((false, change)) => ("rolled back", change),
        None => ("under way", None),
    };
    CycleRow {
        number: cycle.number,
        pruned: counted(&cycle.pruned),
        grown: counted(&cycle.grown),
        loss_pruned: loss(Phase::Pruned),
        steps: grouped(cycle.steps.last().map_or(0, |step| step.step)),
        loss_learned: loss(Phase::Learned),
        outcome,
        change: change.map(|change| format!("{change:+.4}")).unwrap_or_default(),
        map: cycle.map.clone(),
    }
}

fn refit(log: &Log) -> Option<Refit> {
    let found: Vec<(usize, &Vec<LayerRefit>, &Vec<LayerRefit>)> =
        log.told.cycles.iter().filter_map(|c| c.refit.as_ref().map(|(a, m)| (c.number, a, m))).collect();
    let layers = found.iter().map(|(_, a, m)| a.len().max(m.len())).max()?;
    let percent =
        |of: &[LayerRefit], layer: usize| of.get(layer).map(|l| (1000.0 * l.repaired).round() / 10.0);
    let row = |layer| found.iter().map(|(_, a, m)| [percent(a, layer), percent(m, layer)]).collect();
    Some(Refit {
        cycles: found.iter().map(|(number, ..)| *number).collect(),
        has_attention: found.iter().any(|(_, a, _)| !a.is_empty()),
        has_mlp: found.iter().any(|(_, _, m)| !m.is_empty()),
        rows: (0..layers).map(row).collect(),
    })
}

fn facts(log: &Log) -> Vec<(&'static str, String)> {
    let record = &log.record;
    let mut facts = vec![("Upgrayedd", record.program_version.clone())];
    if let Some(started) = log.told.started.as_ref().filter(|s| s.version != record.program_version) {
        facts.push(("continued by", started.version.clone()));
    }
    facts.push(("seed", record.config.run.seed.to_string()));
    facts.push(("BLAKE3 of the model as given", record.model_hash.clone()));
    facts.push(("BLAKE3 of the data", record.data_hash.clone()));
    facts.extend(record.eval_data_hash.clone().map(|hash| ("BLAKE3 of the data measured on", hash)));
    let parts =
        [(record.given.model, "model"), (record.given.data, "data"), (record.given.strategy, "strategy")];
    let parts: Vec<&str> = parts.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect();
    if !parts.is_empty() {
        facts.push(("made by a program, not by the command", parts.join(", ")));
    }
    facts
}

/// A measure's name and its values, run by run.
fn side_by_side(runs: &[Run]) -> Vec<(&'static str, Vec<String>)> {
    let mut names: Vec<&'static str> = Vec::new();
    for row in runs.iter().flat_map(|run| &run.rows) {
        if !names.contains(&row.name) {
            names.push(row.name);
        }
    }
    let value = |run: &Run, name| {
        let row = run.rows.iter().find(|row| row.name == name);
        row.map(|row| {
            if row.change.is_empty() { row.after.clone() } else { format!("{} ({})", row.after, row.change) }
        })
        .unwrap_or_default()
    };
    names.into_iter().map(|name| (name, runs.iter().map(|run| value(run, name)).collect())).collect()
}
