//! A model: spec, weights, heads, and what else belongs to it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use upgrayedd_nn::ops::RopeTable;
use upgrayedd_nn::{Device, ParamId, ParamSet, Tensor};

use crate::archive::Archive;
use crate::family::Family;
use crate::files::{DType, Spill};
use crate::spec::{ModelSpec, Norm, Rope};
use crate::units::{LayerSite, Paths, Site, UnitMap};
use crate::weights::{Kind, Part, Role, Weight, Writer};
use crate::{Error, Result, rng};

/// An affine map's parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinearIds {
    pub(super) weight: ParamId,
    pub(super) bias: Option<ParamId>,
}

/// The parameters of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerIds {
    /// None where attention reads the stream as it is.
    pub(super) norm1: Option<LinearIds>,
    pub(super) q_norm: Option<LinearIds>,
    pub(super) k_norm: Option<LinearIds>,
    pub(super) q: LinearIds,
    pub(super) k: LinearIds,
    pub(super) v: LinearIds,
    pub(super) o: LinearIds,
    /// None where the MLP reads the stream as it is.
    pub(super) norm2: Option<LinearIds>,
    /// Of what is added to the stream.
    pub(super) post1: Option<LinearIds>,
    pub(super) post2: Option<LinearIds>,
    pub(super) gate: Option<LinearIds>,
    pub(super) up: LinearIds,
    pub(super) down: LinearIds,
}

/// The tables of a rotation.
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    usual: RopeTable,
    /// For sequences longer than so many positions.
    long: Option<(usize, RopeTable)>,
}

impl Rotation {
    fn new(rope: &Rope, max_positions: usize) -> Self {
        let table = |inv_freq| RopeTable::new(max_positions, inv_freq, rope.scale);
        Self {
            usual: table(&rope.inv_freq),
            long: rope.long.as_ref().map(|(beyond, inv_freq)| (*beyond, table(inv_freq))),
        }
    }

    /// The table for a sequence of so many positions.
    pub(super) fn table(&self, length: usize) -> &RopeTable {
        match &self.long {
            Some((beyond, table)) if length > *beyond => table,
            _ => &self.usual,
        }
    }
}

/// Where the tokenizer and generation files that belong to a model lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Companions {
    /// Nowhere: the model was made from weights alone.
    #[default]
    None,
    /// In memory: names and contents.
    Memory(&'static [(&'static str, &'static str)]),
    /// In a folder.
    Folder(PathBuf),
}

/// A transformer with the heads it still has.
///
/// ```
/// use std::sync::Arc;
/// use upgrayedd_models::Model;
/// use upgrayedd_models::load::LoadOptions;
/// use upgrayedd_models::model::{Batch, Hooks};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/llama_gqa");
/// let model = Model::load(folder.as_ref(), &LoadOptions::default())?;
/// let batch = Batch { tokens: Arc::new(vec![1, 5, 9, 2]), batch: 1, len: 4, ..Batch::default() };
/// let logits = model.logits(&batch, &mut Hooks::default())?;
/// assert_eq!(logits.shape(), [4, model.spec().vocab_size]);
/// println!("{} parameters, {} heads", model.num_parameters(), model.units().num_active());
/// # Ok::<(), upgrayedd_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model {
    /// Names and layout in files.
    pub(crate) family: &'static Family,
    /// The unpruned shape.
    pub(crate) spec: ModelSpec,
    /// config.json as read: keys this program does not know are kept.
    pub config: Value,
    /// Weights under their canonical names, in the order of the family's table.
    pub(crate) params: ParamSet,
    /// A row for each of `params`.
    table: Vec<Weight>,
    /// The type of each of `params` in files.
    dtypes: Vec<DType>,
    ids: BTreeMap<(Option<usize>, Role), ParamId>,
    /// Which units there are.
    pub(crate) units: UnitMap,
    /// Heads that were removed.
    pub(crate) archive: Archive,
    /// The Hub id and commit that it was read from, as `owner/name@commit`.
    pub origin: Option<String>,
    /// What was passed over or taken otherwise than its files say, a line each.
    pub notices: Vec<String>,
    /// Tokenizer and generation files.
    pub companions: Companions,
    /// Where it computes.
    pub(crate) device: Device,
    /// Plain encoders: the model whose hidden states this one is measured against and learns from.
    pub(super) reference: Option<Arc<Model>>,
    gates: BTreeMap<LayerSite, Tensor>,
    pub(super) layers: Vec<LayerIds>,
    pub(super) ropes: Vec<Rotation>,
    state_id: u64,
    /// The state in which it was read.
    as_read: Option<u64>,
    /// Where weights go that are not to stay in memory, if they are not.
    pub(super) spill: Option<Spill>,
}

