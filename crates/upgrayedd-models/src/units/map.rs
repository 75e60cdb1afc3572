//! Which units there are.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::paths::Paths;
use super::unit::{LayerSite, Selection, Site};
use crate::{Error, Result};

/// The units of one kind in a layer: so many at first, and those that are still there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Present {
    total: usize,
    /// Ascending original indices.
    active: Vec<usize>,
}

impl Present {
    fn all(total: usize) -> Self {
        Self { total, active: (0..total).collect() }
    }

    fn has(&self, index: usize) -> bool {
        self.active.binary_search(&index).is_ok()
    }

    fn pruned(&self) -> Vec<usize> {
        (0..self.total).filter(|index| !self.has(*index)).collect()
    }
}

/// The units of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerUnits {
    heads: Present,
    kv_total: usize,
    channels: Present,
}

impl LayerUnits {
    /// Query heads of the unpruned layer.
    pub fn total(&self) -> usize {
        self.heads.total
    }

    /// Key/value heads of the unpruned layer.
    pub fn kv_total(&self) -> usize {
        self.kv_total
    }

    /// Query heads still there, ascending original indices. The weights' rows follow this order.
    pub fn active(&self) -> &[usize] {
        &self.heads.active
    }

    /// Query heads removed, ascending original indices.
    pub fn pruned(&self) -> Vec<usize> {
        self.heads.pruned()
    }

    /// Whether the query head is still there.
    pub fn is_active(&self, head: usize) -> bool {
        self.heads.has(head)
    }

    /// The key/value head (original index) that a query head (original index) reads.
    pub fn kv_group_of(&self, head: usize) -> usize {
        head * self.kv_total / self.heads.total
    }

    /// Key/value heads still there: those that an active query head reads.
    pub fn kv_active(&self) -> Vec<usize> {
        let mut groups: Vec<usize> = self.heads.active.iter().map(|&h| self.kv_group_of(h)).collect();
        groups.dedup();
        groups
    }

    /// Channels still there, ascending original indices. The weights' rows follow this order.
    pub fn channels(&self) -> &[usize] {
        &self.channels.active
    }

    /// The units of a kind that are there, ascending original indices. Heads and channels leave; key/value heads with
    /// their last head, attention with the last of all, the MLP with its last channel. Of these a layer has one
    /// or none.
    pub fn units(&self, site: Site) -> Vec<usize> {
        match site {
            Site::Head => self.heads.active.clone(),
            Site::KvGroup => self.kv_active(),
            Site::Channel => self.channels.active.clone(),
            Site::Attention | Site::Mlp | Site::Layer => (0..self.count(site)).collect(),
        }
    }

    /// How many units of a kind are there.
    pub fn count(&self, site: Site) -> usize {
        match site {
            Site::Head => self.heads.active.len(),
            Site::KvGroup => self.kv_active().len(),
            Site::Channel => self.channels.active.len(),
            Site::Attention | Site::Mlp | Site::Layer => {
                usize::from(site.leaves().iter().any(|leaf| self.count(*leaf) > 0))
            }
        }
    }

    /// How many units of a kind the unpruned layer has.
    pub fn total_of(&self, site: Site) -> usize {
        match site {
            Site::Head => self.heads.total,
            Site::KvGroup => self.kv_total,
            Site::Channel => self.channels.total,
            Site::Attention | Site::Mlp | Site::Layer => {
                usize::from(site.leaves().iter().any(|leaf| self.total_of(*leaf) > 0))
            }
        }
    }

    /// Units of a kind that have been removed, ascending original indices.
    pub fn pruned_of(&self, site: Site) -> Vec<usize> {
        self.present(site).map(Present::pruned).unwrap_or_default()
    }

    /// Whether a unit is there.
    pub fn has(&self, site: Site, index: usize) -> bool {
        match site {
            Site::KvGroup => self.kv_active().binary_search(&index).is_ok(),
            _ => self.present(site).map_or(index < self.count(site), |present| present.has(index)),
        }
    }

    /// What leaves by itself.
    fn present(&self, site: Site) -> Option<&Present> {
        match site {
            Site::Head => Some(&self.heads),
            Site::Channel => Some(&self.channels),
            _ => None,
        }
    }

