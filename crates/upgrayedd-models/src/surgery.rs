//! Removes and restores units in weights, archive and optimiser state together.

use std::path::Path;
use std::sync::Arc;

use upgrayedd_nn::optim::{AdamW, Lanes};
use upgrayedd_nn::{Bytes, ParamId, Tensor};

use crate::archive::{Archive, Archived, Departure, Slices};
use crate::files::DType;
use crate::model::Model;
use crate::units::{LayerSite, Scores, Selection, Site, Unit, UnitMap, listed};
use crate::weights::{Weight, Writer};
use crate::{Error, Result};

/// Reads an archive and checks that it belongs to `model`.
///
/// # Errors
/// Returns [`Error::File`] if the file is no archive, is damaged or is not the model's, and [`Error::Io`] if
/// the system cannot read it.
pub fn load_archive(path: &Path, model: &Model) -> Result<Archive> {
    let archive = Archive::load(path, &model.paths())?;
    check(&archive, model).map_err(|e| Error::bad_file(path, e.to_string()))?;
    Ok(archive)
}

fn check(archive: &Archive, model: &Model) -> Result<()> {
    for (&Unit { layer, site, index }, entry) in &archive.units {
        check_slices(model, layer, &entry.slices, site)?;
        let known =
            model.units.layers().get(layer).filter(|l| index < l.total_of(site) && !l.has(site, index));
        let Some(known) = known else {
            return Err(Error::malformed(format!(
                "the archive holds {} {index} of layer {layer}, which the model still has or never had",
                site.one()
            )));
        };
        let group = known.kv_group_of(if site == Site::Head { index } else { 0 });
        let complete = known.has(Site::KvGroup, group) || archive.contains(Unit::kv_group(layer, group));
        if site == Site::Head && !complete {
            return Err(Error::malformed(format!(
                "key/value head {group} of layer {layer} is not in the archive"
            )));
        }
    }
    Ok(())
}

fn check_slices(model: &Model, layer: usize, slices: &Slices, site: Site) -> Result<()> {
    let owned = model.owned(layer, site);
    for id in &owned {
        let (weight, tensor) = (model.weight(*id), model.params.get(*id));
        let width = weight.owner().map_or(0, |(_, width)| width);
        let want = match (weight.lanes(), tensor.shape()) {
            (Lanes::Rows, [_, cols]) => vec![width, *cols],
            (_, [rows, _]) => vec![*rows, width],
            _ => vec![width],
        };
        if slices.get(&weight.role).is_none_or(|s| s.shape() != want) {
            return Err(Error::malformed(format!(
                "the archive's {} of a {} in layer {layer} is missing or not shaped {want:?}",
                weight.role,
                site.one()
            )));
        }
    }
    match slices.keys().find(|role| !owned.iter().any(|id| model.weight(*id).role == **role)) {
        Some(role) => Err(Error::malformed(format!(
            "the archive holds {role} of a {} in layer {layer}, which has none",
            site.one()
        ))),
        None => Ok(()),
    }
}

/// The features `indices` of a tensor along the axis of its units. A vector stays a vector.
fn take(tensor: &Tensor, lanes: Lanes, indices: &[usize]) -> Tensor {
    match (lanes, tensor.shape().len()) {
        (Lanes::Rows, _) => tensor.take_rows(indices),
        (_, 1) => tensor.take_cols(indices).reshaped(&[indices.len()]),
        _ => tensor.take_cols(indices),
    }
}

/// Tensors one after the other along the axis of their units; one at a time is in memory.
fn concat(pieces: &[&Tensor], lanes: Lanes) -> Tensor {
    let mut shape = pieces.first().map_or(vec![0], |first| first.shape().to_vec());
    if lanes == Lanes::Rows {
        shape[0] = pieces.iter().map(|piece| piece.rows()).sum();
        let mut data = Vec::with_capacity(shape.iter().product());
        pieces.iter().for_each(|piece| data.extend_from_slice(piece.in_memory().to_host().data()));
        return Tensor::from_vec(&shape, data);
    }
    let (rows, width) = (
        pieces.first().map_or(0, |first| first.rows()),
        pieces.iter().map(|piece| piece.cols()).sum::<usize>(),
    );
    let (mut data, mut first) = (vec![0.0; rows * width], 0);
    for piece in pieces {
        let (piece, cols) = (piece.in_memory().to_host(), piece.cols());
        for (to, from) in data.chunks_exact_mut(width.max(1)).zip(piece.data().chunks_exact(cols.max(1))) {
            to[first..first + cols].copy_from_slice(from);
        }
        first += cols;
    }
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Tensor::from_vec(&shape, data)
}

