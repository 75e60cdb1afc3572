//! What a run shows while it works: bars with time left on a terminal, plain lines otherwise. Always on
//! stderr, and nothing where it is to be quiet.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use upgrayedd::event::{Control, Event, Observer, Phase, Progress};
use upgrayedd::report;

/// A plain line about work in progress at most this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where there is less room than this, in characters, a bar is left out.
const ROOM: u16 = 70;

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether nothing is to be said but results and errors.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// A line on stderr, unless it is to be quiet.
pub fn tell(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        say(text);
    }
}

/// A line on stderr. Who reads it may have gone away, which is no reason to stop a run.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Shows progress and events.
pub struct Console {
    terminal: bool,
    events: bool,
    bar: Option<(String, ProgressBar)>,
    last_line: Instant,
    loss: Option<f64>,
}

impl Console {
    /// `events` shows what happened, too.
    pub fn new(events: bool) -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            events,
            bar: None,
            last_line: Instant::now(),
            loss: None,
        }
    }

    /// Clears the last bar.
    pub fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some((_, bar)) => bar.suspend(|| tell(text)),
            None => tell(text),
        }
    }
}

impl Observer for Console {
    fn on_progress(&mut self, progress: Progress<'_>) {
        if QUIET.load(Ordering::Relaxed) {
            return;
        }
        if !self.terminal {
            if self.last_line.elapsed() >= LINE_EVERY {
                self.last_line = Instant::now();
                say(&format!(
                    "{}: {} of {}{}",
                    progress.task,
                    progress.done,
                    progress.total,
                    loss_note(self.loss)
                ));
            }
            return;
        }
        if self.bar.as_ref().is_none_or(|(task, _)| task != progress.task) {
            self.finish();
            self.loss = None;
            let bar = ProgressBar::new(progress.total);
            let narrow = console::Term::stderr().size().1 < ROOM;
            let template = if narrow {
                "{prefix} {pos}/{len} {eta} left"
            } else {
                "{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} left {msg}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(progress.task.to_owned());
            self.bar = Some((progress.task.to_owned(), bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_position(progress.done);
            bar.set_message(loss_note(self.loss));
        }
    }

    fn on_event(&mut self, event: &Event) {
        if let Event::Step { loss, .. } = event {
            self.loss = Some(*loss);
        }
        if self.events
            && let Some(text) = describe(event)
        {
            self.line(&text);
        }
    }

    fn control(&mut self) -> Control {
        if crate::STOP.load(Ordering::SeqCst) { Control::Interrupt } else { Control::Continue }
    }
}

fn loss_note(loss: Option<f64>) -> String {
    loss.map(|l| format!(" (loss {l:.3})")).unwrap_or_default()
}

fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::RunStarted {
            family,
            parameters,
            heads,
            sequences: [train, calibration, held_out],
            steps_per_cycle,
            gpu,
            ..
        } => {
            let on = gpu.as_ref().map(|gpu| format!("; on {gpu}")).unwrap_or_default();
            format!(
                "{family}, {parameters} parameters, {heads} heads; {train} sequences to learn from, {calibration} to score on, \
             {held_out} to measure on; {steps_per_cycle} optimiser steps per cycle{on}"
            )
        }
        Event::Evaluated { cycle, phase, evaluation } => {
            let quality = match (evaluation.perplexity, evaluation.accuracy, evaluation.spearman) {
                (Some(perplexity), ..) => format!("loss {:.4}, perplexity {perplexity:.3}", evaluation.loss),
                (_, Some(accuracy), _) => {
                    let f1 = evaluation.f1.map(|f1| format!(", F1 {:.1} %", 100.0 * f1)).unwrap_or_default();
                    format!("loss {:.4}, accuracy {:.1} %{f1}", evaluation.loss, 100.0 * accuracy)
                }
                (.., Some(spearman)) => format!("loss {:.4}, Spearman {spearman:.4}", evaluation.loss),
                _ => format!("loss {:.4}", evaluation.loss),
            };
            match phase {
                Phase::Baseline => format!("baseline: {quality}"),
                Phase::Pruned => format!("cycle {cycle}: after pruning: {quality}"),
                Phase::Learning => format!("cycle {cycle}: while learning: {quality}"),
                Phase::Learned => format!("cycle {cycle}: after learning: {quality}"),
                Phase::Result => format!("result as stored: {quality}"),
            }
        }
        Event::Pruned { cycle, units, active, channels, .. } => {
            format!("cycle {cycle}: pruned {}, {} left", counted(units), left(*active, *channels))
        }
        Event::Grown { cycle, units, active, channels } => {
            format!("cycle {cycle}: grew {} back, {} active", counted(units), left(*active, *channels))
        }
        Event::Refit { cycle, layers, mlp } => {
            let (best, worst) = layers
                .iter()
                .chain(mlp)
                .fold((0.0f64, 1.0f64), |(b, w), l| (b.max(l.repaired), w.min(l.repaired)));
            format!(
                "cycle {cycle}: refit, {:.0} to {:.0} % of each layer's error repaired",
                100.0 * worst,
                100.0 * best
            )
        }
        Event::Accepted { cycle, loss_change, .. } => {
            format!("cycle {cycle}: accepted, held-out loss {loss_change:+.4}")
        }
        Event::RolledBack { cycle, loss_change: Some(change), max_loss_increase, .. } => {
            format!(
                "cycle {cycle}: rolled back, held-out loss {change:+.4} is more than the allowed {max_loss_increase:+.4}"
            )
        }
        Event::RolledBack { cycle, loss_change: None, .. } => {
            format!("cycle {cycle}: rolled back, numbers were not finite any more")
        }
        Event::Spike { cycle, step, loss, typical } => {
            format!("cycle {cycle}: the training loss jumped to {loss:.3} at step {step}, from {typical:.3}")
        }
        Event::Notice { message, .. } => format!("note: {message}"),
        Event::Scored { .. } | Event::Saved { .. } | Event::Step { .. } | Event::RunFinished { .. } => {
            return None;
        }
    })
}

/// How many units of which kinds.
fn counted(units: &serde_json::Map<String, serde_json::Value>) -> String {
    let of_kind = |(kind, layers): (&String, &serde_json::Value)| {
        let layers = layers.as_object().into_iter().flatten();
        (kind.clone(), layers.map(|(_, units)| units.as_array().map_or(0, Vec::len)).sum())
    };
    report::counted(&units.iter().map(of_kind).collect::<Vec<_>>())
}

/// What is there: heads, and channels where these go too.
fn left(heads: usize, channels: Option<usize>) -> String {
    channels.map_or(heads.to_string(), |channels| format!("{heads} heads and {channels} channels"))
}
