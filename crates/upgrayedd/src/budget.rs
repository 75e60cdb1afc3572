//! Ratios → exact counts, and counts → units. "Ask for 30 %, get 30 %."

use crate::named_enum;
use std::collections::BTreeMap;

use crate::units::{LayerSite, LayerUnits, Scores, Selection, Site, UnitMap, listed};
use crate::{Error, Result};

named_enum! {
    /// Where units compete.
    Scope, "scope" {
        /// Within their layer; each layer gives its share.
        #[default]
        Layer = "layer",
        /// Everywhere.
        Global = "global",
    }
}

named_enum! {
    /// Which shape the result has.
    Shape, "shape" {
        /// Each layer as wide as suits it.
        #[default]
        Free = "free",
        /// All layers alike.
        Uniform = "uniform",
    }
}

named_enum! {
    /// How the ratio spreads over the cycles.
    Schedule, "schedule" {
        /// In every cycle the ratio of what is there then.
        #[default]
        PerCycle = "per-cycle",
        /// In equal steps to the ratio of the original model, net of growth.
        Target = "target",
    }
}

/// What may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Units of each kind; of key/value heads, the query heads that read them.
    pub counts: BTreeMap<Site, usize>,
    /// Where they compete.
    pub scope: Scope,
    /// Query heads that every layer keeps where heads go one by one or in groups. Of channels it keeps one.
    pub min_heads: usize,
}

impl Budget {
    /// So many units of one kind.
    pub fn of(site: Site, count: usize, scope: Scope, min_heads: usize) -> Self {
        Self { counts: BTreeMap::from([(site, count)]), scope, min_heads }
    }

    /// Whether whole key/value heads go.
    pub fn in_groups(&self) -> bool {
        self.counts.contains_key(&Site::KvGroup)
    }
}

/// Units that every layer keeps. Blocks go whole.
fn least(site: Site, min_heads: usize) -> usize {
    match site.counted() {
        Site::Head => min_heads,
        Site::Channel => 1,
        _ => 0,
    }
}

/// Refuses a selection that leaves a layer less than it has to keep. A whole block may go where blocks do.
///
/// # Errors
/// Returns what [`UnitMap::remove`] returns, and [`Error::DoesNotFit`] for a layer that would keep too few
/// units.
pub fn check_kept(units: &UnitMap, selection: &Selection, budget: &Budget) -> Result<()> {
    let mut after = units.clone();
    after.remove(selection)?;
    let may_go_whole =
        |leaf| budget.counts.keys().any(|site| site.is_block() && site.leaves().contains(&leaf));
    for (&LayerSite { layer, site }, gone) in selection.iter().filter(|(_, gone)| !gone.is_empty()) {
        let (there, left) = (units.layers()[layer].count(site), after.layers()[layer].count(site));
        let least = least(site, budget.min_heads).max(1);
        if left < least && !(left == 0 && may_go_whole(site)) {
            return Err(Error::does_not_fit(format!(
                "pruning {} {} would leave layer {layer} with {left} of its {there} {}: at least {least} must stay",
                site.name(),
                listed(gone),
                site.name(),
            )));
        }
    }
    Ok(())
}

/// ⌊ratio · n⌋ as decimal numbers have it: 0.29 of 100 is 29, though the nearest `f64` product lies below.
pub fn portion(ratio: f64, n: usize) -> usize {
    (ratio * n as f64 + 1e-9).floor() as usize
}

/// Units that could go at most, as [`Budget::counts`] counts them.
pub fn prunable(units_there: &UnitMap, site: Site, min_heads: usize) -> usize {
    let layer = |l: &LayerUnits| {
        let spare = l.count(site.counted()).saturating_sub(least(site, min_heads));
        match site {
            Site::KvGroup => {
                let mut sizes: Vec<usize> = units(l, site).iter().map(Vec::len).collect();
                sizes.sort_unstable();
                let mut taken = 0;
                sizes
                    .into_iter()
                    .take_while(|s| {
                        taken += s;
                        taken <= spare
                    })
                    .sum()
            }
            _ => spare,
        }
    };
    units_there.layers().iter().map(layer).sum()
}