/// Equal pieces of a tensor along the axis of its units, over one piece of memory: thousands of small ones would keep the
/// allocator from giving back what lies between them.
fn pieces(tensor: &Tensor, lanes: Lanes, count: usize, like: &Tensor) -> Vec<Tensor> {
    let (rows, cols, size) = (tensor.rows(), tensor.cols(), tensor.len() / count.max(1));
    let (mut shape, width) = (tensor.shape().to_vec(), cols / count.max(1));
    let by_piece = if lanes == Lanes::Rows {
        shape[0] /= count.max(1);
        tensor.clone()
    } else {
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        let mut data = Vec::with_capacity(tensor.len());
        for piece in 0..count {
            (0..rows).for_each(|row| {
                let at = row * cols + piece * width;
                data.extend_from_slice(&tensor.data()[at..at + width]);
            });
        }
        Tensor::from_vec(tensor.shape(), data)
    };
    let stored = as_stored(like, by_piece);
    let dtype = stored.format().map_or(DType::F32, DType::of);
    let bytes: Bytes = Arc::new(dtype.bytes(&stored).into_owned());
    let piece = |i| Tensor::stored(&shape, Arc::clone(&bytes), i * size * dtype.size(), dtype.format());
    (0..count).map(piece).collect()
}

/// A value in the type in which another is stored, if that holds it.
fn as_stored(other: &Tensor, value: Tensor) -> Tensor {
    other.format().and_then(|format| DType::of(format).store(&value)).unwrap_or(value)
}

/// Gives a parameter another value, in the type in which its old one was stored if that holds it.
fn put(model: &mut Model, id: ParamId, value: Tensor) {
    let old = model.params.get(id);
    let value = model.device.upload(as_stored(old, value));
    old.let_go();
    model.params.set(id, value);
}

/// Keeps only the given features of a parameter and of what the optimiser knows about it.
fn keep(model: &mut Model, optim: Option<&mut AdamW>, id: ParamId, lanes: Lanes, indices: &[usize]) {
    let kept = take(&model.params.get(id).from_device(), lanes, indices);
    put(model, id, kept);
    let device = model.device;
    if let Some(state) = optim.map(|o| &mut o.states[id.index()]) {
        for moment in [&mut state.m, &mut state.v].into_iter().flatten() {
            *moment = device.upload(take(&moment.from_device(), lanes, indices));
        }
        state.steps = indices.iter().map(|&i| state.steps[i]).collect();
        state.lr_scale = indices.iter().map(|&i| state.lr_scale[i]).collect();
    }
}

/// Inserts features and reorders; the newcomers have no history and learn at `lr_scale`.
fn insert(
    model: &mut Model,
    optim: Option<&mut AdamW>,
    id: ParamId,
    lanes: Lanes,
    slice: &Tensor,
    order: &[usize],
    lr_scale: f32,
) {
    let joined = concat(&[model.params.get(id), slice], lanes);
    put(model, id, take(&joined, lanes, order));
    let device = model.device;
    if let Some(state) = optim.map(|o| &mut o.states[id.index()]) {
        let blank = Tensor::zeros(slice.shape());
        for moment in [&mut state.m, &mut state.v].into_iter().flatten() {
            *moment = device.upload(take(&concat(&[&*moment, &blank], lanes), lanes, order));
        }
        let added = order.len() - state.steps.len();
        state.steps.extend(std::iter::repeat_n(0, added));
        state.lr_scale.extend(std::iter::repeat_n(lr_scale, added));
        state.steps = order.iter().map(|&i| state.steps[i]).collect();
        state.lr_scale = order.iter().map(|&i| state.lr_scale[i]).collect();
    }
}

