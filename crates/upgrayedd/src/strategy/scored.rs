//! Strategies that follow one score: the heads with the lowest go, and growth goes where the remaining heads have the highest mean.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Cache, GrowView, Options, PruneView, Strategy, StrategyInfo, StrategyParams, by_mean, parse_options, spread, within_budget,
};
use crate::heads::{HeadScores, HeadSelection};
use crate::score::{Score, ScoreContext};
use crate::{Error, Result};

macro_rules! scored {
    ($($info:ident = $name:literal, $samples:literal, $summary:literal;)+) => {
        $(pub(super) static $info: StrategyInfo = StrategyInfo {
            name: $name,
            summary: $summary,
            build: |params, options| build($name, $samples, params, options),
        };)+
    };
}

scored! {
    GRADIENT = "gradient", 128, "prunes the lowest gate gradient (Michel et al. 2019)";
    TAYLOR = "taylor", 128, "prunes the lowest layer-normalised gate gradient (Molchanov et al. 2017)";
    FISHER = "fisher", 128, "prunes the lowest Fisher information (Kwon et al. 2022)";
    TASK = "task", 128, "prunes the lowest Fisher information under a task's labels";
    WANDA = "wanda", 128, "prunes the lowest |weight| · activation of the output projection (Sun et al. 2024)";
    SIMILARITY = "similarity", 128, "prunes the weaker of the most similar pairs";
    LOSS_IMPACT = "loss_impact", 16, "prunes what raises the loss least, measured head by head: exact and slow";
}

/// `samples` is the default of `calibration_samples`.
fn build(name: &'static str, samples: usize, params: StrategyParams, options: Options) -> Result<Box<dyn Strategy>> {
    let ScoredOptions { calibration_samples } = parse_options(name, options)?;
    let samples = calibration_samples.unwrap_or(samples);
    if samples == 0 {
        return Err(Error::invalid("calibration_samples is 0: expected at least 1"));
    }
    Ok(Box::new(Scored { score: Score::named(name)?, params, samples, cache: Cache::default() }))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ScoredOptions {
    calibration_samples: Option<usize>,
}

struct Scored {
    score: &'static Score,
    params: StrategyParams,
    samples: usize,
    cache: Cache,
}

impl Strategy for Scored {
    fn name(&self) -> &str {
        self.score.name
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
        Ok(spread(view, &by_mean(&self.as_keep(view.importances), false)))
    }
}