/// A cycle's counts of units of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CycleCounts {
    /// To prune.
    pub prune: usize,
    /// Units that are to be gone after growth; `None` leaves growth to the ratio.
    pub goal: Option<usize>,
    /// Whether enough can be pruned that regrowth ends at the goal; if not, pruning stops at the goal.
    pub growth_fits: bool,
}

/// How many units go in cycle `cycle` (from 1) of `cycles`; `most` is how many could go ([`prunable`]).
pub fn cycle_counts(
    schedule: Schedule,
    units: &UnitMap,
    site: Site,
    ratios: (f64, f64),
    (cycle, cycles): (usize, usize),
    most: usize,
) -> CycleCounts {
    let (pruning, growth) = ratios;
    if schedule == Schedule::PerCycle {
        return CycleCounts {
            prune: portion(pruning, units.count(site.counted())),
            goal: None,
            growth_fits: true,
        };
    }
    // In whole units throughout, so that groups add up too.
    let size = unit_size(units, site);
    let (total, there) = (units.total_of(site.counted()), units.count(site.counted()));
    let (target, gone) = (portion(pruning, total) / size, (total - there) / size);
    // An equal part of what is left to do, whatever the run started from; the last cycle does all of it.
    let cycles_left = cycles + 1 - cycle;
    let goal = if target >= gone {
        gone + (target - gone) / cycles_left
    } else {
        gone - (gone - target) / cycles_left
    };
    // The smallest number of units pruned at the peak that growth brings down to the goal, if so many can go.
    let lowest = goal.max(gone);
    let peak = (lowest..=gone + most / size).find(|&p| p - portion(growth, p) >= goal);
    CycleCounts {
        prune: (peak.unwrap_or(lowest) - gone) * size,
        goal: Some(goal * size),
        growth_fits: peak.is_some(),
    }
}

/// ⌊growth · pruned⌋, in whole units.
pub fn growth(ratio: f64, pruned: usize, units: &UnitMap, site: Site) -> usize {
    let size = unit_size(units, site);
    portion(ratio, pruned) / size * size
}

/// Units that go or return at once.
pub(crate) fn unit_size(units: &UnitMap, site: Site) -> usize {
    match (site, units.layers().first()) {
        (Site::KvGroup, Some(layer)) => layer.total() / layer.kv_total(),
        _ => 1,
    }
}

/// What can be pruned at once in a layer: positions among its units that are there.
fn units(layer: &LayerUnits, site: Site) -> Vec<Vec<usize>> {
    let positions = 0..layer.count(site.counted());
    match site {
        Site::KvGroup => {
            let of = layer.kv_positions();
            (0..layer.kv_active().len())
                .map(|g| positions.clone().filter(|&p| of[p] == g).collect())
                .collect()
        }
        _ => positions.map(|p| vec![p]).collect(),
    }
}

/// A layer while units are being chosen.
struct Queue {
    /// `(mean score, units)`, descending by score: the least important last.
    units: Vec<(f64, Vec<usize>)>,
    /// Units that may still go.
    spare: usize,
    /// The layer's proportional share of the budget that is left.
    share: usize,
}

impl Queue {
    fn new(layer: &LayerUnits, scores: &[f64], site: Site, share: usize, least: usize) -> Self {
        let there = layer.units(site.counted());
        let mut sorted: Vec<(f64, Vec<usize>)> = units(layer, site)
            .into_iter()
            .map(|positions| {
                let mean = positions.iter().map(|&p| scores[p]).sum::<f64>() / positions.len() as f64;
                (mean, positions.iter().map(|&p| there[p]).collect())
            })
            .collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| b.1.cmp(&a.1)));
        Self { units: sorted, spare: there.len().saturating_sub(least), share }
    }

    /// The least important unit that fits into what may still go, and its score. Groups that have lost heads
    /// are smaller than others.
    fn candidate(&self, budget: usize) -> Option<(usize, f64)> {
        let unit = self.units.iter().rposition(|(_, units)| units.len() <= self.spare.min(budget))?;
        Some((unit, self.units[unit].0))
    }

    fn take(&mut self, unit: usize) -> Vec<usize> {
        let (_, units) = self.units.remove(unit);
        self.spare -= units.len();
        units
    }
}

