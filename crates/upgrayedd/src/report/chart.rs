//! Where the loss went, as the geometry of a drawing: cycle by cycle, each with a stretch in which units went and came back,
//! and one in which the model learned.

use serde::Serialize;

use super::log::{Cycle, Log, Step};
use super::show::{counted, grouped};
use crate::event::Phase;
use crate::record::Evaluation;

/// The drawing's size, and how much of it the axes take.
const SIZE: (f64, f64) = (760.0, 300.0);
const MARGIN: (f64, f64, f64, f64) = (56.0, 16.0, 12.0, 40.0);
/// Points that a line of training losses has at most: it is as sharp as a screen shows.
const BUCKETS: usize = 380;
/// Points on either side that a running mean takes in at most.
const TREND: usize = 12;

/// What is drawn.
#[derive(Debug, Serialize)]
pub(super) struct Chart {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    y_ticks: Vec<Tick>,
    bands: Vec<Band>,
    training: String,
    /// The same as a running mean.
    trend: String,
    /// Between the least and the largest loss of what a point stands for; empty where each stands for one step.
    envelope: String,
    held_out: String,
    hovers: Vec<Band>,
    dots: Vec<Dot>,
    summary: String,
    has_steps: bool,
}

#[derive(Debug, Serialize)]
struct Tick {
    at: f64,
    label: String,
}

/// A stretch of the horizontal axis.
#[derive(Debug, Serialize)]
struct Band {
    x: f64,
    width: f64,
    label: String,
    title: String,
}

#[derive(Debug, Serialize)]
struct Dot {
    x: f64,
    y: f64,
    kind: &'static str,
    title: String,
}

/// Steps that share a point.
struct Bucket {
    cycle: usize,
    first: Step,
    last: u64,
    at: f64,
    mean: f64,
    least: f64,
    most: f64,
}

/// Where a cycle lies on the horizontal axis, in steps.
struct Stretch<'a> {
    cycle: &'a Cycle,
    begins: f64,
    learns: f64,
    ends: f64,
}

/// The drawing of a run, if anything was measured.
pub(super) fn chart(log: &Log) -> Option<Chart> {
    let baseline = log.told.baseline.as_ref()?;
    let stretches = stretches(log);
    let end = stretches.last().map_or(1.0, |s| s.ends);
    let (left, top) = (MARGIN.0, MARGIN.1);
    let (right, bottom) = (SIZE.0 - MARGIN.2, SIZE.1 - MARGIN.3);
    let x = |at: f64| round(left + (right - left) * at / end);
    let buckets = buckets(&stretches);
    let measured = measured(&stretches, baseline, log.told.result.as_ref(), end);
    let (low, high) = range(&buckets, &measured);
    let y = |loss: f64| round(bottom - (bottom - top) * ((loss.clamp(low, high) - low) / (high - low)));
    let ticks = ticks(low, high);
    let trend = running_means(&buckets);
    let lines = |value: &dyn Fn(usize, &Bucket) -> f64| {
        let mut path = String::new();
        for (index, bucket) in buckets.iter().enumerate() {
            let starts = index == 0 || buckets[index - 1].cycle != bucket.cycle;
            path.push_str(&format!(
                "{}{} {}",
                if starts { 'M' } else { 'L' },
                x(bucket.at),
                y(value(index, bucket))
            ));
        }
        path
    };
    let envelope = if buckets.iter().any(|b| b.first.step != b.last) {
        envelope(&buckets, &x, &y)
    } else {
        String::new()
    };
    let mut held_out = String::new();
    for (index, point) in measured.iter().enumerate() {
        let starts = index == 0 || point.after_roll_back;
        held_out.push_str(&format!(
            "{}{} {}",
            if starts { 'M' } else { 'L' },
            x(point.at),
            y(point.evaluation.loss)
        ));
    }
    Some(Chart {
        width: SIZE.0,
        height: SIZE.1,
        left,
        right,
        top,
        bottom,
        y_ticks: ticks.into_iter().map(|(at, label)| Tick { at: y(at), label }).collect(),
        bands: stretches.iter().map(|stretch| band(stretch, &x)).collect(),
        training: lines(&|_, bucket| bucket.mean),
        trend: lines(&|index, _| trend[index]),
        envelope,
        held_out,
        hovers: hovers(&buckets, &x),
        dots: measured.iter().map(|point| point.dot(&x, &y)).collect(),
        summary: said(&measured),
        has_steps: !buckets.is_empty(),
    })
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn stretches(log: &Log) -> Vec<Stretch<'_>> {
    let planned = log.told.started.as_ref().map_or(0, |s| s.steps_per_cycle);
    let learned = |cycle: &Cycle| {
        let steps = cycle.steps.last().map_or(0, |step| step.step);
        // What is under way has its whole place already.
        if cycle.outcome.is_some() { steps } else { steps.max(planned) }
    };
    let total: u64 = log.told.cycles.iter().map(learned).sum();
    let gap = (total as f64 / 14.0).max(1.0);
    let mut at = 0.0;
    let stretch = |cycle| {
        let begins = at;
        at += gap + learned(cycle) as f64;
        Stretch { cycle, begins, learns: begins + gap, ends: at }
    };
    log.told.cycles.iter().map(stretch).collect()
}

