//! Which units there are.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::unit::{LayerSite, Selection, Site};
use crate::{Error, Result};

/// The units of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerUnits {
    total: usize,
    kv_total: usize,
    channels: usize,
    active: Vec<usize>,
}

impl LayerUnits {
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

    /// The units of a kind that are there, ascending original indices. Only heads leave, and key/value heads
    /// with them.
    pub fn units(&self, site: Site) -> Vec<usize> {
        match site {
            Site::Head => self.active.clone(),
            Site::KvGroup => self.kv_active(),
            Site::Channel => (0..self.channels).collect(),
            Site::Attention | Site::Mlp | Site::Layer => vec![0],
        }
    }

    /// For each active query head the position of its key/value head among the active ones.
    pub fn kv_positions(&self) -> Vec<usize> {
        let groups = self.kv_active();
        self.active.iter().filter_map(|&h| groups.binary_search(&self.kv_group_of(h)).ok()).collect()
    }
}

/// The units of all layers.
///
/// ```
/// use upgrayedd_models::units::{LayerSite, Selection, UnitMap};
///
/// // Two layers of four heads, of which two read the same keys and values.
/// let mut units = UnitMap::full(2, 4, 2);
/// units.remove(&Selection::from([(LayerSite::heads(0), vec![2, 3])]), 1)?;
/// assert_eq!((units.num_active(), units.layers()[0].kv_active()), (6, vec![0]));
/// # Ok::<(), upgrayedd_models::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitMap {
    layers: Vec<LayerUnits>,
}

impl UnitMap {
    /// All units there, of layers with so many query heads, key/value heads (of which the former are a
    /// multiple) and channels.
    pub fn new(layers: impl IntoIterator<Item = (usize, usize, usize)>) -> Self {
        let layer = |(total, kv_total, channels)| LayerUnits {
            total,
            kv_total,
            channels,
            active: (0..total).collect(),
        };
        Self { layers: layers.into_iter().map(layer).collect() }
    }

    /// The same for layers that are alike and have no channels.
    pub fn full(layers: usize, heads: usize, kv_heads: usize) -> Self {
        Self::new(std::iter::repeat_n((heads, kv_heads, 0), layers))
    }

    /// With just the given heads, one list a layer.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] for lists of another number of layers, and for a list that is empty, not
    /// ascending, or has a head that does not exist.
    pub fn with_active(mut self, active: Vec<Vec<usize>>) -> Result<Self> {
        if active.len() != self.layers.len() {
            return Err(Error::malformed(format!(
                "heads of {} layers are listed, of {}",
                active.len(),
                self.layers.len()
            )));
        }
        for (index, (layer, active)) in self.layers.iter_mut().zip(active).enumerate() {
            let ascending = active.windows(2).all(|w| w[0] < w[1]);
            if active.is_empty() || !ascending || active.iter().any(|&h| h >= layer.total) {
                return Err(Error::malformed(format!(
                    "layer {index} lists the heads {active:?}: expected ascending indices below {}, at least one",
                    layer.total
                )));
            }
            layer.active = active;
        }
        Ok(self)
    }

    /// What is there, for files: kind → module path of the layer → original indices. `layers` are the paths
    /// of all.
    pub fn record(&self, layers: &[String]) -> Value {
        let active = |(path, layer): (&String, &LayerUnits)| (path.clone(), layer.active.clone().into());
        let heads: Map<String, Value> = layers.iter().zip(&self.layers).map(active).collect();
        json!({ Site::Head.name(): heads })
    }

    /// With just what a record names.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] for what is no record of these layers, and [`Error::Unsupported`] for
    /// kinds of units other than heads.
    pub fn with_record(self, record: &Value, layers: &[String]) -> Result<Self> {
        let kinds =
            record.as_object().ok_or_else(|| Error::malformed("expected an object of units by kind"))?;
        if let Some(kind) = kinds.keys().find(|kind| *kind != Site::Head.name()) {
            return Err(Error::unsupported(format!("{kind}: this program removes heads only")));
        }
        let heads = record[Site::Head.name()].as_object();
        let heads =
            heads.ok_or_else(|| Error::malformed("heads: expected lists of indices by module path"))?;
        if let Some(path) = heads.keys().find(|path| !layers.contains(path)) {
            return Err(Error::malformed(format!(
                "heads: {path} is no layer: expected {}, …",
                layers.first().map_or("", String::as_str)
            )));
        }
        let active = |path: &String| {
            let listed =
                heads.get(path).ok_or_else(|| Error::malformed(format!("heads: {path} is missing")))?;
            Vec::deserialize(listed).map_err(|e| Error::malformed(format!("heads: {path}: {e}")))
        };
        self.with_active(layers.iter().map(active).collect::<Result<_>>()?)
    }