/// The least important units within the budget: exactly `budget.counts` of each kind, unless `min_heads` or
/// whole groups forbid, or units are in blocks that go.
///
/// `keep` is higher for units to keep. Ties go to the lower layer and index.
///
/// # Panics
/// If units of a kind of the budget have no scores in `keep` ([`Scores::check`]).
pub fn choose(units: &UnitMap, keep: &Scores, budget: &Budget) -> Selection {
    let mut chosen = Selection::new();
    // Blocks first, the largest before the others: what is in them goes with them.
    for (&site, &count) in budget.counts.iter().rev() {
        let of_kind = choose_of(units, keep, site, count, &chosen, budget);
        let leaves = |layer: usize| site.leaves().iter().map(move |&site| LayerSite { layer, site });
        if site.is_block() {
            let places = of_kind.keys().flat_map(|place| leaves(place.layer));
            chosen.extend(places.map(|place| (place, units.layers()[place.layer].units(place.site))));
        } else {
            chosen.extend(of_kind);
        }
    }
    chosen.retain(|_, units| !units.is_empty());
    chosen
}

/// Those of one kind, where nothing goes yet.
fn choose_of(
    units: &UnitMap,
    keep: &Scores,
    site: Site,
    count: usize,
    gone: &Selection,
    budget: &Budget,
) -> Selection {
    let there = units.count(site.counted()).max(1);
    let queue = |(layer, known): (usize, &LayerUnits)| {
        let place = LayerSite { layer, site: site.counted() };
        let share = count * known.count(place.site) / there;
        let mut queue = Queue::new(known, keep.at(place), site, share, least(site, budget.min_heads));
        if site.leaves().iter().any(|&site| gone.contains_key(&LayerSite { layer, site })) {
            queue.units.clear();
        }
        queue
    };
    let mut queues: Vec<Queue> = units.layers().iter().enumerate().map(queue).collect();
    let mut chosen = Selection::new();
    let mut remaining = count;
    let mut pick = |queues: &mut [Queue], layer: usize, unit: usize, remaining: &mut usize| {
        let units = queues[layer].take(unit);
        *remaining -= units.len();
        let count = units.len();
        chosen.entry(LayerSite { layer, site: site.counted() }).or_default().extend(units);
        count
    };
    if budget.scope == Scope::Layer {
        for layer in 0..queues.len() {
            while let Some((unit, _)) = queues[layer].candidate(queues[layer].share) {
                let count = pick(&mut queues, layer, unit, &mut remaining);
                queues[layer].share -= count;
            }
        }
    }
    // Remainders: the lowest next candidate; within `layer` scope each layer gives one before any gives two.
    let mut given = vec![0; queues.len()];
    loop {
        let next = (0..queues.len())
            .filter_map(|l| {
                let (unit, score) = queues[l].candidate(remaining)?;
                Some((if budget.scope == Scope::Layer { given[l] } else { 0 }, score, l, unit))
            })
            .min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        let Some((_, _, layer, unit)) = next else { break };
        pick(&mut queues, layer, unit, &mut remaining);
        given[layer] += 1;
    }
    chosen.values_mut().for_each(|units| units.sort_unstable());
    chosen
}

