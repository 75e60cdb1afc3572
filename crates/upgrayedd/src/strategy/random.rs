//! Prunes and grows uniformly at random: the baseline.

use std::collections::BTreeMap;

use rand::RngExt;
use serde::Deserialize;

use super::definition::{GrowView, Options, PruneView, Strategy, StrategyInfo, parse_options, within_budget};
use crate::budget::unit_size;
use crate::score::{self, ScoreContext};
use crate::units::{Scores, Selection, Sites};
use crate::{Result, rng};

pub(super) static INFO: StrategyInfo =
    StrategyInfo { name: "random", summary: "prunes and grows uniformly at random: a baseline", build };

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

struct Random;

fn build(options: Options) -> Result<Box<dyn Strategy>> {
    let NoOptions {} = parse_options("random", options)?;
    Ok(Box::new(Random))
}

impl Strategy for Random {
    fn name(&self) -> &str {
        INFO.name
    }

    fn units(&self) -> Sites {
        Sites::FINEST
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores> {
        score::named("random")?.compute(context)
    }

    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection> {
        Ok(within_budget(view, view.importances))
    }

    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        // Every missing unit is equally likely, so layers are drawn in proportion to what they miss.
        let mut random = rng::stream(view.seed, "random growth");
        let size = unit_size(view.model.units(), view.units);
        let mut missing: Vec<usize> =
            view.restorable.iter().enumerate().flat_map(|(l, n)| vec![l; n / size]).collect();
        let mut counts = BTreeMap::new();
        for _ in 0..(view.count / size).min(missing.len()) {
            let layer = missing.swap_remove(random.random_range(0..missing.len()));
            *counts.entry(layer).or_insert(0) += size;
        }
        Ok(counts)
    }
}
