//! What became of a layer's units in a run, cycle by cycle.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::record::LayerStart;

/// What became of a unit, and in which cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It was gone before the run.
    Absent,
    /// It has been there all the time.
    Kept,
    /// It was pruned.
    Gone(usize),
    /// It came back.
    Back(usize),
}

/// The units of a kind in one layer that the run has changed, by original index.
#[derive(Debug, Clone, Default)]
struct Changed {
    fates: BTreeMap<usize, Fate>,
    /// Those that were gone before the run and came back in it.
    returned: usize,
}

impl Changed {
    fn prune(&mut self, unit: usize, cycle: usize) {
        self.fates.insert(unit, Fate::Gone(cycle));
    }

    fn grow(&mut self, unit: usize, cycle: usize) {
        let before = self.fates.insert(unit, Fate::Back(cycle));
        self.returned += usize::from(before.is_none());
    }
}

/// A layer's heads and channels.
#[derive(Debug, Clone)]
pub struct Layer {
    /// What it had when the run began.
    pub start: LayerStart,
    heads: Changed,
    channels: Changed,
}

impl Layer {
    /// As the run found it.
    pub fn new(start: LayerStart) -> Self {
        Self { start, heads: Changed::default(), channels: Changed::default() }
    }

    /// What became of every head of the unpruned model.
    pub fn heads(&self) -> Vec<Fate> {
        let found =
            |head| if self.start.heads.binary_search(&head).is_ok() { Fate::Kept } else { Fate::Absent };
        (0..self.start.num_heads)
            .map(|head| self.heads.fates.get(&head).copied().unwrap_or_else(|| found(head)))
            .collect()
    }

    /// How many channels of the unpruned model have met which fate.
    pub fn channels(&self) -> BTreeMap<Fate, usize> {
        let mut counts = BTreeMap::new();
        for fate in self.channels.fates.values() {
            *counts.entry(*fate).or_insert(0) += 1;
        }
        let absent = self.start.num_channels.saturating_sub(self.start.channels + self.channels.returned);
        let kept = self.start.num_channels.saturating_sub(absent + self.channels.fates.len());
        counts
            .extend([(Fate::Absent, absent), (Fate::Kept, kept)].into_iter().filter(|(_, count)| *count > 0));
        counts
    }
}

/// Applies a `pruned` or `grown` event's units: kind → layer → indices.
pub fn apply(layers: &mut [Layer], units: &serde_json::Map<String, Value>, cycle: usize, grown: bool) {
    for (kind, of_kind) in units {
        for (path, indices) in of_kind.as_object().into_iter().flatten() {
            let is_channels = kind == "channels";
            let found = layers.iter_mut().find(|l| {
                *path == if is_channels { l.start.mlp.as_str() } else { l.start.attention.as_str() }
            });
            let Some(layer) = found else { continue };
            let changed = if is_channels { &mut layer.channels } else { &mut layer.heads };
            for unit in indices.as_array().into_iter().flatten().filter_map(Value::as_u64) {
                let unit = usize::try_from(unit).unwrap_or(usize::MAX);
                if grown { changed.grow(unit, cycle) } else { changed.prune(unit, cycle) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fates_follow_the_events() {
        let start = LayerStart {
            attention: "a".into(),
            mlp: "m".into(),
            heads: vec![0, 1, 3],
            num_heads: 4,
            num_kv_heads: 4,
            channels: 6,
            num_channels: 8,
        };
        let mut layers = [Layer::new(start)];
        let units = |value: Value| value.as_object().cloned().expect("an object");
        apply(&mut layers, &units(json!({"heads": {"a": [1, 3]}, "channels": {"m": [0, 1]}})), 1, false);
        apply(&mut layers, &units(json!({"heads": {"a": [2, 3]}, "channels": {"m": [1, 7]}})), 2, true);
        assert_eq!(layers[0].heads(), [Fate::Kept, Fate::Gone(1), Fate::Back(2), Fate::Back(2)]);
        let channels = [(Fate::Absent, 1), (Fate::Kept, 4), (Fate::Gone(1), 1), (Fate::Back(2), 2)];
        assert_eq!(layers[0].channels(), BTreeMap::from(channels));
    }
}
