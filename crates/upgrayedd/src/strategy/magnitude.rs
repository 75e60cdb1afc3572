//! Prunes the heads with the smallest weights; grows where the remaining heads have the largest.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::definition::{
    Cache, GrowView, Options, PruneView, Strategy, StrategyInfo, by_mean, parse_options, spread,
    within_budget,
};
use crate::score::weights_per_head;
use crate::score::{self, ScoreContext};
use crate::units::{LayerSite, Scores, Selection, Site, Sites};
use crate::{Error, Result};

pub(super) static INFO: StrategyInfo = StrategyInfo {
    name: "magnitude",
    summary: "prunes the lowest L2 norm of Q, K, V, O, grows in the layers with the highest",
    build,
};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MagnitudeOptions {
    weight_threshold: f64,
    use_cached_magnitudes: bool,
}

impl Default for MagnitudeOptions {
    fn default() -> Self {
        Self { weight_threshold: 0.01, use_cached_magnitudes: true }
    }
}

struct Magnitude {
    options: MagnitudeOptions,
    cache: Cache<Scores>,
}

fn build(options: Options) -> Result<Box<dyn Strategy>> {
    let options: MagnitudeOptions = parse_options("magnitude", options)?;
    if !(options.weight_threshold >= 0.0 && options.weight_threshold.is_finite()) {
        return Err(Error::out_of_range("weight_threshold", options.weight_threshold, "0 or more"));
    }
    Ok(Box::new(Magnitude { options, cache: Cache::default() }))
}

impl Magnitude {
    /// Adds the dead heads, even beyond the budget, as far as `min_heads` allows. In whole groups only if
    /// every head of one is dead.
    fn add_dead(&self, view: &PruneView<'_>, chosen: &mut Selection) {
        for (layer, (heads, norms)) in
            view.model.units().layers().iter().zip(view.importances.heads()).enumerate()
        {
            let dead_below =
                self.options.weight_threshold * (weights_per_head(view.model, layer) as f64).sqrt();
            let is_dead =
                |head: usize| heads.active().binary_search(&head).is_ok_and(|p| norms[p] < dead_below);
            let mut dead: Vec<(f64, usize)> = heads
                .active()
                .iter()
                .zip(norms)
                .filter(|(h, _)| is_dead(**h))
                .map(|(h, n)| (*n, *h))
                .collect();
            if view.budget.in_groups() {
                let group_dead = |h: usize| {
                    heads
                        .active()
                        .iter()
                        .filter(|o| heads.kv_group_of(**o) == heads.kv_group_of(h))
                        .all(|o| is_dead(*o))
                };
                dead.retain(|(_, h)| group_dead(*h));
                dead.sort_by_key(|(_, h)| heads.kv_group_of(*h));
            } else {
                dead.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            }
            let entry = chosen.entry(LayerSite::heads(layer)).or_default();
            let fresh: Vec<usize> = dead.into_iter().map(|(_, h)| h).filter(|h| !entry.contains(h)).collect();
            // A group may have lost heads before: it goes with those that it has.
            let together = |a: &usize, b: &usize| {
                view.budget.in_groups() && heads.kv_group_of(*a) == heads.kv_group_of(*b)
            };
            for unit in fresh.chunk_by(together) {
                if heads.active().len() - entry.len() >= view.budget.min_heads + unit.len() {
                    entry.extend(unit);
                }
            }
            entry.sort_unstable();
        }
        chosen.retain(|_, heads| !heads.is_empty());
    }
}

impl Strategy for Magnitude {
    fn name(&self) -> &str {
        INFO.name
    }

    fn units(&self) -> Sites {
        Sites::FINEST
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores> {
        let context = ScoreContext { data: None, ..*context };
        self.cache.get_or(self.options.use_cached_magnitudes, &context, || {
            score::named("magnitude")?.compute(&context)
        })
    }

    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection> {
        let mut chosen = within_budget(view, view.importances);
        // Whether a head is dead is said by its norm, whatever it costs.
        if !view.priced && view.budget.counts.keys().any(|site| site.counted() == Site::Head) {
            self.add_dead(view, &mut chosen);
        }
        Ok(chosen)
    }

    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        Ok(spread(view, &by_mean(view.importances, view.units)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Scope};
    use crate::{Model, builtin, surgery};

    #[test]
    fn dead_groups_that_have_lost_heads_are_not_cut_in_two() {
        let model = builtin::model().expect("it is there");
        let mut spec = model.spec().clone();
        spec.layers.iter_mut().for_each(|layer| layer.num_kv_heads = 4);
        let mut model = Model::initialised(model.family(), spec, model.config.clone(), 0).expect("a model");
        // Four groups of two heads; one of them has lost a head.
        surgery::remove(&mut model, None, &Selection::from([(LayerSite::heads(0), vec![2])]), 1, None)
            .expect("it is there");
        let norms = Scores::zeros(model.units(), Sites::of(Site::Head));
        let budget = Budget::of(Site::KvGroup, 0, Scope::Layer, 2);
        let view = PruneView { model: &model, importances: &norms, priced: false, budget: &budget };
        let options = MagnitudeOptions { weight_threshold: 1000.0, use_cached_magnitudes: true };
        let strategy = Magnitude { options, cache: Cache::default() };
        let mut chosen = Selection::new();
        strategy.add_dead(&view, &mut chosen);
        for (place, gone) in &chosen {
            let layer = &model.units().layers()[place.layer];
            for head in gone {
                let group =
                    layer.active().iter().filter(|h| layer.kv_group_of(**h) == layer.kv_group_of(*head));
                assert!(group.clone().all(|h| gone.contains(h)), "{gone:?} cuts the group of {head} in two");
            }
        }
        assert_eq!(chosen[&LayerSite::heads(0)], [0, 1, 3, 4, 5]);
    }
}
