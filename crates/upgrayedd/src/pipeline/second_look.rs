//! Second looks at what a score has chosen: exact ablation of the heads near the cut, and trades of heads that went for heads
//! that stayed. Both are judged by the loss on the calibration sequences, never on what is held out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::parts::score_context;
use super::state::{Pipeline, Run};
use crate::Result;
use crate::budget::Scope;
use crate::data::Part;
use crate::eval::{EvalOptions, evaluate};
use crate::event::{Event, Progress, Silent, named_units};
use crate::grow;
use crate::learner::Learner;
use crate::model::Model;
use crate::reduce::Alone;
use crate::score::{ScoreContext, ablate};
use crate::units::{LayerSite, Scores, Selection, Site, UnitMap};

/// Calibration sequences that exact ablation reads at most.
const ABLATED: usize = 32;

/// A head near the cut.
struct Border {
    layer: usize,
    head: usize,
    keep: f64,
    chosen: bool,
}

/// What exact ablation said: kind → layer name → index → impact, and how many heads go that would have stayed.
pub(super) type Settled = (Map<String, Value>, usize);

impl Pipeline {
    /// Of the `exact_border` chosen heads with the highest scores and as many others with the lowest, those go without which the
    /// loss is lowest, each left out alone.
    pub(super) fn settle(&self, cycle: usize, scores: &Scores, selection: Selection) -> Result<(Selection, Option<Settled>)> {
        let Self { learner: Learner { model, .. }, config, .. } = self;
        let count = config.exact_border;
        if count == 0 || selection.values().all(Vec::is_empty) {
            return Ok((selection, None));
        }
        let borders = borders(&model.units, scores, &selection, count, config.scope.unwrap_or_default());
        let mut asked = Selection::new();
        borders.iter().flatten().for_each(|b| asked.entry(LayerSite::heads(b.layer)).or_default().push(b.head));
        asked.values_mut().for_each(|heads| heads.sort_unstable());
        let context = score_context(model, &self.data, config, self.cycle_seed(cycle));
        let found = ablate(&ScoreContext { samples: context.samples.min(ABLATED), ..context }, &asked)?;
        let mut impacts = BTreeMap::new();
        for (layer, found) in &found {
            impacts.extend(asked[&LayerSite::heads(*layer)].iter().zip(found).map(|(&head, &impact)| ((*layer, head), impact)));
        }
        let (settled, exchanged) = by_impact(&model.units, selection, borders, &impacts, config.min_heads);
        let named = |(layer, found): &(usize, Vec<f64>)| {
            let heads: Map<String, Value> =
                asked[&LayerSite::heads(*layer)].iter().zip(found).map(|(h, &v)| (h.to_string(), v.into())).collect();
            (model.layer_name(*layer), heads.into())
        };
        let impacts = [(Site::Head.name().to_owned(), found.iter().map(named).collect::<Map<String, Value>>().into())];
        Ok((settled, Some((impacts.into_iter().collect(), exchanged))))
    }
}

impl Run<'_> {
    /// Trades up to `swaps` of the weakest heads for as many of those with the highest gains that the cycle has pruned, as long as that
    /// lowers the loss; half as many when it does not. Returns the scores of the heads that are there then.
    pub(super) fn swap(&mut self, cycle: usize, parent: &Model) -> Result<Scores> {
        let mut count = self.pipeline.config.swaps;
        let mut loss = self.calibration_loss(&self.pipeline.learner.model)?;
        loop {
            let task = self.task(cycle, "swap");
            self.observer.on_progress(Progress { task: &task, done: 0, total: 1 });
            let (mut gains, scores) = (self.pipeline.gains(cycle)?, self.pipeline.score(cycle)?);
            // The refit would cancel heads that the parent does not have.
            gains.retain(|id, _| parent.units.layers()[id.layer].is_active(id.index));
            loop {
                let Run { pipeline, .. } = self;
                let (scope, least) = (pipeline.config.scope.unwrap_or_default(), pipeline.config.min_heads);
                let (back, gone) = trades(&pipeline.learner.model.units, &scores, &gains, count, (scope, least));
                if back.is_empty() {
                    return Ok(scores);
                }
                let before = self.pipeline.learner.clone();
                let named = [&back, &gone].map(|heads| named_units(&self.pipeline.learner.model, heads));
                let learner = &mut self.pipeline.learner;
                learner.restore(&back, 1.0)?;
                learner.remove(&gone, cycle, Some(&with_restored(&before.model.units, &scores, &back)))?;
                self.pipeline.refit(parent, 0)?;
                let loss_after = self.calibration_loss(&self.pipeline.learner.model)?;
                let accepted = loss_after < loss;
                let [grown, pruned] = named;
                self.emit(Event::Swapped { cycle, grown, pruned, loss_before: loss, loss_after, accepted })?;
                if accepted {
                    loss = loss_after;
                    break;
                }
                self.pipeline.learner = before;
                count /= 2;
            }
        }
    }

    fn calibration_loss(&self, model: &Model) -> Result<f64> {
        let Part { data, range } = &self.pipeline.data.calibration;
        let options = EvalOptions { batch_size: self.pipeline.config.batch_size, max_windows: None, window: 0, reduce: &Alone };
        Ok(evaluate(model, data, range, options, "calibration", &mut Silent)?.loss)
    }
}

