//! Strategies that follow one score: the heads with the lowest go, and growth goes where the remaining heads have the highest mean.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    Cache, GrowView, Options, PruneView, Strategy, StrategyInfo, StrategyParams, by_mean, parse_options, spread, within_budget,
};
use crate::heads::{HeadScores, HeadSelection};
use crate::score::{Score, ScoreContext};
use crate::{Error, Result};

pub(super) static GRADIENT: StrategyInfo = StrategyInfo {
    name: "gradient",
    summary: "prunes the lowest gate gradient (Michel et al. 2019), grows in the layers with the highest",
    build: |params, options| build("gradient", params, options),
};

pub(super) static TAYLOR: StrategyInfo = StrategyInfo {
    name: "taylor",
    summary: "prunes the lowest layer-normalised gate gradient (Molchanov et al. 2017), grows in the layers with the highest",
    build: |params, options| build("taylor", params, options),
};

pub(super) static FISHER: StrategyInfo = StrategyInfo {
    name: "fisher",
    summary: "prunes the lowest Fisher information (Kwon et al. 2022), grows in the layers with the highest",
    build: |params, options| build("fisher", params, options),
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ScoredOptions {
    calibration_samples: usize,
}

impl Default for ScoredOptions {
    fn default() -> Self {
        Self { calibration_samples: 128 }
    }
}

struct Scored {
    name: &'static str,
    params: StrategyParams,
    samples: usize,
    cache: Cache,
}

fn build(name: &'static str, params: StrategyParams, options: Options) -> Result<Box<dyn Strategy>> {
    let ScoredOptions { calibration_samples: samples } = parse_options(name, options)?;
    if samples == 0 {
        return Err(Error::invalid("calibration_samples is 0: expected at least 1"));
    }
    Ok(Box::new(Scored { name, params, samples, cache: Cache::default() }))
}

impl Strategy for Scored {
    fn name(&self) -> &str {
        self.name
    }

    fn params(&self) -> &StrategyParams {
        &self.params
    }

    fn calibration_samples(&self) -> Option<usize> {
        Some(self.samples)
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<HeadScores> {
        let context = ScoreContext { samples: self.samples, ..*context };
        self.cache.get_or(true, &context, || Score::named(self.name)?.compute(&context))
    }

    fn as_keep(&self, importances: &HeadScores) -> HeadScores {
        importances.clone()
    }

    fn select_heads_to_prune(&mut self, view: &PruneView<'_>) -> Result<HeadSelection> {
        Ok(within_budget(view, view.importances))
    }

    fn select_heads_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        Ok(spread(view, &by_mean(view.importances, false)))
    }
}