/// In which order units of several kinds would leave by these scores: the kind and how many at once.
pub(crate) fn order(
    units_there: &UnitMap,
    keep: &Scores,
    kinds: impl Iterator<Item = Site>,
) -> Vec<(Site, usize)> {
    let mut all: Vec<(f64, Site, usize)> = Vec::new();
    for site in kinds {
        for (layer, known) in units_there.layers().iter().enumerate() {
            let scores = keep.at(LayerSite { layer, site: site.counted() });
            all.extend(units(known, site).into_iter().map(|positions| {
                let mean = positions.iter().map(|&p| scores[p]).sum::<f64>() / positions.len() as f64;
                (mean, site, positions.len())
            }));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    all.into_iter().map(|(_, site, size)| (site, size)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pruned_map(layers: usize, group: usize, kv: usize, gone: &[usize]) -> UnitMap {
        let mut map = UnitMap::full(layers, group * kv, kv);
        for (layer, &n) in gone.iter().enumerate().take(layers) {
            let heads = (0..n.min(group * kv - 1)).collect();
            map.remove(&Selection::from([(LayerSite::heads(layer), heads)])).expect("leaves one");
        }
        map
    }

    fn scores(map: &UnitMap, seed: u64) -> Scores {
        use rand::RngExt;
        let mut rng = crate::rng::stream(seed, "test");
        // Few distinct values, so that ties occur.
        Scores::of_heads(
            map.layers()
                .iter()
                .map(|l| l.active().iter().map(|_| f64::from(rng.random_range(0..6u32))).collect()),
        )
    }

    proptest! {
        #[test]
        fn budgets_are_exact(
            layers in 1usize..7, group in 1usize..4, kv in 1usize..6, gone in proptest::collection::vec(0usize..6, 7),
            percent in 0u32..100, min_heads in 1usize..5, global: bool, seed: u64,
        ) {
            let map = pruned_map(layers, group, kv, &gone);
            let want = portion(f64::from(percent) / 100.0, map.num_active());
            prop_assert_eq!(want, map.num_active() * percent as usize / 100);
            let scope = if global { Scope::Global } else { Scope::Layer };
            let keep = scores(&map, seed);
            let budget = Budget::of(Site::Head, want, scope, min_heads);
            let chosen = choose(&map, &keep, &budget);
            let count: usize = chosen.values().map(Vec::len).sum();
            prop_assert_eq!(count, want.min(prunable(&map, Site::Head, min_heads)));
            let mut after = map.clone();
            after.remove(&chosen).expect("valid selection");
            for (before, after) in map.layers().iter().zip(after.layers()) {
                prop_assert!(after.active().len() >= min_heads.min(before.active().len()));
            }
            if scope == Scope::Layer && min_heads == 1 && want > 0 {
                // No layer gives more than one beyond its share unless others cannot.
                let shares: Vec<usize> = map.layers().iter().map(|l| want * l.active().len() / map.num_active()).collect();
                let blocked = map.layers().iter().zip(&shares).any(|(l, s)| l.active().len() <= s + 1);
                if !blocked {
                    for (layer, share) in shares.iter().enumerate() {
                        let n = chosen.get(&LayerSite::heads(layer)).map_or(0, Vec::len);
                        prop_assert!(n == *share || n == share + 1);
                    }
                }
            }
        }

        #[test]
        fn whole_groups_are_as_many_as_fit(
            layers in 1usize..6, group in 1usize..5, kv in 2usize..6, percent in 0u32..100, min_heads in 1usize..5, global: bool, seed: u64,
        ) {
            let map = UnitMap::full(layers, group * kv, kv);
            let want = portion(f64::from(percent) / 100.0, map.num_active());
            let scope = if global { Scope::Global } else { Scope::Layer };
            let chosen = choose(&map, &scores(&map, seed), &Budget::of(Site::KvGroup, want, scope, min_heads));
            let count: usize = chosen.values().map(Vec::len).sum();
            let most = prunable(&map, Site::KvGroup, min_heads);
            prop_assert_eq!(count, (want / group * group).min(most));
            for (&LayerSite { layer, .. }, heads) in &chosen {
                let of = |h: &usize| map.layers()[layer].kv_group_of(*h);
                for head in heads {
                    prop_assert_eq!(heads.iter().filter(|h| of(h) == of(head)).count(), group);
                }
            }
        }

        #[test]
        fn target_schedules_end_on_target(
            layers in 1usize..6, group in 1usize..4, kv in 1usize..6, percent in 0u32..90, growth_percent in 0u32..=100, cycles in 1usize..6, groups: bool,
        ) {
            let unit = if groups { Site::KvGroup } else { Site::Head };
            let (ratio, growth_ratio) = (f64::from(percent) / 100.0, f64::from(growth_percent) / 100.0);
            let full = UnitMap::full(layers, group * kv, kv);
            let size = if groups { group } else { 1 };
            let goal = portion(ratio, full.total()) / size * size;
            let mut map = full.clone();
            for cycle in 1..=cycles {
                let most = prunable(&map, unit, 1);
                if goal > map.num_pruned() + most {
                    return Ok(());
                }
                let counts = cycle_counts(Schedule::Target, &map, unit, (ratio, growth_ratio), (cycle, cycles), most);
                prop_assert!(counts.prune <= most);
                let keep = scores(&map, 1);
                let chosen = choose(&map, &keep, &Budget::of(unit, counts.prune, Scope::Global, 1));
                map.remove(&chosen).expect("valid");
                let mut grow = (map.num_pruned() - counts.goal.expect("a target has one")) / size;
                while grow > 0 {
                    let pruned = map.pruned();
                    let (&LayerSite { layer, .. }, heads) = pruned.iter().next().expect("something is pruned");
                    let group_of = |h: usize| map.layers()[layer].kv_group_of(h);
                    let back = if groups { heads.iter().copied().filter(|&h| group_of(h) == group_of(heads[0])).collect() } else { vec![heads[0]] };
                    map.insert(&Selection::from([(LayerSite::heads(layer), back)])).expect("pruned");
                    grow -= 1;
                }
            }
            prop_assert_eq!(map.num_pruned(), goal);
        }
    }

    #[test]
    fn growth_that_needs_more_than_may_go_does_not_fit() {
        let heads = UnitMap::full(5, 8, 4);
        let counts = |growth| cycle_counts(Schedule::Target, &heads, Site::Head, (0.5, growth), (1, 1), 35);
        assert_eq!(counts(0.4), CycleCounts { prune: 32, goal: Some(20), growth_fits: true });
        assert_eq!(counts(0.5), CycleCounts { prune: 20, goal: Some(20), growth_fits: false });
    }

    #[test]
    fn portions_follow_decimal_arithmetic() {
        assert_eq!(portion(0.29, 100), 29);
        assert_eq!(portion(0.3, 270), 81);
        assert_eq!(portion(0.7, 10), 7);
        assert_eq!(portion(0.1, 9), 0);
    }

    #[test]
    fn a_group_that_is_too_large_does_not_hide_a_smaller_one() {
        let mut map = UnitMap::full(1, 6, 3);
        map.remove(&Selection::from([(LayerSite::heads(0), vec![5])])).expect("leaves five");
        let keep = Scores::of_heads([vec![1.0, 1.0, 2.0, 2.0, 3.0]]);
        let budget = Budget::of(Site::KvGroup, 1, Scope::Layer, 1);
        for scope in [Scope::Layer, Scope::Global] {
            assert_eq!(
                choose(&map, &keep, &Budget { scope, ..budget.clone() }),
                Selection::from([(LayerSite::heads(0), vec![4])])
            );
        }
    }

    #[test]
    fn remainders_go_to_the_layers_with_the_lowest_candidates() {
        let map = UnitMap::full(3, 4, 4);
        let keep =
            Scores::of_heads([vec![5.0, 6.0, 7.0, 8.0], vec![1.0, 2.0, 3.0, 4.0], vec![0.5, 9.0, 9.0, 9.0]]);
        // Five of twelve: one each, then the two lowest next candidates.
        let budget = Budget::of(Site::Head, 5, Scope::Layer, 1);
        let chosen = choose(&map, &keep, &budget);
        assert_eq!(
            chosen,
            Selection::from([
                (LayerSite::heads(0), vec![0, 1]),
                (LayerSite::heads(1), vec![0, 1]),
                (LayerSite::heads(2), vec![0])
            ])
        );
        let global = choose(&map, &keep, &Budget { scope: Scope::Global, ..budget });
        // Layer 1 keeps its last head, so the fifth comes from layer 0.
        assert_eq!(
            global,
            Selection::from([
                (LayerSite::heads(0), vec![0]),
                (LayerSite::heads(1), vec![0, 1, 2]),
                (LayerSite::heads(2), vec![0])
            ])
        );
    }
}