    fn present_mut(&mut self, site: Site) -> Option<&mut Present> {
        match site {
            Site::Head => Some(&mut self.heads),
            Site::Channel => Some(&mut self.channels),
            _ => None,
        }
    }

    /// For each active query head the position of its key/value head among the active ones.
    pub fn kv_positions(&self) -> Vec<usize> {
        let groups = self.kv_active();
        self.heads.active.iter().filter_map(|&h| groups.binary_search(&self.kv_group_of(h)).ok()).collect()
    }
}

/// The units of all layers.
///
/// ```
/// use upgrayedd_models::units::{LayerSite, Selection, UnitMap};
///
/// // Two layers of four heads, of which two read the same keys and values.
/// let mut units = UnitMap::full(2, 4, 2);
/// units.remove(&Selection::from([(LayerSite::heads(0), vec![2, 3])]))?;
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
            heads: Present::all(total),
            kv_total,
            channels: Present::all(channels),
        };
        Self { layers: layers.into_iter().map(layer).collect() }
    }

    /// The same for layers that are alike and have no channels.
    pub fn full(layers: usize, heads: usize, kv_heads: usize) -> Self {
        Self::new(std::iter::repeat_n((heads, kv_heads, 0), layers))
    }

    /// With just the given units of a kind, one list a layer: ascending.
    fn with(mut self, site: Site, active: Vec<Vec<usize>>) -> Result<Self> {
        if active.len() != self.layers.len() {
            return Err(Error::malformed(format!(
                "{} of {} layers are listed, of {}",
                site.name(),
                active.len(),
                self.layers.len()
            )));
        }
        for (index, (layer, active)) in self.layers.iter_mut().zip(active).enumerate() {
            let total = layer.total_of(site);
            let Some(present) = layer.present_mut(site) else { continue };
            let ascending = active.windows(2).all(|w| w[0] < w[1]);
            if !ascending || active.iter().any(|&h| h >= total) {
                return Err(Error::malformed(format!(
                    "layer {index} lists the {} {}: expected ascending indices below {total}",
                    site.name(),
                    listed(&active)
                )));
            }
            present.active = active;
        }
        Ok(self)
    }

    /// What is there, for files: kind → module path → original indices, a list of heads, and where channels have
    /// gone, ranges of channels as in `0-12 15 17-30`.
    pub fn record(&self, paths: &Paths) -> Value {
        let of = |site: Site, value: &dyn Fn(&LayerUnits) -> Value| -> Value {
            let entry = |(path, layer): (&String, &LayerUnits)| (path.clone(), value(layer));
            paths.of(site).iter().zip(&self.layers).map(entry).collect::<Map<String, Value>>().into()
        };
        let mut record = json!({ Site::Head.name(): of(Site::Head, &|layer| layer.active().into()) });
        if self.count(Site::Channel) < self.total_of(Site::Channel) {
            record[Site::Channel.name()] = of(Site::Channel, &|layer| to_ranges(layer.channels()).into());
        }
        record
    }

    /// With just what a record names.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] for what is no record of these layers, and [`Error::Unsupported`] for
    /// kinds of units that do not leave by themselves.
    pub fn with_record(self, record: &Value, paths: &Paths) -> Result<Self> {
        let kinds =
            record.as_object().ok_or_else(|| Error::malformed("expected an object of units by kind"))?;
        let known = [Site::Head, Site::Channel];
        if let Some(kind) = kinds.keys().find(|kind| known.iter().all(|site| site.name() != *kind)) {
            return Err(Error::unsupported(format!("{kind}: this program removes heads and channels only")));
        }
        let mut units = self;
        for site in known {
            let name = site.name();
            let Some(listed) = kinds.get(name).or((site == Site::Head).then_some(&Value::Null)) else {
                continue;
            };
            let listed = listed.as_object();
            let listed = listed.ok_or_else(|| {
                Error::malformed(format!("{name}: expected lists of indices by module path"))
            })?;
            let layers = paths.of(site);
            if let Some(path) = listed.keys().find(|path| !layers.contains(path)) {
                return Err(Error::malformed(format!(
                    "{name}: {path} is no layer: expected {}, …",
                    layers.first().map_or("", String::as_str)
                )));
            }
            let active = |(path, layer): (&String, &LayerUnits)| {
                let (value, total) = (listed.get(path), layer.total_of(site));
                let value = value.ok_or_else(|| Error::malformed(format!("{name}: {path} is missing")))?;
                let read = match site {
                    Site::Channel => {
                        value.as_str().and_then(|ranges| from_ranges(ranges, total)).ok_or_else(|| {
                            format!("expected ranges of indices below {total} as in \"0-12 15 17-30\"")
                        })
                    }
                    _ => Vec::deserialize(value).map_err(|e| e.to_string()),
                };
                read.map_err(|e| Error::malformed(format!("{name}: {path}: {e}")))
            };
            let active = layers.iter().zip(&units.layers).map(active).collect::<Result<_>>()?;
            units = units.with(site, active)?;
        }
        Ok(units)
    }

    /// Layer by layer.
    pub fn layers(&self) -> &[LayerUnits] {
        &self.layers
    }

    /// Query heads of the unpruned model.
    pub fn total(&self) -> usize {
        self.total_of(Site::Head)
    }

    /// Query heads still there.
    pub fn num_active(&self) -> usize {
        self.count(Site::Head)
    }

    /// Query heads removed.
    pub fn num_pruned(&self) -> usize {
        self.total() - self.num_active()
    }

    /// Units of a kind in the unpruned model.
    pub fn total_of(&self, site: Site) -> usize {
        self.layers.iter().map(|layer| layer.total_of(site)).sum()
    }

    /// Units of a kind still there.
    pub fn count(&self, site: Site) -> usize {
        self.layers.iter().map(|layer| layer.count(site)).sum()
    }

    /// Whether nothing has been removed.
    pub fn is_full(&self) -> bool {
        Site::ALL.iter().all(|(site, _)| self.count(*site) == self.total_of(*site))
    }

    /// Query heads per layer.
    pub fn counts(&self) -> Vec<usize> {
        self.layers.iter().map(|layer| layer.count(Site::Head)).collect()
    }

    /// Every removed head and channel.
    pub fn pruned(&self) -> Selection {
        let places = (0..self.layers.len())
            .flat_map(|layer| [Site::Head, Site::Channel].map(|site| LayerSite { layer, site }));
        places
            .map(|place| (place, self.layers[place.layer].pruned_of(place.site)))
            .filter(|(_, units)| !units.is_empty())
            .collect()
    }

    /// Takes heads and channels out. A layer that loses all its heads has no attention any more, and without
    /// channels no MLP.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for units that are not there or named twice, and [`Error::Unsupported`]
    /// for units of other kinds. Nothing changes then.
    pub fn remove(&mut self, selection: &Selection) -> Result<()> {
        self.check(selection, true)?;
        for (&LayerSite { layer, site }, units) in selection {
            let gone: BTreeSet<usize> = units.iter().copied().collect();
            if let Some(present) = self.layers[layer].present_mut(site) {
                present.active.retain(|index| !gone.contains(index));
            }
        }
        Ok(())
    }

    /// Puts heads and channels back.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for units that are still there, do not exist or are named twice, and
    /// [`Error::Unsupported`] for units of other kinds. Nothing changes then.
    pub fn insert(&mut self, selection: &Selection) -> Result<()> {
        self.check(selection, false)?;
        for (&LayerSite { layer, site }, units) in selection {
            if let Some(present) = self.layers[layer].present_mut(site) {
                present.active.extend(units);
                present.active.sort_unstable();
            }
        }
        Ok(())
    }

    fn check(&self, selection: &Selection, expect_active: bool) -> Result<()> {
        for (&LayerSite { layer, site }, units) in selection {
            if !matches!(site, Site::Head | Site::Channel) {
                return Err(Error::unsupported(format!(
                    "{} of layer {layer} cannot be removed: expected heads or channels",
                    site.name()
                )));
            }
            let Some(known) = self.layers.get(layer) else {
                return Err(Error::does_not_fit(format!(
                    "layer {layer} does not exist: the model has {} layers",
                    self.layers.len()
                )));
            };
            let mut seen = BTreeSet::new();
            for &index in units {
                let problem = if index >= known.total_of(site) {
                    let last = known.total_of(site).saturating_sub(1);
                    format!("does not exist: the layer has {} 0 to {last}", site.name())
                } else if known.has(site, index) != expect_active {
                    let (state, list) = if expect_active {
                        ("is already pruned", "active")
                    } else {
                        ("is not pruned", "pruned")
                    };
                    let choices = if expect_active { known.units(site) } else { known.pruned_of(site) };
                    format!("{state}: the {list} {} are {}", site.name(), listed(&choices))
                } else if !seen.insert(index) {
                    "is named twice".to_owned()
                } else {
                    continue;
                };
                let one = site.one();
                return Err(Error::does_not_fit(format!("{one} {index} of layer {layer} {problem}")));
            }
        }
        Ok(())
    }
}

