//! Strategies that follow one score: the heads with the lowest go, and the archived heads return whose gates the loss wants open
//! (where that was not measured: in the layers whose remaining heads have the highest mean).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Cache, GrowView, Options, PruneView, Strategy, StrategyInfo, StrategyParams, by_gain, by_mean, parse_options, spread,
    within_budget,
};
use crate::budget::Scope;
use crate::heads::{HeadScores, HeadSelection};
use crate::score::{Score, ScoreContext};
use crate::{Error, Result};

macro_rules! scored {
    ($($info:ident = $name:literal, $settings:expr, $summary:literal;)+) => {
        $(pub(super) static $info: StrategyInfo = StrategyInfo {
            name: $name,
            summary: $summary,
            build: |params, options| build($name, $settings, params, options),
        };)+
    };
}

/// How a strategy uses its score unless the user says otherwise.
#[derive(Clone, Copy)]
struct Settings {
    score: &'static str,
    samples: usize,
    scope: Scope,
    steps: usize,
}

const fn by(score: &'static str) -> Settings {
    Settings { score, samples: 128, scope: Scope::Layer, steps: 1 }
}

scored! {
    AUTO = "auto", Settings { scope: Scope::Global, steps: 6, ..by("fisher") },
        "what the measurements recommend: fisher over all layers, scored anew in steps";
    GRADIENT = "gradient", by("gradient"), "prunes the lowest gate gradient (Michel et al. 2019)";
    TAYLOR = "taylor", by("taylor"), "prunes the lowest layer-normalised gate gradient (Molchanov et al. 2017)";
    FISHER = "fisher", by("fisher"), "prunes the lowest Fisher information (Kwon et al. 2022)";
    TASK = "task", by("task"), "prunes the lowest Fisher information under a task's labels";
    WANDA = "wanda", by("wanda"), "prunes the lowest |weight| · activation of the output projection (Sun et al. 2024)";
    SIMILARITY = "similarity", by("similarity"), "prunes the weaker of the most similar pairs";
    LOSS_IMPACT = "loss_impact", Settings { samples: 16, ..by("loss_impact") },
        "prunes what raises the loss least, measured head by head: exact and slow";
}

fn build(name: &'static str, settings: Settings, params: StrategyParams, options: Options) -> Result<Box<dyn Strategy>> {
    let ScoredOptions { calibration_samples } = parse_options(name, options)?;
    let samples = calibration_samples.unwrap_or(settings.samples);
    if samples == 0 {
        return Err(Error::invalid("calibration_samples is 0: expected at least 1"));
    }
    let score = Score::named(settings.score)?;
    Ok(Box::new(Scored { name, score, settings, params, samples, cache: Cache::default() }))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ScoredOptions {
    calibration_samples: Option<usize>,
}

struct Scored {
    name: &'static str,
    score: &'static Score,
    settings: Settings,
    params: StrategyParams,
    samples: usize,
    cache: Cache,
}

impl Strategy for Scored {
    fn name(&self) -> &str {
        self.name
    }

    fn scope(&self) -> Scope {
        self.settings.scope
    }

    fn steps_per_cycle(&self) -> usize {
        self.settings.steps
    }

    fn params(&self) -> &StrategyParams {
        &self.params
    }

    fn calibration_samples(&self) -> Option<usize> {
        Some(self.samples)
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<HeadScores> {
        let context = ScoreContext { samples: self.samples, ..*context };
        self.cache.get_or(true, &context, || self.score.compute(&context))
    }

    fn as_keep(&self, importances: &HeadScores) -> HeadScores {
        self.score.as_keep(importances)
    }

    fn select_heads_to_prune(&mut self, view: &PruneView<'_>) -> Result<HeadSelection> {
        Ok(within_budget(view, &self.as_keep(view.importances)))
    }

    fn select_heads_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        if view.gains.is_empty() {
            return Ok(spread(view, &by_mean(&self.as_keep(view.importances), false)));
        }
        Ok(by_gain(view))
    }
}