/// Removes units: weights shrink, the archive receives what left, the optimiser forgets it.
///
/// The archive remembers `cycle` (0 outside of a run) and `scores` (higher = keep) with the units.
///
/// # Errors
/// Returns what [`UnitMap::remove`](crate::units::UnitMap::remove) returns, [`Error::DoesNotFit`] or
/// [`Error::Unsupported`]. Nothing changes then. Returns [`Error::Io`] if what has changed cannot be put where it is
/// not in memory ([`Model::set_spill`]); the units have gone then.
pub fn remove(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    selection: &Selection,
    cycle: usize,
    scores: Option<&Scores>,
) -> Result<()> {
    let takes_heads = selection.iter().any(|(place, units)| place.site == Site::Head && !units.is_empty());
    if let Some(why) = model.spec.why_heads_stay().filter(|_| takes_heads) {
        return Err(Error::unsupported(format!(
            "heads of a {} model cannot be pruned: {why}",
            model.family.model_type
        )));
    }
    let before = model.units.clone();
    model.units.remove(selection)?;
    model.touch();
    let mut put_away = Ok(());
    for (&place, units) in selection.iter().filter(|(_, units)| !units.is_empty()) {
        let LayerSite { layer, site } = place;
        fold_gates(model, place);
        let old = before.layers()[layer].units(site);
        let positions: Vec<usize> = units.iter().filter_map(|unit| old.binary_search(unit).ok()).collect();
        for (&position, slices) in positions.iter().zip(cut(model, place, &positions)) {
            let score = scores.and_then(|s| s.at(place).get(position).copied());
            let departure = Some(Departure { cycle, score });
            let unit = Unit { layer, site, index: old[position] };
            model.archive.units.insert(unit, Archived { departure, slices });
        }
        let mut gone: Vec<Unit> = units.iter().map(|&index| Unit { layer, site, index }).collect();
        if site == Site::Head {
            gone.extend(remove_groups(model, optim.as_deref_mut(), &before, layer));
        }
        let new = model.units.layers()[layer].units(site);
        shrink(model, optim.as_deref_mut(), place, &old, &new);
        let ids = of_place(model, place);
        put_away = put_away.and(model.put_away(&ids)).and(model.put_away_archived(&gone));
    }
    put_away
}

/// The parameters that the surgery of a place may change.
fn of_place(model: &Model, LayerSite { layer, site }: LayerSite) -> Vec<ParamId> {
    let groups = if site == Site::Head { model.owned(layer, Site::KvGroup) } else { Vec::new() };
    [model.owned(layer, site), groups].concat()
}

/// Removes the key/value heads that have lost their last reader.
fn remove_groups(model: &mut Model, optim: Option<&mut AdamW>, before: &UnitMap, layer: usize) -> Vec<Unit> {
    let place = LayerSite { layer, site: Site::KvGroup };
    let (old, new) = (before.layers()[layer].kv_active(), model.units.layers()[layer].kv_active());
    let positions: Vec<usize> = (0..old.len()).filter(|&at| !new.contains(&old[at])).collect();
    for (&position, slices) in positions.iter().zip(cut(model, place, &positions)) {
        let unit = Unit::kv_group(layer, old[position]);
        model.archive.units.insert(unit, Archived { departure: None, slices });
    }
    shrink(model, optim, place, &old, &new);
    positions.into_iter().map(|position| Unit::kv_group(layer, old[position])).collect()
}

/// The slices of the units at these positions.
fn cut(model: &Model, place: LayerSite, positions: &[usize]) -> Vec<Slices> {
    let mut units = vec![Slices::new(); positions.len()];
    for id in model.owned(place.layer, place.site) {
        let (weight, tensor) = (model.weight(id), model.params.get(id).from_device());
        let taken = take(&tensor, weight.lanes(), &features(weight, positions));
        let pieces = pieces(&taken, weight.lanes(), positions.len(), &tensor);
        units.iter_mut().zip(pieces).for_each(|(slices, piece)| _ = slices.insert(weight.role, piece));
    }
    units
}

/// The rows or columns of a weight that belong to its owner's units at these positions.
fn features(weight: &Weight, positions: &[usize]) -> Vec<usize> {
    let width = weight.owner().map_or(0, |(_, width)| width);
    positions.iter().flat_map(|p| p * width..(p + 1) * width).collect()
}

fn shrink(model: &mut Model, mut optim: Option<&mut AdamW>, place: LayerSite, old: &[usize], new: &[usize]) {
    let positions: Vec<usize> = (0..old.len()).filter(|&i| new.binary_search(&old[i]).is_ok()).collect();
    if positions.len() == old.len() {
        return;
    }
    for id in model.owned(place.layer, place.site) {
        let (lanes, kept) = (model.weight(id).lanes(), features(model.weight(id), &positions));
        keep(model, optim.as_deref_mut(), id, lanes, &kept);
    }
}

