//! Strategies that follow one score: the units with the lowest go, and the archived ones return whose gates
//! the loss wants open (where that was not measured: in the layers whose remaining units have the highest
//! mean).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::definition::{
    Cache, GrowView, Options, PruneView, Strategy, StrategyInfo, by_gain, by_mean, parse_options, spread,
    within_budget,
};
use crate::budget::Scope;
use crate::score::{self, Score, ScoreContext, fisher_blocks};
use crate::units::{LayerSite, Scores, Selection, Site, Sites};
use crate::{Error, Result};

macro_rules! scored {
    ($($info:ident = $name:literal, $settings:expr, $summary:literal;)+) => {
        $(pub(super) static $info: StrategyInfo = StrategyInfo {
            name: $name,
            summary: $summary,
            build: |options| build($name, $settings, options),
        };)+
    };
}

/// How a strategy uses its score unless the user says otherwise.
#[derive(Clone, Copy)]
struct Settings {
    score: &'static str,
    samples: usize,
    scope: Scope,
}

/// Steps in which blocks go where each is measured.
const BLOCK_STEPS: usize = 8;
/// Sequences that a block is measured on at most.
const BLOCK_SAMPLES: usize = 8;

const fn by(score: &'static str) -> Settings {
    Settings { score, samples: 128, scope: Scope::Layer }
}

scored! {
    AUTO = "auto", Settings { scope: Scope::Global, ..by("surgeon") },
        "what the measurements recommend: surgeon over all layers";
    SURGEON = "surgeon", by("surgeon"), "prunes what the others can best stand in for (van der Ouderaa et al. 2024)";
    GRADIENT = "gradient", by("gradient"), "prunes the lowest gate gradient (Michel et al. 2019)";
    TAYLOR = "taylor", by("taylor"), "prunes the lowest layer-normalised gate gradient (Molchanov et al. 2017)";
    FISHER = "fisher", by("fisher"), "prunes the lowest Fisher information (Kwon et al. 2022)";
    TASK = "task", by("task"), "prunes the lowest Fisher information under a task's labels";
    WANDA = "wanda", by("wanda"), "prunes the lowest |weight| · activation of the output projection (Sun et al. 2024)";
    SIMILARITY = "similarity", by("similarity"), "prunes the weaker of the most similar pairs";
    LOSS_IMPACT = "loss_impact", Settings { samples: 16, ..by("loss_impact") },
        "prunes what raises the loss least, measured head by head: exact and slow";
}

fn build(name: &'static str, settings: Settings, options: Options) -> Result<Box<dyn Strategy>> {
    let ScoredOptions { calibration_samples } = parse_options(name, options)?;
    let samples = calibration_samples.unwrap_or(settings.samples);
    if samples == 0 {
        return Err(Error::out_of_range("calibration_samples", 0, "at least 1"));
    }
    let score = score::named(settings.score)?;
    Ok(Box::new(Scored { name, score, settings, samples, cache: Cache::default(), blocks: Vec::new() }))
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
    samples: usize,
    cache: Cache<(Scores, Vec<Vec<f64>>)>,
    /// Of the Fisher information, for the state that was scored last.
    blocks: Vec<Vec<f64>>,
}

impl Scored {
    /// Whether attention, MLPs and layers are left out one by one: what their units add up to is a rough guide.
    fn measures_blocks(&self) -> bool {
        self.name == AUTO.name || self.score.units.contains(Site::Layer)
    }

    fn compute(&self, context: &ScoreContext<'_>) -> Result<(Scores, Vec<Vec<f64>>)> {
        if matches!(self.score.name, "fisher" | "task") {
            return fisher_blocks(self.score, context);
        }
        if !self.measures_blocks() || self.score.units.contains(Site::Layer) {
            return Ok((self.score.compute(context)?, Vec::new()));
        }
        let (blocks, rest): (Vec<Site>, Vec<Site>) = context.units.iter().partition(|site| site.is_block());
        let of = |sites: Vec<Site>| sites.into_iter().map(Sites::of).reduce(Sites::or);
        let (blocks, rest) = (of(blocks), of(rest));
        let mut scores = match rest {
            // Beside others heads count as their gates say: in the surgeon's case, as beside channels.
            Some(units) if blocks.is_some() => {
                self.score.compute(&ScoreContext { units: units.and(Site::Channel), ..*context })?
            }
            Some(units) => self.score.compute(&ScoreContext { units, ..*context })?,
            None => Scores::default(),
        };
        if let Some(units) = blocks {
            // In nats per target, as the surgeon's numbers are.
            let samples = context.samples.min(BLOCK_SAMPLES);
            let measured =
                score::named("loss_impact")?.compute(&ScoreContext { units, samples, ..*context })?;
            measured.iter().for_each(|(place, impacts)| *scores.at_mut(place) = impacts.to_vec());
        }
        Ok((scores, Vec::new()))
    }
}