fn buckets(stretches: &[Stretch<'_>]) -> Vec<Bucket> {
    let steps: usize = stretches.iter().map(|s| s.cycle.steps.len()).sum();
    let size = steps.div_ceil(BUCKETS).max(1);
    let of_cycle = |stretch: &Stretch<'_>| {
        let bucket = |chunk: &[Step]| {
            let losses = || chunk.iter().map(|step| step.loss);
            let (first, last) = (chunk[0], chunk[chunk.len() - 1].step);
            Bucket {
                cycle: stretch.cycle.number,
                first,
                last,
                at: stretch.learns + (first.step as f64 + last as f64) / 2.0,
                mean: losses().sum::<f64>() / chunk.len() as f64,
                least: losses().fold(f64::INFINITY, f64::min),
                most: losses().fold(f64::NEG_INFINITY, f64::max),
            }
        };
        stretch.cycle.steps.chunks(size).map(bucket).collect::<Vec<_>>()
    };
    stretches.iter().flat_map(of_cycle).collect()
}

/// Each with the points around it in its cycle.
fn running_means(buckets: &[Bucket]) -> Vec<f64> {
    let mut means = Vec::with_capacity(buckets.len());
    for cycle in buckets.chunk_by(|a, b| a.cycle == b.cycle) {
        let reach = TREND.min(cycle.len() / 4);
        means.extend((0..cycle.len()).map(|at| {
            // As many on both sides, so that the ends do not lean.
            let reach = reach.min(at).min(cycle.len() - 1 - at);
            let around = &cycle[at - reach..=at + reach];
            around.iter().map(|bucket| bucket.mean).sum::<f64>() / around.len() as f64
        }));
    }
    means
}

/// A held-out measurement on the axis.
struct Point<'a> {
    at: f64,
    name: String,
    kind: &'static str,
    evaluation: &'a Evaluation,
    /// The line begins anew: the model is what it was a cycle before.
    after_roll_back: bool,
}

impl Point<'_> {
    fn dot(&self, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> Dot {
        let title = format!("{}: held-out loss {:.4}", self.name, self.evaluation.loss);
        Dot { x: x(self.at), y: y(self.evaluation.loss), kind: self.kind, title }
    }
}

fn measured<'a>(
    stretches: &[Stretch<'a>],
    baseline: &'a Evaluation,
    result: Option<&'a Evaluation>,
    end: f64,
) -> Vec<Point<'a>> {
    let point = |at, name, kind, evaluation| Point { at, name, kind, evaluation, after_roll_back: false };
    let mut points = vec![point(0.0, "before the run".to_owned(), "baseline", baseline)];
    let mut rolled_back = false;
    for stretch in stretches {
        let cycle = stretch.cycle;
        for (phase, steps, evaluation) in &cycle.measured {
            let at = stretch.learns + *steps as f64;
            let (at, name, kind) = match phase {
                Phase::Pruned => {
                    (stretch.begins + 0.6 * (stretch.learns - stretch.begins), "after pruning", "pruned")
                }
                Phase::Learning => (at, "while learning", "learning"),
                _ => (stretch.ends, "after learning", "learned"),
            };
            let mut point = point(at, format!("cycle {}, {name}", cycle.number), kind, evaluation);
            point.after_roll_back = std::mem::take(&mut rolled_back);
            points.push(point);
        }
        rolled_back = cycle.outcome.is_some_and(|(accepted, _)| !accepted);
    }
    if let Some(result) = result {
        let mut last = point(end, "the result as stored".to_owned(), "result", result);
        last.after_roll_back = rolled_back;
        points.push(last);
    }
    points
}

