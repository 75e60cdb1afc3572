//! What was removed from a model, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::Tensor;

use crate::files::{DType, TensorFile, safetensors_file};
use crate::units::{Paths, Selection, Site, Unit, UnitMap};
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

/// Why and when a unit left.
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

/// Removed units, bit for bit as they were: heads and channels, and key/value heads whose last reader has gone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Archive {
    pub(crate) units: BTreeMap<Unit, Archived>,
}

impl Archive {
    /// Whether the unit can be restored.
    pub fn contains(&self, unit: Unit) -> bool {
        self.units.contains_key(&unit)
    }

    /// Every unit of a kind that can be restored.
    pub fn all(&self, site: Site) -> impl Iterator<Item = Unit> + '_ {
        self.units.keys().copied().filter(move |unit| unit.site == site)
    }

    /// Every head that can be restored.
    pub fn heads(&self) -> impl Iterator<Item = Unit> + '_ {
        self.all(Site::Head)
    }

    /// Every head and channel that can be restored.
    pub fn selection(&self) -> Selection {
        let mut selection = Selection::new();
        for unit in self.all(Site::Head).chain(self.all(Site::Channel)) {
            selection.entry(unit.place()).or_default().push(unit.index);
        }
        selection
    }

    /// When the unit left and its score then.
    pub fn departure(&self, unit: Unit) -> Option<Departure> {
        self.units.get(&unit)?.departure
    }

    /// Writes the archive as one safetensors file, `paths` being the module paths of the model's layers.
    ///
    /// # Errors
    /// Returns [`Error::NotFinite`] if a weight is not finite, and [`Error::Io`] if the system cannot write
    /// the file.
    ///
    /// # Panics
    /// If the archive holds units of a layer that `paths` does not name.
    pub fn save(&self, path: &Path, paths: &Paths) -> Result<()> {
        let (mut tensors, mut departures) = (Vec::new(), Vec::new());
        for (unit, archived) in &self.units {
            let Unit { layer, site, index } = *unit;
            for (role, slice) in &archived.slices {
                let name = format!("{}.{}.{index}.{role}", paths.of(site)[layer], site.name());
                let dtype = slice.format().map_or(DType::F32, DType::of);
                tensors.push((name, slice.clone(), dtype));
            }
            departures.extend(archived.departure.map(|departure| Recorded {
                layer: paths.of(site)[layer].clone(),
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
    /// that `paths` does not name, and [`Error::Io`] if the system cannot read it.
    pub fn load(path: &Path, paths: &Paths) -> Result<Self> {
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
            if !leaves_alone(site) {
                let message = format!("tells when {} left: expected heads or channels", site.name());
                return Err(Error::bad_file(path, message));
            }
            let layer = paths.find(site, &layer);
            let layer = layer
                .ok_or_else(|| Error::bad_file(path, "tells of a layer that the model does not have"))?;
            let archived = Archived { departure: Some(departure), slices: Slices::new() };
            archive.units.insert(Unit { layer, site, index }, archived);
        }
        for name in file.names() {
            let (unit, role) = parse_name(&name, paths)
                .ok_or_else(|| Error::bad_file(path, format!("holds an unexpected tensor {name}")))?;
            let slice = file.copied(&name)?;
            if leaves_alone(unit.site) && !archive.contains(unit) {
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

    /// Per layer: how many of its pruned units of a kind can be restored; of blocks those that have gone whole. A
    /// model may have lost units before it came to this program.
    pub fn restorable(&self, units: &UnitMap, site: Site) -> Vec<usize> {
        if site.is_block() {
            let leaves = site.leaves().iter().map(|&leaf| self.restorable(units, leaf));
            let mut any = vec![0; units.layers().len()];
            leaves
                .for_each(|of| any.iter_mut().zip(of).for_each(|(any, count)| *any = count.min(1).max(*any)));
            return any.into_iter().zip(units.layers()).map(|(any, l)| any * (1 - l.count(site))).collect();
        }
        let mut counts = vec![0; units.layers().len()];
        for Unit { layer, index, .. } in self.all(site) {
            let known = units.layers().get(layer);
            let gone = known.is_some_and(|l| index < l.total_of(site) && !l.has(site, index));
            counts.iter_mut().skip(layer).take(1).for_each(|count| *count += usize::from(gone));
        }
        counts
    }
}

/// Whether units of a kind leave by themselves; key/value heads go with the last of their heads.
fn leaves_alone(site: Site) -> bool {
    matches!(site, Site::Head | Site::Channel)
}

/// `model.layers.3.self_attn.heads.5.attn.q.weight` → head 5 of layer 3, attn.q.weight.
fn parse_name(name: &str, paths: &Paths) -> Option<(Unit, Role)> {
    [Site::Head, Site::KvGroup, Site::Channel].into_iter().find_map(|site| {
        let rest =
            |path: &String| name.strip_prefix(path.as_str())?.strip_prefix('.')?.strip_prefix(site.name());
        let (layer, rest) =
            paths.of(site).iter().enumerate().find_map(|(layer, path)| Some((layer, rest(path)?)))?;
        let (index, role) = rest.strip_prefix('.')?.split_once('.')?;
        Some((Unit { layer, site, index: index.parse().ok()? }, role.parse().ok()?))
    })
}

fn other_format(path: &Path, format: u32) -> Error {
    Error::unsupported(format!("is an archive of format {format}: this program reads {FORMAT}")).of_file(path)
}
