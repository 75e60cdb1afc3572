//! The same width in every layer: how much goes follows from the budget, which units go from their importances.
//! What is left is a plain model of its family, but smaller.

use std::collections::BTreeMap;

use crate::units::{LayerSite, LayerUnits, Scores, Selection, Site, Sites, UnitMap};
use crate::{Error, Result};

/// What every layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Width {
    /// Query heads: as many of each key/value head's readers, or whole key/value heads with them.
    pub heads: usize,
    /// Channels.
    pub channels: usize,
}

/// The widths that the layers may be cut to, and how their units go.
#[derive(Debug, Clone)]
pub struct Widths {
    /// What every layer has now.
    now: Width,
    kv_heads: usize,
    /// Whether heads go with their key/value head, all readers at once.
    in_groups: bool,
    /// Numbers of heads, ascending, the present one last.
    heads: Vec<usize>,
    /// Numbers of channels, the same.
    channels: Vec<usize>,
}

impl Widths {
    /// Those of a model whose layers are alike: numbers of heads that `may_have` allows, and of channels multiples of
    /// `multiple`.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] where layers differ already, or key/value heads have different numbers of
    /// readers.
    pub fn of(
        units: &UnitMap,
        sites: Sites,
        may_have: impl Fn(usize) -> bool,
        multiple: usize,
    ) -> Result<Self> {
        let width = |layer: &LayerUnits| {
            (layer.count(Site::Head), layer.count(Site::KvGroup), layer.count(Site::Channel))
        };
        let differ = || {
            Error::does_not_fit(
                "shape uniform needs layers that are alike, with as many readers for each key/value head: these differ already",
            )
        };
        let there = || units.layers().iter().filter(|layer| layer.count(Site::Layer) > 0);
        let (heads, kv_heads, channels) = there().next().map(width).ok_or_else(differ)?;
        let readers = heads / kv_heads.max(1);
        let even = |layer: &LayerUnits| {
            let of = layer.kv_positions();
            (0..kv_heads).all(|group| of.iter().filter(|g| **g == group).count() == readers)
        };
        if !there().all(|layer| width(layer) == (heads, kv_heads, channels) && even(layer)) {
            return Err(differ());
        }
        // Where each head has keys and values of its own, these leave together.
        let in_groups = sites.contains(Site::KvGroup) || readers == 1;
        let step = if in_groups { readers } else { kv_heads };
        let may = |site: Site| sites.leaves().contains(site);
        let fewer = (1..heads / step.max(1)).map(|n| n * step).filter(|n| may(Site::Head) && may_have(*n));
        let narrower = (1..channels.div_ceil(multiple)).map(|n| n * multiple).filter(|_| may(Site::Channel));
        Ok(Self {
            now: Width { heads, channels },
            kv_heads,
            in_groups,
            heads: fewer.chain([heads]).collect(),
            channels: narrower.chain([channels]).collect(),
        })
    }

    /// Whether there is any other width than the present one.
    pub fn can_be_less(&self) -> bool {
        self.heads.len() > 1 || self.channels.len() > 1
    }

    /// The narrowest for which no more than so many units of each kind go.
    pub fn within_counts(&self, units: &UnitMap, counts: &BTreeMap<Site, usize>) -> Width {
        let layers = units.count(Site::Layer).max(1);
        let width = |all: &[usize], site: Site| {
            let gone: usize =
                counts.iter().filter(|(kind, _)| kind.counted() == site).map(|(_, count)| count).sum();
            let stay = units.count(site).saturating_sub(gone);
            // Nothing goes beyond the budget.
            all.iter().copied().find(|n| n * layers >= stay).unwrap_or_default()
        };
        Width { heads: width(&self.heads, Site::Head), channels: width(&self.channels, Site::Channel) }
    }

    /// The width that costs `goal` at most and loses least importance; the narrowest where none does.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for units that these widths are not of.
    pub fn within_cost(
        &self,
        units: &UnitMap,
        keep: &Scores,
        goal: f64,
        mut cost: impl FnMut(&UnitMap) -> f64,
    ) -> Result<Width> {
        // Importances may be below zero: what goes costs at least nothing.
        let least = keep.values().fold(f64::INFINITY, f64::min).min(0.0);
        let mut best: Option<(f64, Width)> = None;
        for &heads in &self.heads {
            let mut fits = |at: usize| {
                let width = Width { heads, channels: self.channels[at] };
                let mut after = units.clone();
                after.remove(&self.choose(units, keep, width))?;
                Ok::<bool, Error>(cost(&after) <= goal * (1.0 + 1e-12))
            };
            // The widest MLP that fits beside so many heads.
            let (mut low, mut high) = (0, self.channels.len());
            while low < high {
                let middle = usize::midpoint(low, high);
                if fits(middle)? { low = middle + 1 } else { high = middle }
            }
            let Some(at) = low.checked_sub(1) else { continue };
            let width = Width { heads, channels: self.channels[at] };
            let lost = lost(keep, units, &self.choose(units, keep, width), least);
            if best.is_none_or(|(least, _)| lost < least) {
                best = Some((lost, width));
            }
        }
        let narrowest = Width { heads: self.heads[0], channels: self.channels[0] };
        Ok(best.map_or(narrowest, |(_, width)| width))
    }