/// The parameters of one layer. Refuses a table without a part that the forward pass needs.
fn layer_ids(
    family: &Family,
    spec: &ModelSpec,
    ids: &BTreeMap<(Option<usize>, Role), ParamId>,
    layer: usize,
) -> Result<LayerIds> {
    let maybe = |part: Part| {
        let id = |kind| ids.get(&(Some(layer), Role { part, kind })).copied();
        Some(LinearIds { weight: id(Kind::Weight)?, bias: id(Kind::Bias) })
    };
    let must = |part: Part| {
        maybe(part).ok_or_else(|| {
            Error::does_not_fit(format!("a {} model's layer {layer} has no {part:?}", family.model_type))
        })
    };
    Ok(LayerIds {
        norm1: maybe(Part::Norm1),
        q_norm: maybe(Part::QNorm),
        k_norm: maybe(Part::KNorm),
        q: must(Part::Q)?,
        k: must(Part::K)?,
        v: must(Part::V)?,
        o: must(Part::O)?,
        norm2: maybe(Part::Norm2),
        post1: maybe(Part::Post1),
        post2: maybe(Part::Post2),
        gate: spec.gated_mlp.then(|| must(Part::Gate)).transpose()?,
        up: must(Part::Up)?,
        down: must(Part::Down)?,
    })
}

