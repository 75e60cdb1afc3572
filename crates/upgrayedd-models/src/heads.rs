//! Which heads a model still has. Head indices are the original ones for the whole life of a model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The key in config.json under which an optimised model keeps its heads.
pub const CONFIG_KEY: &str = "upgrayedd";

/// A query head, by its original index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HeadId {
    /// Layer, from 0.
    pub layer: usize,
    /// Index in the unpruned layer, from 0.
    pub head: usize,
}

/// Heads by layer: the form in which strategies answer.
pub type HeadSelection = BTreeMap<usize, Vec<usize>>;

/// The heads of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerHeads {
    total: usize,
    kv_total: usize,
    active: Vec<usize>,
}

impl LayerHeads {
    /// Query heads of the unpruned layer.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Key/value heads of the unpruned layer.
    pub fn kv_total(&self) -> usize {
        self.kv_total
    }

    /// Query heads still there, ascending original indices. The weights' rows follow this order.
    pub fn active(&self) -> &[usize] {
        &self.active
    }

    /// Query heads removed, ascending original indices.
    pub fn pruned(&self) -> Vec<usize> {
        (0..self.total).filter(|h| !self.is_active(*h)).collect()
    }

    /// Whether the query head is still there.
    pub fn is_active(&self, head: usize) -> bool {
        self.active.binary_search(&head).is_ok()
    }

    /// The key/value head (original index) that a query head (original index) reads.
    pub fn kv_group_of(&self, head: usize) -> usize {
        head * self.kv_total / self.total
    }

    /// Key/value heads still there: those that an active query head reads.
    pub fn kv_active(&self) -> Vec<usize> {
        let mut groups: Vec<usize> = self.active.iter().map(|&h| self.kv_group_of(h)).collect();
        groups.dedup();
        groups
    }

    /// For each active query head the position of its key/value head among the active ones.
    pub fn kv_positions(&self) -> Vec<usize> {
        let groups = self.kv_active();
        self.active.iter().filter_map(|&h| groups.binary_search(&self.kv_group_of(h)).ok()).collect()
    }
}

/// The heads of all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadMap {
    layers: Vec<LayerHeads>,
}

impl HeadMap {
    /// All heads there, of layers with so many query heads and key/value heads, of which the former are a multiple.
    pub fn new(layers: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let layer = |(total, kv_total)| LayerHeads { total, kv_total, active: (0..total).collect() };
        Self { layers: layers.into_iter().map(layer).collect() }
    }

    /// The same for layers that are alike.
    pub fn full(layers: usize, heads: usize, kv_heads: usize) -> Self {
        Self::new(std::iter::repeat_n((heads, kv_heads), layers))
    }

    /// With just the given heads, one list a layer.
    pub fn with_active(mut self, active: Vec<Vec<usize>>) -> Result<Self> {
        if active.len() != self.layers.len() {
            return Err(Error::invalid(format!("heads of {} layers are listed, of {}", active.len(), self.layers.len())));
        }
        for (index, (layer, active)) in self.layers.iter_mut().zip(active).enumerate() {
            let ascending = active.windows(2).all(|w| w[0] < w[1]);
            if active.is_empty() || !ascending || active.iter().any(|&h| h >= layer.total) {
                return Err(Error::invalid(format!(
                    "layer {index} lists the heads {active:?}: expected ascending indices below {}, at least one",
                    layer.total
                )));
            }
            layer.active = active;
        }
        Ok(self)
    }

    /// Layer by layer.
    pub fn layers(&self) -> &[LayerHeads] {
        &self.layers
    }

    /// Query heads of the unpruned model.
    pub fn total(&self) -> usize {
        self.layers.iter().map(LayerHeads::total).sum()
    }

    /// Query heads still there.
    pub fn num_active(&self) -> usize {
        self.layers.iter().map(|l| l.active.len()).sum()
    }

    /// Query heads removed.
    pub fn num_pruned(&self) -> usize {
        self.total() - self.num_active()
    }

    /// Query heads per layer.
    pub fn counts(&self) -> Vec<usize> {
        self.layers.iter().map(|l| l.active.len()).collect()
    }

    /// Every removed head.
    pub fn pruned(&self) -> HeadSelection {
        let pruned = self.layers.iter().map(LayerHeads::pruned).enumerate();
        pruned.filter(|(_, heads)| !heads.is_empty()).collect()
    }

    /// Takes heads out. Refuses what is not there, named twice, or would leave a layer with fewer than `min_heads`.
    pub fn remove(&mut self, selection: &HeadSelection, min_heads: usize) -> Result<()> {
        self.check(selection, true)?;
        for (&layer, heads) in selection {
            let left = self.layers[layer].active.len() - heads.len();
            if left < min_heads.max(1) && !heads.is_empty() {
                return Err(Error::invalid(format!(
                    "pruning heads {heads:?} would leave layer {layer} with {left} of its {} heads: at least {} must stay",
                    self.layers[layer].active.len(),
                    min_heads.max(1)
                )));
            }
        }
        for (&layer, heads) in selection {
            self.layers[layer].active.retain(|h| !heads.contains(h));
        }
        Ok(())
    }

    /// Puts heads back. Refuses what is still there.
    pub fn insert(&mut self, selection: &HeadSelection) -> Result<()> {
        self.check(selection, false)?;
        for (&layer, heads) in selection {
            let active = &mut self.layers[layer].active;
            active.extend(heads);
            active.sort_unstable();
        }
        Ok(())
    }

