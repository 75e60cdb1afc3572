//! Removes and restores heads in weights, archive and optimiser state together.

use std::path::Path;

use upgrayedd_nn::optim::{AdamW, Lanes};
use upgrayedd_nn::{ParamId, Tensor};

use crate::archive::{Archive, Archived, Departure, Slices};
use crate::files::DType;
use crate::model::Model;
use crate::units::{LayerSite, Scores, Selection, Site, Unit};
use crate::weights::{Weight, Writer};
use crate::{Error, Result};

/// Reads an archive and checks that it belongs to `model`.
///
/// # Errors
/// Returns [`Error::File`] if the file is no archive, is damaged or is not the model's, and [`Error::Io`] if
/// the system cannot read it.
pub fn load_archive(path: &Path, model: &Model) -> Result<Archive> {
    let archive = Archive::load(path, &model.layer_names())?;
    check(&archive, model).map_err(|e| Error::bad_file(path, e.to_string()))?;
    Ok(archive)
}

fn check(archive: &Archive, model: &Model) -> Result<()> {
    for (&Unit { layer, site, index }, entry) in &archive.units {
        check_slices(model, layer, &entry.slices, site)?;
        if site == Site::KvGroup {
            let known = model.units.layers().get(layer).filter(|l| index < l.kv_total());
            if known.is_none_or(|l| l.kv_active().contains(&index)) {
                return Err(Error::malformed(format!(
                    "the archive holds key/value head {index} of layer {layer}, which the model still has or never had"
                )));
            }
            continue;
        }
        let known = model.units.layers().get(layer).filter(|l| index < l.total() && !l.is_active(index));
        let Some(known) = known else {
            return Err(Error::malformed(format!(
                "the archive holds head {index} of layer {layer}, which the model still has or never had"
            )));
        };
        let group = known.kv_group_of(index);
        if known.kv_active().binary_search(&group).is_err() && !archive.contains(Unit::kv_group(layer, group))
        {
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
                "the archive's {} of a head in layer {layer} is missing or not shaped {want:?}",
                weight.role
            )));
        }
    }
    match slices.keys().find(|role| !owned.iter().any(|id| model.weight(*id).role == **role)) {
        Some(role) => Err(Error::malformed(format!(
            "the archive holds {role} of a head in layer {layer}, which has none"
        ))),
        None => Ok(()),
    }
}

/// The features `indices` of a tensor along its head axis. A vector stays a vector.
fn take(tensor: &Tensor, lanes: Lanes, indices: &[usize]) -> Tensor {
    match (lanes, tensor.shape().len()) {
        (Lanes::Rows, _) => tensor.take_rows(indices),
        (_, 1) => tensor.take_cols(indices).reshaped(&[indices.len()]),
        _ => tensor.take_cols(indices),
    }
}

/// Two tensors one after the other along the head axis.
fn concat(a: &Tensor, b: &Tensor, lanes: Lanes) -> Tensor {
    let (a, b) = (a.to_host(), b.to_host());
    let (wide_a, wide_b) = (a.cols(), b.cols());
    if lanes == Lanes::Rows {
        let mut shape = a.shape().to_vec();
        shape[0] += b.shape()[0];
        return Tensor::from_vec(&shape, [a.data(), b.data()].concat());
    }
    let rows = a.data().chunks_exact(wide_a.max(1)).zip(b.data().chunks_exact(wide_b.max(1)));
    let data: Vec<f32> = rows.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
    let mut shape = a.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = wide_a + wide_b;
    }
    Tensor::from_vec(&shape, data)
}