/// All that was measured on held-out data, and all of the training losses but the outermost hundredths.
fn range(buckets: &[Bucket], measured: &[Point<'_>]) -> (f64, f64) {
    let mut trained: Vec<f64> = buckets.iter().map(|b| b.mean).filter(|loss| loss.is_finite()).collect();
    trained.sort_by(f64::total_cmp);
    let outer = trained.len() / 100;
    let inner = trained.get(outer..trained.len() - outer).unwrap_or_default();
    let all =
        || inner.iter().copied().chain(measured.iter().map(|m| m.evaluation.loss)).filter(|l| l.is_finite());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let room = (high - low).max(1e-3 * high.abs().max(1e-6)) * 0.06;
    (low - room, high + room)
}

/// Round numbers between `low` and `high`.
fn ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(power);
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|n| n as f64 * step)
        .take_while(|at| *at <= high)
        .take(12)
        .map(|at| (at, format!("{at:.decimals$}")))
        .collect()
}

fn band(stretch: &Stretch<'_>, x: &dyn Fn(f64) -> f64) -> Band {
    let cycle = stretch.cycle;
    let mut title = format!("cycle {}: pruned {}", cycle.number, counted(&cycle.pruned));
    if let Some((attention, mlp)) = &cycle.refit {
        let repaired = || attention.iter().chain(mlp).map(|layer| 100.0 * layer.repaired);
        let (low, high) = (repaired().fold(100.0, f64::min), repaired().fold(0.0, f64::max));
        title.push_str(&format!("; refit, {low:.0} to {high:.0} % of each layer's error repaired"));
    }
    if !cycle.grown.is_empty() {
        title.push_str(&format!("; grew {} back", counted(&cycle.grown)));
    }
    let begins = x(stretch.begins);
    Band { x: begins, width: round(x(stretch.learns) - begins), label: cycle.number.to_string(), title }
}

fn envelope(buckets: &[Bucket], x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) -> String {
    let mut path = String::new();
    for cycle in buckets.chunk_by(|a, b| a.cycle == b.cycle) {
        let upper = cycle.iter().map(|b| (b, b.most));
        let lower = cycle.iter().rev().map(|b| (b, b.least));
        for (index, (bucket, loss)) in upper.chain(lower).enumerate() {
            path.push_str(&format!("{}{} {}", if index == 0 { 'M' } else { 'L' }, x(bucket.at), y(loss)));
        }
        path.push('Z');
    }
    path
}

fn hovers(buckets: &[Bucket], x: &dyn Fn(f64) -> f64) -> Vec<Band> {
    let of = |bucket: &Bucket| {
        let (first, last) = (bucket.first.step, bucket.last);
        let half = (last.saturating_sub(first) + 1) as f64 / 2.0;
        let (begins, ends) = (x(bucket.at - half), x(bucket.at + half));
        let rate = bucket.first.learning_rate;
        let title = if first == last {
            format!(
                "cycle {}, step {first}: training loss {:.4}, learning rate {rate:.2e}",
                bucket.cycle, bucket.mean
            )
        } else {
            format!(
                "cycle {}, steps {} to {}: training loss {:.4} ({:.4} to {:.4}), learning rate {rate:.2e}",
                bucket.cycle,
                grouped(first),
                grouped(last),
                bucket.mean,
                bucket.least,
                bucket.most
            )
        };
        Band { x: begins, width: round((ends - begins).max(0.5)), label: String::new(), title }
    };
    buckets.iter().map(of).collect()
}

/// The drawing in words.
fn said(measured: &[Point<'_>]) -> String {
    let each = measured.iter().filter(|point| point.kind != "learning");
    let each = each.map(|point| format!("{} {:.4}", point.name, point.evaluation.loss));
    format!("Held-out loss: {}.", each.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within() {
        let labels =
            |low, high| ticks(low, high).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(0.66, 0.74), "0.66 0.68 0.70 0.72 0.74");
        assert_eq!(labels(-3.0, 17.0), "0 5 10 15");
        assert_eq!(labels(2.1e-5, 2.9e-5), "0.000022 0.000024 0.000026 0.000028");
    }
}
