//! Prunes the heads whose attention is most spread out; grows where the remaining heads are most focused.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::definition::{
    Cache, GrowView, Options, PruneView, Strategy, StrategyInfo, by_mean, parse_options, spread,
    within_budget,
};
use crate::score::{self, ScoreContext};
use crate::units::{Scores, Selection};
use crate::{Error, Result};

pub(super) static INFO: StrategyInfo = StrategyInfo {
    name: "entropy",
    summary: "prunes the highest attention entropy, grows in the layers with the lowest",
    build,
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EntropyOptions {
    attention_samples: usize,
    use_cached_entropy: bool,
}

impl Default for EntropyOptions {
    fn default() -> Self {
        Self { attention_samples: 128, use_cached_entropy: true }
    }
}

struct Entropy {
    options: EntropyOptions,
    cache: Cache<Scores>,
}

fn build(options: Options) -> Result<Box<dyn Strategy>> {
    let options: EntropyOptions = parse_options("entropy", options)?;
    if options.attention_samples == 0 {
        return Err(Error::out_of_range("attention_samples", 0, "at least 1"));
    }
    Ok(Box::new(Entropy { options, cache: Cache::default() }))
}

impl Strategy for Entropy {
    fn name(&self) -> &str {
        INFO.name
    }

    fn calibration_samples(&self) -> Option<usize> {
        Some(self.options.attention_samples)
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores> {
        let context = ScoreContext { samples: self.options.attention_samples, ..*context };
        self.cache
            .get_or(self.options.use_cached_entropy, &context, || score::named("entropy")?.compute(&context))
    }

    fn shown(&self, importances: &Scores) -> Scores {
        importances.map(|entropy| -entropy)
    }

    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection> {
        Ok(within_budget(view, view.importances))
    }

    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        Ok(spread(view, &by_mean(view.importances, view.units)))
    }
}