/// Gives a parameter another value, in the type in which its old one was stored if that holds it.
fn put(model: &mut Model, id: ParamId, value: Tensor) {
    let stored = model.params.get(id).format().and_then(|format| DType::of(format).store(&value));
    let value = model.device.upload(stored.unwrap_or(value));
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
    let joined = concat(model.params.get(id), slice, lanes);
    put(model, id, take(&joined, lanes, order));
    let device = model.device;
    if let Some(state) = optim.map(|o| &mut o.states[id.index()]) {
        let blank = Tensor::zeros(slice.shape());
        for moment in [&mut state.m, &mut state.v].into_iter().flatten() {
            *moment = device.upload(take(&concat(moment, &blank, lanes), lanes, order));
        }
        let added = order.len() - state.steps.len();
        state.steps.extend(std::iter::repeat_n(0, added));
        state.lr_scale.extend(std::iter::repeat_n(lr_scale, added));
        state.steps = order.iter().map(|&i| state.steps[i]).collect();
        state.lr_scale = order.iter().map(|&i| state.lr_scale[i]).collect();
    }
}

/// Removes heads: weights shrink, the archive receives what left, the optimiser forgets it.
///
/// The archive remembers `cycle` (0 outside of a run) and `scores` (higher = keep) with the heads.
///
/// # Errors
/// Returns what [`UnitMap::remove`](crate::units::UnitMap::remove) returns where each layer has to keep a
/// head: [`Error::DoesNotFit`], [`Error::Malformed`] or [`Error::Unsupported`]. Nothing changes then.
pub fn remove(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    selection: &Selection,
    cycle: usize,
    scores: Option<&Scores>,
) -> Result<()> {
    if let Some(why) =
        model.spec.why_heads_stay().filter(|_| selection.values().any(|heads| !heads.is_empty()))
    {
        return Err(Error::unsupported(format!(
            "heads of a {} model cannot be pruned: {why}",
            model.family.model_type
        )));
    }
    let before = model.units.clone();
    model.units.remove(selection, 1)?;
    model.touch();
    for (&LayerSite { layer, .. }, heads) in selection.iter().filter(|(_, heads)| !heads.is_empty()) {
        fold_gates(model, layer);
        let (old, new) = (&before.layers()[layer], model.units.layers()[layer].clone());
        for &head in heads {
            let Ok(position) = old.active().binary_search(&head) else { continue };
            let slices = cut(model, layer, Site::Head, position);
            let score = scores.and_then(|s| s.at(LayerSite::heads(layer)).get(position).copied());
            let departure = Some(Departure { cycle, score });
            model.archive.units.insert(Unit::head(layer, head), Archived { departure, slices });
        }
        let (old_groups, new_groups) = (old.kv_active(), new.kv_active());
        for (position, group) in old_groups.iter().enumerate().filter(|(_, g)| !new_groups.contains(g)) {
            let slices = cut(model, layer, Site::KvGroup, position);
            model.archive.units.insert(Unit::kv_group(layer, *group), Archived { departure: None, slices });
        }
        shrink(model, optim.as_deref_mut(), layer, Site::Head, old.active(), new.active());
        shrink(model, optim.as_deref_mut(), layer, Site::KvGroup, &old_groups, &new_groups);
    }
    Ok(())
}

fn cut(model: &Model, layer: usize, site: Site, position: usize) -> Slices {
    let slice = |id: ParamId| {
        let weight = model.weight(id);
        (
            weight.role,
            take(&model.params.get(id).from_device(), weight.lanes(), &features(weight, &[position])),
        )
    };
    model.owned(layer, site).into_iter().map(slice).collect()
}

/// The rows or columns of a weight that belong to its owner's units at these positions.
fn features(weight: &Weight, positions: &[usize]) -> Vec<usize> {
    let width = weight.owner().map_or(0, |(_, width)| width);
    positions.iter().flat_map(|p| p * width..(p + 1) * width).collect()
}

fn shrink(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    layer: usize,
    site: Site,
    old: &[usize],
    new: &[usize],
) {
    let positions: Vec<usize> = (0..old.len()).filter(|&i| new.contains(&old[i])).collect();
    if positions.len() == old.len() {
        return;
    }
    for id in model.owned(layer, site) {
        let (lanes, kept) = (model.weight(id).lanes(), features(model.weight(id), &positions));
        keep(model, optim.as_deref_mut(), id, lanes, &kept);
    }
}