impl Strategy for Scored {
    fn name(&self) -> &str {
        self.name
    }

    fn scope(&self) -> Scope {
        self.settings.scope
    }

    fn pruning_steps(&self, units: Sites) -> usize {
        // What a block is worth depends on which others are there.
        if self.measures_blocks() && units.iter().all(Site::is_block) { BLOCK_STEPS } else { 1 }
    }

    fn calibration_samples(&self) -> Option<usize> {
        Some(self.samples)
    }

    fn units(&self) -> Sites {
        self.score.units
    }

    fn importances(&mut self, context: &ScoreContext<'_>) -> Result<Scores> {
        let context = ScoreContext { samples: self.samples, ..*context };
        let mut cache = std::mem::take(&mut self.cache);
        let found = cache.get_or(true, &context, || self.compute(&context));
        self.cache = cache;
        let (scores, blocks) = found?;
        self.blocks = blocks;
        Ok(scores)
    }

    fn shown(&self, importances: &Scores) -> Scores {
        self.score.shown(importances)
    }

    fn select_units_to_prune(&mut self, view: &PruneView<'_>) -> Result<Selection> {
        let mut chosen = within_budget(view, view.importances);
        if view.budget.counts.contains_key(&Site::Head) {
            for (&LayerSite { layer, .. }, heads) in
                chosen.iter_mut().filter(|(place, _)| place.site == Site::Head)
            {
                let active = view.model.units().layers()[layer].active();
                if heads.len() == active.len() {
                    continue;
                }
                match self.blocks.get(layer).filter(|b| b.len() == active.len().pow(2)) {
                    Some(block) => swap_within(heads, active, block),
                    None => continue,
                }
            }
        }
        Ok(chosen)
    }

    fn select_units_to_grow(&mut self, view: &GrowView<'_>) -> Result<BTreeMap<usize, usize>> {
        if view.gains.is_empty() {
            return Ok(spread(view, &by_mean(view.importances, view.units)));
        }
        Ok(by_gain(view))
    }
}

/// Swaps heads of one layer in and out of the selection as long as that lowers Σᵢⱼ Fᵢⱼ over the selected:
/// heads whose gradients agree cost more together than each alone (the mask rearrangement of Kwon et al.
/// 2022).
fn swap_within(chosen: &mut Vec<usize>, active: &[usize], block: &[f64]) {
    let n = active.len();
    let mut gone: Vec<bool> = active.iter().map(|h| chosen.contains(h)).collect();
    // What adding i to the selection costs beside its own square: its products with the rest.
    let with_rest = |i: usize, except: usize, gone: &[bool]| -> f64 {
        (0..n).filter(|&k| gone[k] && k != i && k != except).map(|k| 2.0 * block[i * n + k]).sum()
    };
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for out in (0..n).filter(|&i| gone[i]) {
            let saved = block[out * n + out] + with_rest(out, out, &gone);
            for into in (0..n).filter(|&j| !gone[j]) {
                let change = block[into * n + into] + with_rest(into, out, &gone) - saved;
                if best.is_none_or(|(least, ..)| change < least) {
                    best = Some((change, out, into));
                }
            }
        }
        // A change too small to be anything but rounding ends it too.
        let scale = (0..n).map(|i| block[i * n + i]).sum::<f64>();
        match best.filter(|(change, ..)| *change < -1e-12 * scale) {
            Some((_, out, into)) => (gone[out], gone[into]) = (false, true),
            None => break,
        }
    }
    *chosen = active.iter().zip(&gone).filter(|(_, g)| **g).map(|(h, _)| *h).collect();
}

#[cfg(test)]
mod tests {
    use super::swap_within;

    #[test]
    fn heads_whose_gradients_agree_do_not_go_together() {
        // Heads 1 and 4 are the cheapest alone, but their gradients agree; 4 and 7 cancel.
        let block = [1.0, 0.9, 0.0, 0.9, 1.1, -0.8, 0.0, -0.8, 1.3];
        let mut chosen = vec![1, 4];
        swap_within(&mut chosen, &[1, 4, 7], &block);
        assert_eq!(chosen, [4, 7]);
        let mut stays = vec![1];
        swap_within(&mut stays, &[1, 4, 7], &[1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0]);
        assert_eq!(stays, [1]);
    }
}