/// Restores archived units bit for bit, with key/value heads where they had gone too. The optimiser starts
/// them anew.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for units that are not in the archive or still there, and
/// [`Error::Unsupported`] for units of kinds that do not leave by themselves. Nothing changes then. Returns
/// [`Error::Io`] if what has changed cannot be put where it is not in memory; the units are there then.
pub fn restore(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    selection: &Selection,
    lr_scale: f32,
) -> Result<()> {
    for (&LayerSite { layer, site }, units) in selection {
        let archived = |index: &usize| model.archive.contains(Unit { layer, site, index: *index });
        if let Some(unit) = units.iter().find(|unit| !archived(unit)) {
            let there: Vec<usize> =
                model.archive.all(site).filter(|id| id.layer == layer).map(|id| id.index).collect();
            return Err(Error::does_not_fit(format!(
                "{} {unit} of layer {layer} is not in the archive, which has {} of that layer",
                site.one(),
                listed(&there)
            )));
        }
    }
    let mut after = model.units.clone();
    after.insert(selection)?;
    model.touch();
    let mut put_away = Ok(());
    for (&place, units) in selection.iter().filter(|(_, units)| !units.is_empty()) {
        let LayerSite { layer, site } = place;
        fold_gates(model, place);
        let (old, new) = (model.units.layers()[layer].clone(), after.layers()[layer].clone());
        let mut returning = units.clone();
        returning.sort_unstable();
        let mut take = |unit: Unit| model.archive.units.remove(&unit).map(|archived| archived.slices);
        let slices: Vec<Slices> =
            returning.iter().filter_map(|&index| take(Unit { layer, site, index })).collect();
        let (old_groups, new_groups) = (old.kv_active(), new.kv_active());
        let missing = new_groups.iter().filter(|group| !old_groups.contains(group));
        let groups: Vec<Slices> = missing.filter_map(|&group| take(Unit::kv_group(layer, group))).collect();
        model.units.insert(&Selection::from([(place, returning)]))?;
        grow(model, optim.as_deref_mut(), place, (&old.units(site), &new.units(site)), &slices, lr_scale);
        let ids = of_place(model, place);
        let place = LayerSite { layer, site: Site::KvGroup };
        grow(model, optim.as_deref_mut(), place, (&old_groups, &new_groups), &groups, lr_scale);
        put_away = put_away.and(model.put_away(&ids));
    }
    put_away
}

/// `slices` are those of the members of `new` that are not in `old`, in ascending order.
fn grow(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    place: LayerSite,
    (old, new): (&[usize], &[usize]),
    slices: &[Slices],
    lr_scale: f32,
) {
    if slices.is_empty() {
        return;
    }
    let mut added = old.len();
    let position = |member: &usize| {
        old.binary_search(member).unwrap_or_else(|_| {
            added += 1;
            added - 1
        })
    };
    let positions: Vec<usize> = new.iter().map(position).collect();
    for id in model.owned(place.layer, place.site) {
        let weight = model.weight(id);
        let (lanes, order) = (weight.lanes(), features(weight, &positions));
        let pieces: Vec<&Tensor> = slices.iter().filter_map(|s| s.get(&weight.role)).collect();
        let slice = concat(&pieces, lanes);
        insert(model, optim.as_deref_mut(), id, lanes, &slice, &order, lr_scale);
    }
}

/// Multiplies the gates of a place's units into their writer, which then needs none.
pub fn fold_gates(model: &mut Model, place: LayerSite) {
    let (Some(gates), Some(writer)) = (model.take_gates(place), Writer::of(place.site)) else { return };
    model.touch();
    let id = model.writer(place.layer, writer).0;
    let width = model.params.get(id).cols() / gates.len().max(1);
    model.params.edit(model.device, id, |weight| {
        let cols = weight.cols();
        for row in weight.data_mut().chunks_exact_mut(cols.max(1)) {
            for (slice, &gate) in row.chunks_exact_mut(width).zip(gates.data()) {
                slice.iter_mut().filter(|_| gate != 1.0).for_each(|w| *w *= gate);
            }
        }
    });
}