/// Restores archived heads bit for bit, with key/value heads where they had gone too. The optimiser starts
/// them anew.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for heads that are not in the archive or still there, and
/// [`Error::Unsupported`] for units other than heads. Nothing changes then.
pub fn restore(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    selection: &Selection,
    lr_scale: f32,
) -> Result<()> {
    for (&LayerSite { layer, .. }, heads) in selection {
        if let Some(head) = heads.iter().find(|&&head| !model.archive.contains(Unit::head(layer, head))) {
            let archived: Vec<usize> =
                model.archive.heads().filter(|id| id.layer == layer).map(|id| id.index).collect();
            return Err(Error::does_not_fit(format!(
                "head {head} of layer {layer} is not in the archive, which has {archived:?} of that layer"
            )));
        }
    }
    let mut after = model.units.clone();
    after.insert(selection)?;
    model.touch();
    for (&LayerSite { layer, .. }, heads) in selection.iter().filter(|(_, heads)| !heads.is_empty()) {
        fold_gates(model, layer);
        let (old, new) = (model.units.layers()[layer].clone(), after.layers()[layer].clone());
        let mut returning = heads.clone();
        returning.sort_unstable();
        let (old_groups, new_groups) = (old.kv_active(), new.kv_active());
        let mut take = |unit: Unit| model.archive.units.remove(&unit).map(|archived| archived.slices);
        let missing = new_groups.iter().filter(|group| !old_groups.contains(group));
        let groups: Vec<Slices> = missing.filter_map(|&group| take(Unit::kv_group(layer, group))).collect();
        let slices: Vec<Slices> =
            returning.iter().filter_map(|&head| take(Unit::head(layer, head))).collect();
        model.units.insert(&Selection::from([(LayerSite::heads(layer), returning)]))?;
        grow(model, optim.as_deref_mut(), layer, Site::Head, (old.active(), new.active()), &slices, lr_scale);
        grow(
            model,
            optim.as_deref_mut(),
            layer,
            Site::KvGroup,
            (&old_groups, &new_groups),
            &groups,
            lr_scale,
        );
    }
    Ok(())
}

/// `slices` are those of the members of `new` that are not in `old`, in ascending order.
fn grow(
    model: &mut Model,
    mut optim: Option<&mut AdamW>,
    layer: usize,
    site: Site,
    (old, new): (&[usize], &[usize]),
    slices: &[Slices],
    lr_scale: f32,
) {
    if slices.is_empty() {
        return;
    }
    let mut added = old.len();
    let positions: Vec<usize> = new
        .iter()
        .map(|member| {
            old.iter().position(|o| o == member).unwrap_or_else(|| {
                added += 1;
                added - 1
            })
        })
        .collect();
    for id in model.owned(layer, site) {
        let weight = model.weight(id);
        let (lanes, order) = (weight.lanes(), features(weight, &positions));
        let mut pieces = slices.iter().filter_map(|s| s.get(&weight.role));
        let Some(first) = pieces.next().cloned() else { continue };
        let slice = pieces.fold(first, |all, piece| concat(&all, piece, lanes));
        insert(model, optim.as_deref_mut(), id, lanes, &slice, &order, lr_scale);
    }
}

/// Multiplies the gates of a layer's heads into its output projection, which then needs none.
pub fn fold_gates(model: &mut Model, layer: usize) {
    let Some(gates) = model.take_gates(LayerSite::heads(layer)) else { return };
    model.touch();
    let (id, width) = (model.writer(layer, Writer::Attention).0, model.spec.head_dim);
    model.params.edit(model.device, id, |weight| {
        let cols = weight.cols();
        for row in weight.data_mut().chunks_exact_mut(cols.max(1)) {
            for (slice, &gate) in row.chunks_exact_mut(width).zip(gates.data()) {
                slice.iter_mut().filter(|_| gate != 1.0).for_each(|w| *w *= gate);
            }
        }
    });
}