/// The heads of a layer or of all together, as they compete.
fn groups(layers: usize, scope: Scope) -> Vec<std::ops::Range<usize>> {
    match scope {
        Scope::Global => std::iter::once(0..layers).collect(),
        Scope::Layer => (0..layers).map(|layer| layer..layer + 1).collect(),
    }
}

/// Where heads compete: the `count` chosen ones that were closest to staying, and the `count` others closest to going.
fn borders(heads: &UnitMap, keep: &Scores, selection: &Selection, count: usize, scope: Scope) -> Vec<Vec<Border>> {
    let near = |layers: std::ops::Range<usize>| {
        let all = layers.flat_map(|layer| {
            let chosen = |head: &usize| selection.get(&LayerSite::heads(layer)).is_some_and(|s| s.contains(head));
            let border = move |(&head, &keep): (&usize, &f64)| Border { layer, head, keep, chosen: chosen(&head) };
            heads.layers()[layer].active().iter().zip(keep.at(LayerSite::heads(layer))).map(border).collect::<Vec<_>>()
        });
        let (mut out, mut stay): (Vec<Border>, Vec<Border>) = all.partition(|b| b.chosen);
        out.sort_by(|a, b| b.keep.total_cmp(&a.keep).then((a.layer, a.head).cmp(&(b.layer, b.head))));
        stay.sort_by(|a, b| a.keep.total_cmp(&b.keep).then((a.layer, a.head).cmp(&(b.layer, b.head))));
        out.into_iter().take(count).chain(stay.into_iter().take(count)).collect()
    };
    groups(heads.layers().len(), scope).into_iter().map(near).collect()
}

/// The selection with its border chosen anew, lowest impact first, and how many heads of it are other ones.
fn by_impact(
    heads: &UnitMap,
    mut selection: Selection,
    borders: Vec<Vec<Border>>,
    impacts: &BTreeMap<(usize, usize), f64>,
    min_heads: usize,
) -> (Selection, usize) {
    let mut exchanged = 0;
    for mut border in borders {
        let mut wanted = border.iter().filter(|b| b.chosen).count();
        for b in border.iter().filter(|b| b.chosen) {
            selection.entry(LayerSite::heads(b.layer)).or_default().retain(|h| *h != b.head);
        }
        let impact = |b: &Border| impacts[&(b.layer, b.head)];
        border.sort_by(|a, b| impact(a).total_cmp(&impact(b)).then(a.keep.total_cmp(&b.keep)));
        for b in border {
            let gone = selection.entry(LayerSite::heads(b.layer)).or_default();
            if wanted > 0 && heads.layers()[b.layer].active().len() > min_heads + gone.len() {
                gone.push(b.head);
                wanted -= 1;
                exchanged += usize::from(!b.chosen);
            }
        }
    }
    selection.values_mut().for_each(|heads| heads.sort_unstable());
    selection.retain(|_, heads| !heads.is_empty());
    (selection, exchanged)
}