fn next_state_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Model {
    /// A model of these weights, all of them of one type in files.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for a name or a shape that the family's table does not have, and for a
    /// table without a part that the forward pass needs.
    pub fn from_params(
        family: &'static Family,
        spec: ModelSpec,
        config: Value,
        params: ParamSet,
        units: UnitMap,
        dtype: DType,
    ) -> Result<Self> {
        let mut rows: BTreeMap<String, Weight> =
            (family.weights)(&spec).into_iter().map(|w| (w.name(), w)).collect();
        let (mut table, mut ids) = (Vec::with_capacity(params.len()), BTreeMap::new());
        for id in params.ids() {
            let (name, shape) = (params.name(id), params.get(id).shape());
            let weight = rows.remove(name);
            let weight = weight.ok_or_else(|| {
                Error::does_not_fit(format!("a {} model has no weight {name}", family.model_type))
            })?;
            if weight.shape(&units) != shape {
                return Err(Error::does_not_fit(format!(
                    "the weight {name} has shape {shape:?}: expected {:?}",
                    weight.shape(&units)
                )));
            }
            ids.insert((weight.layer, weight.role), id);
            table.push(weight);
        }
        if let Some(name) = rows.iter().find(|(_, weight)| !weight.optional).map(|(name, _)| name) {
            return Err(Error::does_not_fit(format!("the weight {name} is missing")));
        }
        if !ids.contains_key(&(None, Role { part: Part::Tokens, kind: Kind::Weight })) {
            return Err(Error::does_not_fit(format!(
                "a {} model has no token embeddings",
                family.model_type
            )));
        }
        let layers = (0..spec.num_layers())
            .map(|layer| layer_ids(family, &spec, &ids, layer))
            .collect::<Result<_>>()?;
        let ropes = spec.ropes.iter().map(|rope| Rotation::new(rope, spec.max_positions)).collect();
        let archive = Archive::default();
        let dtypes = vec![dtype; params.len()];
        Ok(Self {
            family,
            spec,
            config,
            params,
            table,
            ids,
            units,
            archive,
            dtypes,
            origin: None,
            notices: Vec::new(),
            companions: Companions::None,
            device: Device::cpu(),
            reference: None,
            gates: BTreeMap::new(),
            layers,
            ropes,
            state_id: next_state_id(),
            as_read: None,
            spill: None,
        })
    }

    /// Random weights (normal of deviation 0.02, norms at one), for a model to be trained from nothing.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] if the family's table is without a part that the forward pass needs.
    pub fn initialised(family: &'static Family, spec: ModelSpec, config: Value, seed: u64) -> Result<Self> {
        let heads = spec.full_units();
        let mut rng = rng::stream(seed, "initial weights");
        let mut params = ParamSet::default();
        for weight in (family.weights)(&spec) {
            let shape = weight.shape(&heads);
            let count: usize = shape.iter().product();
            let data = match weight.role {
                Role { kind: Kind::Bias, .. } => vec![0.0; count],
                Role { part, .. } if part.is_norm() => {
                    vec![if spec.norm == Norm::RmsAroundOne { 0.0 } else { 1.0 }; count]
                }
                _ => rng::normals(&mut rng, count, 0.02),
            };
            params.add(weight.name(), Tensor::from_vec(&shape, data));
        }
        Self::from_params(family, spec, config, params, heads, DType::F32)
    }

    /// Names and layout in files.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The unpruned shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Weights under their canonical names, in the order of the family's table.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// The same to be changed, which makes it another state of the model. What each weight's shape is follows
    /// from the units, and must not change: that is what [`crate::surgery`] is for.
    pub fn params_mut(&mut self) -> &mut ParamSet {
        self.touch();
        &mut self.params
    }

    /// Which units there are.
    pub fn units(&self) -> &UnitMap {
        &self.units
    }

    /// Units that were removed.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Gives the model removed units of its own, as [`crate::surgery::load_archive`] reads and checks them.
    pub fn set_archive(&mut self, archive: Archive) {
        let as_read = self.is_as_read();
        self.archive = archive;
        self.touch();
        if as_read {
            self.set_as_read();
        }
    }

    /// Whether weights and units are those of the folder that it was read from.
    pub fn is_as_read(&self) -> bool {
        self.as_read == Some(self.state_id)
    }

    /// Says that they are.
    pub(crate) fn set_as_read(&mut self) {
        self.as_read = Some(self.state_id);
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The module path of a layer's attention: how files and Python name the layer.
    pub fn layer_name(&self, layer: usize) -> String {
        (self.family.module)(layer)
    }

    /// Module paths of where the layers' units belong.
    pub fn paths(&self) -> Paths {
        self.family.paths(&self.spec)
    }

    /// Changes whenever the weights or heads do: what was computed for another state no longer holds.
    pub fn state_id(&self) -> u64 {
        self.state_id
    }

    /// Says that weights or heads have changed.
    pub(crate) fn touch(&mut self) {
        self.state_id = next_state_id();
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.params.ids().map(|id| self.params.get(id).len()).sum()
    }

    /// The type that a weight has in files: what it came in, or what was set.
    pub fn dtype_of(&self, id: ParamId) -> DType {
        self.dtypes[id.index()]
    }

    /// These types in the order of the parameters.
    pub(super) fn dtypes(&self) -> impl Iterator<Item = DType> {
        self.dtypes.iter().copied()
    }

    /// The type of most elements: what config.json names, and what keys and values are taken to have.
    pub fn dtype(&self) -> DType {
        let elements = |dtype: &DType| -> usize {
            self.params
                .ids()
                .filter(|id| self.dtype_of(*id) == *dtype)
                .map(|id| self.params.get(id).len())
                .sum()
        };
        // The first of equals.
        DType::EACH.into_iter().rev().max_by_key(elements).unwrap_or(DType::F32)
    }

    /// Has all weights written in one type.
    pub fn set_dtype(&mut self, dtype: DType) {
        self.dtypes.fill(dtype);
    }

    /// Has the weights that `named` tells of, by canonical name, written in these types.
    pub fn set_dtypes(&mut self, named: &BTreeMap<String, DType>) {
        for id in self.params.ids() {
            if let Some(dtype) = named.get(self.params.name(id)) {
                self.dtypes[id.index()] = *dtype;
            }
        }
    }

    /// Has each weight written in the type that it has in another state of this model.
    pub fn set_dtypes_of(&mut self, other: &Self) {
        self.dtypes.clone_from(&other.dtypes);
    }

    pub(super) fn table(&self) -> &[Weight] {
        &self.table
    }

    /// The table's row of a parameter.
    pub fn weight(&self, id: ParamId) -> &Weight {
        &self.table[id.index()]
    }

    /// A parameter by what it is, of a layer or outside them.
    pub fn find(&self, layer: Option<usize>, part: Part, kind: Kind) -> Option<ParamId> {
        self.ids.get(&(layer, Role { part, kind })).copied()
    }

    /// The parameters of a layer whose rows or columns belong to units of a site.
    pub fn owned(&self, layer: usize, site: Site) -> Vec<ParamId> {
        let owned =
            |weight: &Weight| weight.layer == Some(layer) && weight.owner().is_some_and(|(of, _)| of == site);
        self.params.ids().filter(|id| owned(self.weight(*id))).collect()
    }

    /// A parameter that the objective reaches; a pooler without a classifier, say, is not.
    pub fn is_used(&self, weight: &Weight) -> bool {
        let idle = matches!(weight.role.part, Part::Pooler | Part::NextSentence);
        !idle || self.spec.objective.outputs().is_some()
    }

    /// A writer's weight `(d, in)` and, where there is one, its bias.
    pub fn writer(&self, layer: usize, writer: Writer) -> (ParamId, Option<ParamId>) {
        let LinearIds { weight, bias } = self.writer_ids(layer, writer);
        (weight, bias)
    }

    pub(super) fn writer_ids(&self, layer: usize, writer: Writer) -> LinearIds {
        match writer {
            Writer::Attention => self.layers[layer].o,
            Writer::Mlp => self.layers[layer].down,
        }
    }

    /// A writer's weight, `(d, in)`.
    pub fn writer_weight(&self, layer: usize, writer: Writer) -> &Tensor {
        self.params.get(self.writer(layer, writer).0)
    }

    /// Factors for what each unit of a place writes, in their order; `None` where all are 1.
    pub fn gates(&self, place: LayerSite) -> Option<&Tensor> {
        self.gates.get(&place)
    }

    /// Sets such factors, one for each unit that is there, until surgery or [`crate::surgery::fold_gates`]
    /// makes them part of the weights.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for another number of them, and [`Error::Unsupported`] for kinds of
    /// units that have none.
    pub fn set_gates(&mut self, place: LayerSite, gates: Vec<f32>) -> Result<()> {
        let name = place.site.name();
        if !matches!(place.site, Site::Head | Site::Channel) {
            return Err(Error::unsupported(format!("{name} have no gates: expected heads or channels")));
        }
        let units = self.units.layers().get(place.layer).map_or(0, |layer| layer.count(place.site));
        if gates.len() != units {
            return Err(Error::does_not_fit(format!(
                "layer {} has {units} {name}, not {} to be gated",
                place.layer,
                gates.len()
            )));
        }
        self.gates.insert(place, Tensor::from_vec(&[units], gates));
        self.touch();
        Ok(())
    }

    /// Takes a place's factors away: all are 1 again.
    pub(crate) fn take_gates(&mut self, place: LayerSite) -> Option<Tensor> {
        self.gates.remove(&place)
    }

    /// Computes there from now on: the weights move into the device's memory, or back into the host's.
    pub fn move_to(&mut self, device: Device) {
        self.device = device;
        self.params.move_to(device);
    }
}
