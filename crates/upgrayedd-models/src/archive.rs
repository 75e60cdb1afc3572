//! What was removed from a model, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::Tensor;

use crate::files::{DType, TensorFile, safetensors_file};
use crate::heads::{HeadId, HeadMap, HeadSelection, LayerHeads};
use crate::weights::Role;
use crate::{Error, Result};

/// The file that holds an archive, beside a run's result and in its checkpoints.
pub const ARCHIVE_FILE: &str = "archive.safetensors";

/// Slices of a unit's weights.
pub(crate) type Slices = BTreeMap<Role, Tensor>;

/// Why and when a head left.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// Cycle, from 1; 0 if it was pruned outside a run.
    pub cycle: usize,
    /// Its importance then (higher = keep), if it was scored.
    pub score: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ArchivedHead {
    pub(crate) departure: Departure,
    pub(crate) slices: Slices,
}

/// Removed heads, bit for bit as they were.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Archive {
    pub(crate) heads: BTreeMap<HeadId, ArchivedHead>,
    /// Key/value heads whose last reader has gone: `(layer, group)` → slices.
    pub(crate) groups: BTreeMap<(usize, usize), Slices>,
}

impl Archive {
    /// Whether the head can be restored.
    pub fn contains(&self, head: HeadId) -> bool {
        self.heads.contains_key(&head)
    }

    /// Every head that can be restored.
    pub fn heads(&self) -> impl Iterator<Item = HeadId> + '_ {
        self.heads.keys().copied()
    }

    /// The same, by layer.
    pub fn selection(&self) -> HeadSelection {
        let mut selection = HeadSelection::new();
        self.heads().for_each(|id| selection.entry(id.layer).or_default().push(id.head));
        selection
    }

    /// When the head left and its score then.
    pub fn departure(&self, head: HeadId) -> Option<Departure> {
        self.heads.get(&head).map(|h| h.departure)
    }

    /// Writes the archive as one safetensors file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (id, head) in &self.heads {
            for (part, slice) in &head.slices {
                tensors.push((format!("layers.{}.heads.{}.{part}", id.layer, id.head), slice.clone()));
            }
        }
        for ((layer, group), slices) in &self.groups {
            for (part, slice) in slices {
                tensors.push((format!("layers.{layer}.groups.{group}.{part}"), slice.clone()));
            }
        }
        let departures: Vec<(HeadId, Departure)> = self.heads.iter().map(|(id, h)| (*id, h.departure)).collect();
        let departures = serde_json::to_string(&departures).map_err(|e| Error::bad_file(path, e.to_string()))?;
        safetensors_file::write(path, tensors, DType::F32, [("departures".to_owned(), departures)].into())
    }

    /// Reads an archive written by [`Archive::save`].
    pub fn load(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let metadata = file.metadata();
        let departures: Vec<(HeadId, Departure)> = metadata
            .get("departures")
            .and_then(|d| serde_json::from_str(d).ok())
            .ok_or_else(|| Error::bad_file(path, "is not an archive of heads"))?;
        let mut archive = Self::default();
        for (id, departure) in departures {
            archive.heads.insert(id, ArchivedHead { departure, slices: BTreeMap::new() });
        }
        for name in file.names() {
            let parsed = parse_name(&name).ok_or_else(|| Error::bad_file(path, format!("holds an unexpected tensor {name}")))?;
            let slice = file.read(&name)?;
            match parsed {
                (layer, "heads", head, part) => {
                    let head = archive.heads.get_mut(&HeadId { layer, head });
                    let head =
                        head.ok_or_else(|| Error::bad_file(path, format!("holds {name}, but no record of when it left")))?;
                    head.slices.insert(part, slice);
                }
                (layer, _, group, part) => {
                    archive.groups.entry((layer, group)).or_default().insert(part, slice);
                }
            }
        }
        Ok(archive)
    }

    /// Per layer: how many of its pruned heads can be restored. A model may have lost heads before it came to this program.
    pub fn restorable(&self, heads: &HeadMap) -> Vec<usize> {
        let count = |(layer, known): (usize, &LayerHeads)| {
            known.pruned().into_iter().filter(|&head| self.contains(HeadId { layer, head })).count()
        };
        heads.layers().iter().enumerate().map(count).collect()
    }
}

/// `layers.3.heads.5.attn.q.weight` → `(3, "heads", 5, attn.q.weight)`.
fn parse_name(name: &str) -> Option<(usize, &str, usize, Role)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (kind, rest) = rest.split_once('.')?;
    let (index, role) = rest.split_once('.')?;
    if !["heads", "groups"].contains(&kind) {
        return None;
    }
    Some((layer.parse().ok()?, kind, index.parse().ok()?, role.parse().ok()?))
}
