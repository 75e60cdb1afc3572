//! What was removed from a model, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::Tensor;

use crate::files::{DType, TensorFile, safetensors_file};
use crate::units::{LayerUnits, Selection, Site, Unit, UnitMap};
use crate::weights::Role;
use crate::{Error, Result};

/// The file that holds an archive, beside a run's result and in its checkpoints.
pub const ARCHIVE_FILE: &str = "archive.safetensors";

/// Version of the file's layout.
const FORMAT: u32 = 2;
/// The key of the file's metadata; one, for several have no order.
const RECORD: &str = "archive";

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

/// What the file's metadata hold.
#[derive(Serialize, Deserialize)]
struct Record {
    format_version: u32,
    departures: Vec<Recorded>,
}

/// A departure in the file: of which unit, its layer by module path.
#[derive(Serialize, Deserialize)]
struct Recorded {
    layer: String,
    site: Site,
    index: usize,
    #[serde(flatten)]
    departure: Departure,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Archived {
    /// Absent for what left with the last of its heads.
    pub(crate) departure: Option<Departure>,
    pub(crate) slices: Slices,
}

/// Removed units, bit for bit as they were: heads, and key/value heads whose last reader has gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Archive {
    pub(crate) units: BTreeMap<Unit, Archived>,
}

impl Archive {
    /// Whether the unit can be restored.
    pub fn contains(&self, unit: Unit) -> bool {
        self.units.contains_key(&unit)
    }

    /// Every head that can be restored.
    pub fn heads(&self) -> impl Iterator<Item = Unit> + '_ {
        self.units.keys().copied().filter(|unit| unit.site == Site::Head)
    }

    /// The same as a selection.
    pub fn selection(&self) -> Selection {
        let mut selection = Selection::new();
        self.heads().for_each(|unit| selection.entry(unit.place()).or_default().push(unit.index));
        selection
    }

    /// When the unit left and its score then.
    pub fn departure(&self, unit: Unit) -> Option<Departure> {
        self.units.get(&unit)?.departure
    }

    /// Writes the archive as one safetensors file, `layers` being the module paths of the model's layers.
    ///
    /// # Errors
    /// Returns [`Error::NotFinite`] if a weight is not finite, and [`Error::Io`] if the system cannot write
    /// the file.
    ///
    /// # Panics
    /// If the archive holds units of a layer that `layers` does not name.
    pub fn save(&self, path: &Path, layers: &[String]) -> Result<()> {
        let (mut tensors, mut departures) = (Vec::new(), Vec::new());
        for (unit, archived) in &self.units {
            let Unit { layer, site, index } = *unit;
            for (role, slice) in &archived.slices {
                tensors.push((
                    format!("{}.{}.{index}.{role}", layers[layer], site.name()),
                    slice.clone(),
                    DType::F32,
                ));
            }
            departures.extend(archived.departure.map(|departure| Recorded {
                layer: layers[layer].clone(),
                site,
                index,
                departure,
            }));
        }
        let record = Record { format_version: FORMAT, departures };
        let record = serde_json::to_string(&record).map_err(|e| Error::bad_file(path, e.to_string()))?;
        safetensors_file::write(path, tensors, [(RECORD.to_owned(), record)].into())
    }

    /// Reads an archive written by [`Archive::save`] for a model with these layers.
    ///
    /// # Errors
    /// Returns [`Error::File`] if the file is no archive, has another format, is damaged, or tells of a layer
    /// that `layers` does not name, and [`Error::Io`] if the system cannot read it.
    pub fn load(path: &Path, layers: &[String]) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let metadata = file.metadata();
        if metadata.contains_key("departures") {
            return Err(other_format(path, 1));
        }
        let record = metadata.get(RECORD).and_then(|record| serde_json::from_str(record).ok());
        let Record { format_version, departures } =
            record.ok_or_else(|| Error::bad_file(path, "is not an archive of what was pruned"))?;
        if format_version != FORMAT {
            return Err(other_format(path, format_version));
        }
        let mut archive = Self::default();
        for Recorded { layer, site, index, departure } in departures {
            if site != Site::Head {
                return Err(Error::bad_file(
                    path,
                    format!("tells when {} left: expected heads", site.name()),
                ));
            }
            let layer = layers.iter().position(|name| *name == layer);
            let layer = layer
                .ok_or_else(|| Error::bad_file(path, "tells of a layer that the model does not have"))?;
            let archived = Archived { departure: Some(departure), slices: Slices::new() };
            archive.units.insert(Unit { layer, site, index }, archived);
        }
        for name in file.names() {
            let (unit, role) = parse_name(&name, layers)
                .ok_or_else(|| Error::bad_file(path, format!("holds an unexpected tensor {name}")))?;
            let slice = file.read(&name)?;
            if unit.site == Site::Head && !archive.contains(unit) {
                return Err(Error::bad_file(path, format!("holds {name}, but no record of when it left")));
            }
            let archived = archive
                .units
                .entry(unit)
                .or_insert_with(|| Archived { departure: None, slices: Slices::new() });
            archived.slices.insert(role, slice);
        }
        Ok(archive)
    }

    /// Per layer: how many of its pruned heads can be restored. A model may have lost heads before it came to
    /// this program.
    pub fn restorable(&self, units: &UnitMap) -> Vec<usize> {
        let count = |(layer, known): (usize, &LayerUnits)| {
            known.pruned().into_iter().filter(|&head| self.contains(Unit::head(layer, head))).count()
        };
        units.layers().iter().enumerate().map(count).collect()
    }
}

/// `model.layers.3.self_attn.heads.5.attn.q.weight` → head 5 of layer 3, attn.q.weight.
fn parse_name(name: &str, layers: &[String]) -> Option<(Unit, Role)> {
    let rest = |path: &String| name.strip_prefix(path.as_str())?.strip_prefix('.');
    let (layer, rest) = layers.iter().enumerate().find_map(|(layer, path)| Some((layer, rest(path)?)))?;
    let (site, rest) = rest.split_once('.')?;
    let (index, role) = rest.split_once('.')?;
    let site = [Site::Head, Site::KvGroup].into_iter().find(|known| known.name() == site)?;
    Some((Unit { layer, site, index: index.parse().ok()? }, role.parse().ok()?))
}

fn other_format(path: &Path, format: u32) -> Error {
    Error::unsupported(format!("is an archive of format {format}: this program reads {FORMAT}")).of_file(path)
}
