//! Which archived heads would help, and which come back once a strategy has said how many in which layers.

use std::collections::BTreeMap;

use crate::score::{ScoreContext, gate_gradients};
use crate::spec::Objective;
use crate::surgery;
use crate::units::{LayerSite, Selection, Site, Unit, UnitMap};
use crate::{Error, Model, Result};

/// How much opening a head's gate promises, by head: above zero if the loss wants it open, and the more so,
/// the higher.
pub type Gains = BTreeMap<Unit, f64>;

/// Every archived head back in the model with its gate shut (dormant): the logits are those of the model
/// without them.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] if the archive holds heads that the model still has or never had.
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

/// The gain of every archived head from one pass over `context.data`: with g the gradient in the shut gate
/// and F the mean of its square over sequences, g²/2F where g is negative, and less than zero where it is
/// positive. If F were the loss's curvature, that would be what the best gate takes off the loss; F stands in
/// for it up to a factor, so gains (at most ½) rank heads and are not nats. A head's scale does not matter,
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
    for (layer, heads) in model.units().layers().iter().enumerate() {
        let (gradient, square) = (gradient.at(LayerSite::heads(layer)), square.at(LayerSite::heads(layer)));
        for (position, &head) in heads.active().iter().enumerate() {
            if !context.model.units().layers()[layer].is_active(head) {
                let (g, f) = (gradient[position], square[position]);
                gains.insert(
                    Unit::head(layer, head),
                    if f > 0.0 { -g.signum() * g * g / (2.0 * f) } else { 0.0 },
                );
            }
        }
    }
    Ok(gains)
}

/// What can come back at once, the highest gain per head first: gain per head, layer, heads.
pub(crate) fn candidates(heads: &UnitMap, gains: &Gains, site: Site) -> Vec<(f64, usize, Vec<usize>)> {
    let mut units: BTreeMap<(usize, usize), Vec<(usize, f64)>> = BTreeMap::new();
    for (id, &gain) in gains {
        let of = match site {
            Site::KvGroup => heads.layers()[id.layer].kv_group_of(id.index),
            _ => id.index,
        };
        units.entry((id.layer, of)).or_default().push((id.index, gain));
    }
    let each = |((layer, _), members): ((usize, usize), Vec<(usize, f64)>)| {
        let gain = members.iter().map(|m| m.1).sum::<f64>() / members.len() as f64;
        (gain, layer, members.into_iter().map(|m| m.0).collect::<Vec<_>>())
    };
    let mut found: Vec<_> = units.into_iter().map(each).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, &a.2).cmp(&(b.1, &b.2))));
    found
}

/// The heads that return: in each layer those with the highest gain, whole groups if the unit asks.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for a layer that does not exist, and for more heads than a layer has to
/// restore.
pub fn choose(
    heads: &UnitMap,
    gains: &Gains,
    counts: &BTreeMap<usize, usize>,
    site: Site,
) -> Result<Selection> {
    let mut chosen = Selection::new();
    let candidates = candidates(heads, gains, site);
    for (&layer, &count) in counts.iter().filter(|(_, count)| **count > 0) {
        if layer >= heads.layers().len() {
            return Err(Error::does_not_fit(format!(
                "layer {layer} does not exist: the model has {} layers",
                heads.layers().len()
            )));
        }
        let archived = gains.keys().filter(|id| id.layer == layer).count();
        if count > archived {
            return Err(Error::does_not_fit(format!(
                "{count} heads are to grow in layer {layer}, which has {archived} to restore"
            )));
        }
        let mut picked: Vec<usize> = Vec::new();
        for (_, _, unit) in candidates.iter().filter(|c| c.1 == layer) {
            if picked.len() + unit.len() <= count {
                picked.extend(unit);
            }
        }
        picked.sort_unstable();
        chosen.insert(LayerSite::heads(layer), picked);
    }
    Ok(chosen)
}