    /// Layer by layer.
    pub fn layers(&self) -> &[LayerUnits] {
        &self.layers
    }

    /// Query heads of the unpruned model.
    pub fn total(&self) -> usize {
        self.layers.iter().map(LayerUnits::total).sum()
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
    pub fn pruned(&self) -> Selection {
        let pruned = self.layers.iter().map(LayerUnits::pruned).enumerate();
        pruned
            .filter(|(_, heads)| !heads.is_empty())
            .map(|(layer, heads)| (LayerSite::heads(layer), heads))
            .collect()
    }

    /// Takes heads out.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for heads that are not there or named twice, [`Error::Malformed`] if a
    /// layer would be left with fewer than `min_heads`, and [`Error::Unsupported`] for units other than
    /// heads. Nothing changes then.
    pub fn remove(&mut self, selection: &Selection, min_heads: usize) -> Result<()> {
        self.check(selection, true)?;
        for (&LayerSite { layer, .. }, heads) in selection {
            let remaining = self.layers[layer].active.len() - heads.len();
            if remaining < min_heads.max(1) && !heads.is_empty() {
                return Err(Error::malformed(format!(
                    "pruning heads {heads:?} would leave layer {layer} with {remaining} of its {} heads: at least {} must stay",
                    self.layers[layer].active.len(),
                    min_heads.max(1)
                )));
            }
        }
        for (&LayerSite { layer, .. }, heads) in selection {
            self.layers[layer].active.retain(|h| !heads.contains(h));
        }
        Ok(())
    }

    /// Puts heads back.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for heads that are still there, do not exist or are named twice, and
    /// [`Error::Unsupported`] for units other than heads. Nothing changes then.
    pub fn insert(&mut self, selection: &Selection) -> Result<()> {
        self.check(selection, false)?;
        for (&LayerSite { layer, .. }, heads) in selection {
            let active = &mut self.layers[layer].active;
            active.extend(heads);
            active.sort_unstable();
        }
        Ok(())
    }

    fn check(&self, selection: &Selection, expect_active: bool) -> Result<()> {
        for (&LayerSite { layer, site }, heads) in selection {
            if site != Site::Head {
                return Err(Error::unsupported(format!(
                    "{} of layer {layer} cannot be removed: expected heads",
                    site.name()
                )));
            }
            let Some(known) = self.layers.get(layer) else {
                return Err(Error::does_not_fit(format!(
                    "layer {layer} does not exist: the model has {} layers",
                    self.layers.len()
                )));
            };
            for (i, &head) in heads.iter().enumerate() {
                let problem = if head >= known.total {
                    format!("does not exist: the layer has heads 0 to {}", known.total - 1)
                } else if known.is_active(head) != expect_active {
                    let (state, list) = if expect_active {
                        ("is already pruned", "active")
                    } else {
                        ("is not pruned", "pruned")
                    };
                    let choices = if expect_active { known.active.clone() } else { known.pruned() };
                    format!("{state}: the {list} heads are {choices:?}")
                } else if heads[..i].contains(&head) {
                    "is named twice".to_owned()
                } else {
                    continue;
                };
                return Err(Error::does_not_fit(format!("head {head} of layer {layer} {problem}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_value_heads_leave_with_their_last_reader() {
        let mut map = UnitMap::full(1, 6, 3);
        map.remove(&Selection::from([(LayerSite::heads(0), vec![0, 2, 3])]), 1).expect("heads are there");
        let layer = &map.layers()[0];
        assert_eq!(layer.active(), [1, 4, 5]);
        assert_eq!(layer.kv_active(), [0, 2]);
        assert_eq!(layer.kv_positions(), [0, 1, 1]);
    }

    #[test]
    fn impossible_selections_are_refused_and_change_nothing() {
        let mut map = UnitMap::full(2, 4, 4);
        for (layer, heads, word) in [
            (2, vec![0], "layer 2"),
            (0, vec![4], "does not exist"),
            (0, vec![1, 1], "twice"),
            (1, vec![0, 1, 2, 3], "at least 1"),
        ] {
            let error = map
                .remove(&Selection::from([(LayerSite::heads(layer), heads)]), 1)
                .expect_err("impossible")
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(map, UnitMap::full(2, 4, 4));
        assert!(map.insert(&Selection::from([(LayerSite::heads(0), vec![0])])).is_err());
    }
}