    /// The least important units of each layer, as many as lie beyond the width.
    pub fn choose(&self, units: &UnitMap, keep: &Scores, width: Width) -> Selection {
        let mut chosen = Selection::new();
        let there = units.layers().iter().enumerate().filter(|(_, known)| known.count(Site::Layer) > 0);
        for (layer, known) in there {
            let (heads, channels) = (LayerSite::heads(layer), LayerSite::channels(layer));
            let gone = self.heads_beyond(known, keep.at(heads), self.now.heads - width.heads);
            chosen.insert(heads, gone);
            let beyond = self.now.channels - width.channels;
            chosen.insert(channels, lowest(known.channels(), keep.at(channels), beyond));
        }
        chosen.retain(|_, units| !units.is_empty());
        chosen
    }

    fn heads_beyond(&self, known: &LayerUnits, scores: &[f64], beyond: usize) -> Vec<usize> {
        if beyond == 0 {
            return Vec::new();
        }
        let of = known.kv_positions();
        let members = |group: usize| (0..of.len()).filter(|at| of[*at] == group).collect::<Vec<usize>>();
        let groups: Vec<Vec<usize>> = (0..self.kv_heads).map(members).collect();
        let there = known.active();
        let mut gone: Vec<usize> = if self.in_groups {
            let sums: Vec<f64> = groups.iter().map(|of| of.iter().map(|at| scores[*at]).sum()).collect();
            let indices: Vec<usize> = (0..groups.len()).collect();
            let readers = there.len() / groups.len().max(1);
            let groups_gone = lowest(&indices, &sums, beyond / readers.max(1));
            groups_gone.iter().flat_map(|group| groups[*group].iter().map(|at| there[*at])).collect()
        } else {
            let each = |members: &Vec<usize>| {
                let heads: Vec<usize> = members.iter().map(|at| there[*at]).collect();
                let own: Vec<f64> = members.iter().map(|at| scores[*at]).collect();
                lowest(&heads, &own, beyond / self.kv_heads.max(1))
            };
            groups.iter().flat_map(each).collect()
        };
        gone.sort_unstable();
        gone
    }
}

/// The `count` units with the lowest scores, ascending; ties go to the lower index.
fn lowest(units: &[usize], scores: &[f64], count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..units.len().min(scores.len())).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    let mut chosen: Vec<usize> = order.into_iter().take(count).map(|at| units[at]).collect();
    chosen.sort_unstable();
    chosen
}

/// The importances of what is chosen over the least there may be, added up.
fn lost(keep: &Scores, units: &UnitMap, chosen: &Selection, least: f64) -> f64 {
    let of_place = |(place, gone): (&LayerSite, &Vec<usize>)| {
        let there = units.layers()[place.layer].units(place.site);
        let scores = keep.at(*place);
        gone.iter()
            .filter_map(|unit| scores.get(there.binary_search(unit).ok()?))
            .map(|s| s - least)
            .sum::<f64>()
    };
    chosen.iter().map(of_place).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scores(units: &UnitMap, seed: u64) -> Scores {
        use rand::RngExt;
        let mut rng = crate::rng::stream(seed, "uniform test");
        Scores::of_places(units, Sites::FINEST, |place, known| {
            (0..known.count(place.site)).map(|_| rng.random_range(0.0..1.0)).collect()
        })
    }

    proptest! {
        #[test]
        fn every_layer_keeps_the_same_and_no_more_than_the_budget(
            layers in 1usize..5, readers in 1usize..4, kv in 1usize..5, channels in 9usize..80, multiple in 1usize..12,
            share in 0.2f64..1.0, groups: bool, seed: u64,
        ) {
            let full = UnitMap::new(std::iter::repeat_n((readers * kv, kv, channels), layers));
            let sites = if groups { Sites::of(Site::KvGroup).and(Site::Channel) } else { Sites::FINEST };
            let widths = Widths::of(&full, sites, |_| true, multiple).expect("alike");
            let keep = scores(&full, seed);
            let cost = |units: &UnitMap| (10 * units.count(Site::Head) + units.count(Site::KvGroup) + units.count(Site::Channel)) as f64;
            let goal = share * cost(&full);
            let width = widths.within_cost(&full, &keep, goal, cost).expect("they can go");
            let mut after = full.clone();
            after.remove(&widths.choose(&full, &keep, width)).expect("they are there");
            let narrowest = Width { heads: widths.heads[0], channels: widths.channels[0] };
            prop_assert!(cost(&after) <= goal * (1.0 + 1e-12) || width == narrowest);
            for layer in after.layers() {
                prop_assert_eq!((layer.count(Site::Head), layer.count(Site::Channel)), (width.heads, width.channels));
                prop_assert!(width.channels == channels || width.channels.is_multiple_of(multiple));
                let of = layer.kv_positions();
                let group = |g: usize| of.iter().filter(|k| **k == g).count();
                prop_assert!((0..layer.count(Site::KvGroup)).all(|g| group(g) == group(0)));
            }
            // A model that has been cut so can be cut so again.
            prop_assert!(Widths::of(&after, sites, |_| true, multiple).is_ok());
        }
    }

    #[test]
    fn layers_that_differ_are_refused() {
        let mut units = UnitMap::new([(4, 2, 16), (4, 2, 16)]);
        units.remove(&Selection::from([(LayerSite::channels(1), vec![3])])).expect("it is there");
        assert!(Widths::of(&units, Sites::FINEST, |_| true, 8).is_err());
    }
}
