//! Which archived units would help, and which come back once a strategy has said how many in which layers.

use std::collections::BTreeMap;

use crate::score::{ScoreContext, gate_gradients};
use crate::spec::Objective;
use crate::surgery;
use crate::units::{Selection, Site, Unit, UnitMap};
use crate::{Error, Model, Result};

/// How much opening a unit's gate promises, by unit: above zero if the loss wants it open, and the more so,
/// the higher.
pub type Gains = BTreeMap<Unit, f64>;

/// Every archived unit back in the model with its gate shut (dormant): the logits are those of the model
/// without them.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] if the archive holds units that the model still has or never had.
pub fn with_dormant(model: &Model) -> Result<Model> {
    let mut dormant = model.clone();
    let selection = model.archive().selection();
    surgery::restore(&mut dormant, None, &selection, 1.0)?;
    for (&place, archived) in &selection {
        let gate = |unit: &usize| if archived.contains(unit) { 0.0 } else { 1.0 };
        let gates = dormant.units().layers()[place.layer].units(place.site).iter().map(gate).collect();
        dormant.set_gates(place, gates)?;
    }
    Ok(dormant)
}

/// The gain of every archived unit of the context's kinds from one pass over `context.data`: with g the gradient in the shut gate
/// and F the mean of its square over sequences, g²/2F where g is negative, and less than zero where it is
/// positive. If F were the loss's curvature, that would be what the best gate takes off the loss; F stands in
/// for it up to a factor, so gains (at most ½) rank units and are not nats. A unit's scale does not matter,
/// as the refit finds it.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for a plain encoder without a reference, since nothing says what it should
/// do better, and if there is no `context.data`; [`Error::Data`] if that has no sequences or nothing to
/// predict; [`Error::Interrupted`] if the work is stopped; and what `context.reduce` returns.
pub fn gains(context: &ScoreContext<'_>) -> Result<Gains> {
    if context.model.spec().objective == Objective::Encoder && context.model.reference().is_none() {
        return Err(Error::does_not_fit(
            "a plain encoder has gains only against a reference, the model whose hidden states it is to keep",
        ));
    }
    let model = with_dormant(context.model)?;
    let (gradient, square) = gate_gradients(&ScoreContext { model: &model, ..*context })?;
    let mut gains = Gains::new();
    for place in gradient.places() {
        let (gradient, square) = (gradient.at(place), square.at(place));
        let there = &context.model.units().layers()[place.layer];
        let dormant = model.units().layers()[place.layer].units(place.site);
        for ((&g, &f), index) in gradient.iter().zip(square).zip(dormant) {
            if !there.has(place.site, index) {
                let unit = Unit { layer: place.layer, site: place.site, index };
                gains.insert(unit, if f > 0.0 { -g.signum() * g * g / (2.0 * f) } else { 0.0 });
            }
        }
    }
    Ok(gains)
}

/// What can come back at once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    /// Per unit.
    pub(crate) gain: f64,
    pub(crate) layer: usize,
    pub(crate) units: Vec<Unit>,
    /// As budgets count it: a block is one.
    pub(crate) count: usize,
}

/// What of a kind can come back at once, the highest gain per unit first. Blocks come back that have gone whole.
pub(crate) fn candidates(known: &UnitMap, gains: &Gains, site: Site) -> Vec<Candidate> {
    let mut units: BTreeMap<(usize, usize), Vec<(Unit, f64)>> = BTreeMap::new();
    for (id, &gain) in gains.iter().filter(|(id, _)| site.leaves().contains(&id.site)) {
        let layer = &known.layers()[id.layer];
        let of = match site {
            Site::KvGroup => layer.kv_group_of(id.index),
            _ if site.is_block() && layer.count(site) > 0 => continue,
            _ if site.is_block() => 0,
            _ => id.index,
        };
        units.entry((id.layer, of)).or_default().push((*id, gain));
    }
    let each = |((layer, _), members): ((usize, usize), Vec<(Unit, f64)>)| {
        let gain = members.iter().map(|m| m.1).sum::<f64>() / members.len() as f64;
        let count = if site.is_block() { 1 } else { members.len() };
        Candidate { gain, layer, units: members.into_iter().map(|m| m.0).collect(), count }
    };
    let mut found: Vec<Candidate> = units.into_iter().map(each).collect();
    found.sort_by(|a, b| {
        b.gain.total_cmp(&a.gain).then_with(|| (a.layer, &a.units).cmp(&(b.layer, &b.units)))
    });
    found
}

/// The units of a kind that return: in each layer those with the highest gain, whole groups if the kind asks.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for a layer that does not exist, and for more units than a layer has to
/// restore.
pub fn choose(
    units: &UnitMap,
    gains: &Gains,
    counts: &BTreeMap<usize, usize>,
    site: Site,
) -> Result<Selection> {
    let mut chosen = Selection::new();
    let candidates = candidates(units, gains, site);
    for (&layer, &count) in counts.iter().filter(|(_, count)| **count > 0) {
        if layer >= units.layers().len() {
            return Err(Error::does_not_fit(format!(
                "layer {layer} does not exist: the model has {} layers",
                units.layers().len()
            )));
        }
        let there: usize = candidates.iter().filter(|c| c.layer == layer).map(|c| c.count).sum();
        if count > there {
            return Err(Error::does_not_fit(format!(
                "{count} {} are to grow in layer {layer}, which has {there} to restore",
                site.counted().name()
            )));
        }
        let mut left = count;
        for candidate in candidates.iter().filter(|c| c.layer == layer) {
            if candidate.count <= left {
                left -= candidate.count;
                for unit in &candidate.units {
                    chosen.entry(unit.place()).or_default().push(unit.index);
                }
            }
        }
    }
    chosen.values_mut().for_each(|units| units.sort_unstable());
    Ok(chosen)
}