/// Indices for a message, cut short where there are many.
pub fn listed(indices: &[usize]) -> String {
    const MOST: usize = 40;
    let shown = &indices[..indices.len().min(MOST)];
    if shown.len() == indices.len() {
        format!("{indices:?}")
    } else {
        format!("{shown:?} and {} more", indices.len() - MOST)
    }
}

/// Ascending indices as ranges: `0-12 15 17-30`.
fn to_ranges(indices: &[usize]) -> String {
    let runs = indices.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some((run.first()?, run.last()?)));
    let run = |(first, last): (&usize, &usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.map(run).collect::<Vec<String>>().join(" ")
}

/// The indices of such ranges; `None` for what is none, or has more than `total`.
fn from_ranges(ranges: &str, total: usize) -> Option<Vec<usize>> {
    let mut indices = Vec::new();
    for range in ranges.split_whitespace() {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last || last >= total || indices.len() > total {
            return None;
        }
        indices.extend(first..=last);
    }
    Some(indices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_value_heads_leave_with_their_last_reader() {
        let mut map = UnitMap::full(1, 6, 3);
        map.remove(&Selection::from([(LayerSite::heads(0), vec![0, 2, 3])])).expect("heads are there");
        let layer = &map.layers()[0];
        assert_eq!(layer.active(), [1, 4, 5]);
        assert_eq!(layer.kv_active(), [0, 2]);
        assert_eq!(layer.kv_positions(), [0, 1, 1]);
    }

    #[test]
    fn impossible_selections_are_refused_and_change_nothing() {
        let mut map = UnitMap::full(2, 4, 4);
        for (layer, heads, word) in
            [(2, vec![0], "layer 2"), (0, vec![4], "does not exist"), (0, vec![1, 1], "twice")]
        {
            let error = map
                .remove(&Selection::from([(LayerSite::heads(layer), heads)]))
                .expect_err("impossible")
                .to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(map, UnitMap::full(2, 4, 4));
        assert!(map.insert(&Selection::from([(LayerSite::heads(0), vec![0])])).is_err());
    }

    #[test]
    fn channels_leave_and_are_recorded_by_ranges() {
        let place = |layer| LayerSite { layer, site: Site::Channel };
        let full = UnitMap::new([(2, 2, 8), (2, 2, 4)]);
        let paths = Paths::new(vec!["a".into(), "b".into()], vec!["x".into(), "y".into()]);
        assert_eq!(full.record(&paths), json!({ "heads": { "a": [0, 1], "b": [0, 1] } }));
        let mut map = full.clone();
        map.remove(&Selection::from([(place(0), vec![3, 5, 6])])).expect("channels are there");
        assert_eq!((map.count(Site::Channel), map.num_active(), map.is_full()), (9, 4, false));
        let record = map.record(&paths);
        assert_eq!(record["channels"], json!({ "x": "0-2 4 7", "y": "0-3" }));
        assert_eq!(full.clone().with_record(&record, &paths).expect("its own"), map);
        for ranges in ["0-2 9", "3-1", "3-1 0-2", "+5", "1-2 2", "a", "0-99999999999", "-1"] {
            let record = json!({ "heads": record["heads"], "channels": { "x": ranges, "y": "0" } });
            assert!(full.clone().with_record(&record, &paths).is_err(), "{ranges}");
        }
        map.remove(&Selection::from([(place(1), vec![0, 1, 2, 3])])).expect("an MLP may go whole");
        let record = map.record(&paths);
        assert_eq!(record["channels"], json!({ "x": "0-2 4 7", "y": "" }));
        assert_eq!(full.clone().with_record(&record, &paths).expect("its own"), map);
        let back = [(place(0), vec![6, 3, 5]), (place(1), vec![0, 1, 2, 3])];
        map.insert(&Selection::from(back)).expect("they had gone");
        assert_eq!(map, full);
    }
}