    fn check(&self, selection: &HeadSelection, expect_active: bool) -> Result<()> {
        for (&layer, heads) in selection {
            let Some(known) = self.layers.get(layer) else {
                return Err(Error::invalid(format!("layer {layer} does not exist: the model has {} layers", self.layers.len())));
            };
            for (i, &head) in heads.iter().enumerate() {
                let problem = if head >= known.total {
                    format!("does not exist: the layer has heads 0 to {}", known.total - 1)
                } else if known.is_active(head) != expect_active {
                    let (state, list) = if expect_active { ("is already pruned", "active") } else { ("is not pruned", "pruned") };
                    let choices = if expect_active { known.active.clone() } else { known.pruned() };
                    format!("{state}: the {list} heads are {choices:?}")
                } else if heads[..i].contains(&head) {
                    "is named twice".to_owned()
                } else {
                    continue;
                };
                return Err(Error::invalid(format!("head {head} of layer {layer} {problem}")));
            }
        }
        Ok(())
    }
}

/// A number per active head, layer by layer in the order of [`LayerHeads::active`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeadScores {
    /// `scores[layer][position]`.
    pub layers: Vec<Vec<f64>>,
}

impl HeadScores {
    /// Refuses scores that do not fit the model or are not finite.
    pub fn check(&self, heads: &HeadMap) -> Result<()> {
        for (layer, (scores, known)) in self.layers.iter().zip(heads.layers()).enumerate() {
            if scores.len() != known.active().len() {
                return Err(Error::invalid(format!(
                    "layer {layer} has {} scores for {} active heads",
                    scores.len(),
                    known.active().len()
                )));
            }
            if let Some(position) = scores.iter().position(|s| !s.is_finite()) {
                return Err(Error::NotFinite(format!(
                    "the score of head {} in layer {layer} is {}: the model's weights or the data give no finite value",
                    known.active()[position],
                    scores[position]
                )));
            }
        }
        if self.layers.len() != heads.layers().len() {
            return Err(Error::invalid(format!(
                "scores for {} layers, but the model has {}",
                self.layers.len(),
                heads.layers().len()
            )));
        }
        Ok(())
    }

    /// Multiplies every score.
    pub fn scale(&mut self, factor: f64) {
        self.layers.iter_mut().flatten().for_each(|s| *s *= factor);
    }

    /// The same scores with the opposite sign.
    pub fn negated(&self) -> Self {
        Self { layers: self.layers.iter().map(|l| l.iter().map(|s| -s).collect()).collect() }
    }

    /// Spearman's rank correlation with other scores of the same heads, −1 to 1; equal values share their mean rank. `None`
    /// where all values of one side are equal.
    pub fn rank_correlation(&self, other: &Self) -> Option<f64> {
        let all = |scores: &Self| scores.layers.iter().flatten().copied().collect::<Vec<f64>>();
        rank_correlation(&all(self), &all(other))
    }

    /// Mean per layer.
    pub fn layer_means(&self) -> Vec<f64> {
        self.layers.iter().map(|l| l.iter().sum::<f64>() / l.len().max(1) as f64).collect()
    }
}

/// Spearman's rank correlation, as [`HeadScores::rank_correlation`] has it.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mut ranks = vec![0.0; values.len()];
        for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
            let lower = order.partition_point(|&i| values[i] < values[tied[0]]);
            tied.iter().for_each(|&i| ranks[i] = lower as f64 + (tied.len() - 1) as f64 / 2.0);
        }
        let mean = ranks.iter().sum::<f64>() / ranks.len().max(1) as f64;
        ranks.iter().map(|r| r - mean).collect::<Vec<f64>>()
    };
    let (a, b) = (ranks(a), ranks(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norm = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if a.len() == b.len() && norm > 0.0 { Some(dot(&a, &b) / norm) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_value_heads_leave_with_their_last_reader() {
        let mut map = HeadMap::full(1, 6, 3);
        map.remove(&HeadSelection::from([(0, vec![0, 2, 3])]), 1).expect("heads are there");
        let layer = &map.layers()[0];
        assert_eq!(layer.active(), [1, 4, 5]);
        assert_eq!(layer.kv_active(), [0, 2]);
        assert_eq!(layer.kv_positions(), [0, 1, 1]);
    }

    #[test]
    fn rank_correlations_are_spearmans() {
        let scores = |layers: &[&[f64]]| HeadScores { layers: layers.iter().map(|l| l.to_vec()).collect() };
        let a = scores(&[&[1.0, 2.0], &[3.0, 4.0]]);
        assert_eq!(a.rank_correlation(&scores(&[&[10.0, 20.0], &[30.0, 1e9]])), Some(1.0));
        assert_eq!(a.rank_correlation(&a.negated()), Some(-1.0));
        // Ranks 0.5, 0.5, 2, 3 against 0, 1, 2, 3.
        let tied = a.rank_correlation(&scores(&[&[7.0, 7.0], &[8.0, 9.0]])).expect("they differ");
        assert!((tied - 4.5 / (5.0f64 * 4.5).sqrt()).abs() < 1e-12);
        assert_eq!(a.rank_correlation(&scores(&[&[1.0, 1.0], &[1.0, 1.0]])), None);
    }

    #[test]
    fn impossible_selections_are_refused_and_change_nothing() {
        let mut map = HeadMap::full(2, 4, 4);
        for (layer, heads, word) in [
            (2, vec![0], "layer 2"),
            (0, vec![4], "does not exist"),
            (0, vec![1, 1], "twice"),
            (1, vec![0, 1, 2, 3], "at least 1"),
        ] {
            let error = map.remove(&HeadSelection::from([(layer, heads)]), 1).expect_err("impossible").to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(map, HeadMap::full(2, 4, 4));
        assert!(map.insert(&HeadSelection::from([(0, vec![0])])).is_err());
    }
}