/// Up to `count` archived heads that promise a gain and as many of the weakest to go for them, in the same layers if heads compete
/// there; `least` heads of each layer stay.
fn trades(
    heads: &UnitMap,
    keep: &Scores,
    gains: &grow::Gains,
    count: usize,
    (scope, least): (Scope, usize),
) -> (Selection, Selection) {
    let (mut back, mut gone) = (Selection::new(), Selection::new());
    for layers in groups(heads.layers().len(), scope) {
        let mut dormant: Vec<_> = gains.iter().filter(|(id, gain)| layers.contains(&id.layer) && **gain > 0.0).collect();
        dormant.sort_by(|a, b| b.1.total_cmp(a.1).then(a.0.cmp(b.0)));
        let mut live: Vec<(f64, usize, usize)> = Vec::new();
        for layer in layers {
            let of_layer = heads.layers()[layer].active().iter().zip(keep.at(LayerSite::heads(layer)));
            let mut of_layer: Vec<_> = of_layer.map(|(&head, &keep)| (keep, layer, head)).collect();
            of_layer.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
            // The strongest stay.
            of_layer.truncate(of_layer.len().saturating_sub(least.max(1)));
            live.extend(of_layer);
        }
        live.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        for ((id, _), (_, layer, head)) in dormant.into_iter().zip(live).take(count) {
            back.entry(id.place()).or_default().push(id.index);
            gone.entry(LayerSite::heads(layer)).or_default().push(head);
        }
    }
    for heads in back.values_mut().chain(gone.values_mut()) {
        heads.sort_unstable();
    }
    (back, gone)
}

/// `keep` with a place for the heads that came back: they are not among those that go.
fn with_restored(heads: &UnitMap, keep: &Scores, back: &Selection) -> Scores {
    let mut wider = keep.clone();
    for (&place, restored) in back {
        let mut scored: Vec<(usize, f64)> =
            heads.layers()[place.layer].units(place.site).into_iter().zip(keep.at(place).iter().copied()).collect();
        scored.extend(restored.iter().map(|&unit| (unit, 0.0)));
        scored.sort_by_key(|(unit, _)| *unit);
        *wider.at_mut(place) = scored.into_iter().map(|(_, keep)| keep).collect();
    }
    wider
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Unit;

    fn scores(layers: &[&[f64]]) -> Scores {
        Scores::of_heads(layers.iter().map(|l| l.to_vec()))
    }

    #[test]
    fn the_border_goes_by_impact_and_layers_keep_their_least() {
        let heads = UnitMap::full(2, 3, 3);
        let keep = scores(&[&[0.1, 0.2, 0.3], &[0.25, 0.5, 0.6]]);
        let selection = Selection::from([(LayerSite::heads(0), vec![0, 1]), (LayerSite::heads(1), vec![0])]);
        let borders = borders(&heads, &keep, &selection, 2, Scope::Global);
        let near: Vec<_> = borders[0].iter().map(|b| (b.layer, b.head, b.chosen)).collect();
        assert_eq!(near, [(1, 0, true), (0, 1, true), (0, 2, false), (1, 1, false)]);
        // Head 2 of layer 0 costs least, but one head must stay there, and head 0 is gone already.
        let impacts = BTreeMap::from([((1, 0), 0.9), ((0, 1), 0.2), ((0, 2), 0.1), ((1, 1), 0.3)]);
        let (settled, exchanged) = by_impact(&heads, selection, borders, &impacts, 1);
        assert_eq!(settled, Selection::from([(LayerSite::heads(0), vec![0, 2]), (LayerSite::heads(1), vec![1])]));
        assert_eq!(exchanged, 2);
    }

    #[test]
    fn trades_take_what_gains_for_what_is_weakest() {
        let heads = UnitMap::full(2, 3, 3).with_active(vec![vec![0, 1], vec![2]]).expect("heads");
        let keep = scores(&[&[0.3, 0.1], &[0.05]]);
        let gains = [(0, 2, 0.5), (1, 0, 0.7), (1, 1, -0.2)].map(|(layer, head, gain)| (Unit::head(layer, head), gain));
        let gains = gains.into_iter().collect();
        let (back, gone) = trades(&heads, &keep, &gains, 4, (Scope::Global, 1));
        // The last head of layer 1 does not go however weak it is, and what would not gain does not return.
        assert_eq!(
            (back, gone),
            (Selection::from([(LayerSite::heads(1), vec![0])]), Selection::from([(LayerSite::heads(0), vec![1])]))
        );
        let (back, gone) = trades(&heads, &keep, &gains, 4, (Scope::Layer, 1));
        assert_eq!(
            (back, gone),
            (Selection::from([(LayerSite::heads(0), vec![2])]), Selection::from([(LayerSite::heads(0), vec![1])]))
        );
        let (back, gone) = trades(&heads, &keep, &gains, 4, (Scope::Global, 2));
        assert!(back.is_empty() && gone.is_empty(), "{back:?} {gone:?}");
    }
}
