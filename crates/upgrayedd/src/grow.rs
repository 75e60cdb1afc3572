//! Which archived heads come back, once a strategy has said how many in which layers.

use std::collections::BTreeMap;

use crate::budget::Unit;
use crate::heads::{HeadId, HeadMap, HeadSelection};
use crate::surgery::Archive;
use crate::{Error, Result};

/// The heads that return: in each layer those with the highest score at which they left, whole groups if the unit asks.
///
/// Refuses counts for layers that do not exist or that miss fewer heads.
pub fn choose(heads: &HeadMap, archive: &Archive, counts: &BTreeMap<usize, usize>, unit: Unit) -> Result<HeadSelection> {
    let mut chosen = HeadSelection::new();
    for (&layer, &count) in counts.iter().filter(|(_, count)| **count > 0) {
        let Some(known) = heads.layers().get(layer) else {
            return Err(Error::invalid(format!("layer {layer} does not exist: the model has {} layers", heads.layers().len())));
        };
        let restorable: Vec<usize> =
            known.pruned().into_iter().filter(|&head| archive.contains(HeadId { layer, head })).collect();
        if count > restorable.len() {
            return Err(Error::invalid(format!(
                "{count} heads are to grow in layer {layer}, which has {} to restore",
                restorable.len()
            )));
        }
        let score = |head: usize| archive.departure(HeadId { layer, head }).and_then(|d| d.score).unwrap_or(f64::NEG_INFINITY);
        let mut units: Vec<(f64, Vec<usize>)> = match unit {
            Unit::Head => restorable.iter().map(|&h| (score(h), vec![h])).collect(),
            Unit::KvGroup => {
                let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
                restorable.iter().for_each(|&h| groups.entry(known.kv_group_of(h)).or_default().push(h));
                groups.into_values().map(|g| (g.iter().map(|&h| score(h)).sum::<f64>() / g.len() as f64, g)).collect()
            }
        };
        units.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut picked: Vec<usize> = Vec::new();
        for (_, unit) in units {
            if picked.len() + unit.len() <= count {
                picked.extend(unit);
            }
        }
        picked.sort_unstable();
        chosen.insert(layer, picked);
    }
    Ok(chosen)
}
