//! Exact ablation: what the loss rises by without a head or a block. The truth that cheaper scores approximate.

use std::collections::BTreeMap;

use upgrayedd_nn::{Tape, Tensor};

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::data::Pass;
use crate::model::{Hooks, Model};
use crate::reduce::{own, sum_counts};
use crate::units::{LayerSite, Scores, Site, Sites};
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "loss_impact",
    summary: "loss without the head (or attention, mlp, layer) − loss, in nats per target, measured one by one with the layers below cached",
    shown_negated: false,
    units: Sites::of(Site::Head).and(Site::Attention).and(Site::Mlp).and(Site::Layer),
    needs: Needs::Ablation,
    compute: |context, _: &Statistics| ablate(context),
};

/// Leaves each unit out alone.
fn ablate(context: &ScoreContext<'_>) -> Result<Scores> {
    let (data, range) = context.calibration()?;
    let model = context.model;
    let mut scores = Scores::zeros(model.units(), context.units);
    let mut targets = 0u64;
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    for indices in own(context.reduce, indices.chunks(context.batch_size)) {
        let batch = data.batch(indices, Pass::Fixed);
        let mut inputs = Vec::with_capacity(model.spec().num_layers());
        let mut tape = Tape::inference(model.device(), model.params());
        // The reference sees the batch once, not once for each head.
        let wanted = model.wanted_rows(&batch)?;
        let hooks = &mut Hooks { inputs: Some(&mut inputs), wanted: wanted.as_ref(), ..Hooks::default() };
        let whole = model.loss_from(&mut tape, None, &batch, 1.0, hooks)?;
        targets += whole.count;
        let whole = whole.sum.read();
        for (layer, start) in inputs.into_iter().enumerate() {
            for (place, position) in units_of(model, context.units, layer) {
                let mut tape = Tape::inference(model.device(), model.params());
                let gates = without(model, place, position);
                let gates = gates.into_iter().map(|(place, gates)| (place, tape.constant(gates))).collect();
                let start = (layer, tape.constant(start.clone()));
                let hooks = &mut Hooks { gates: Some(&gates), wanted: wanted.as_ref(), ..Hooks::default() };
                let loss = model.loss_from(&mut tape, Some(start), &batch, 1.0, hooks)?.sum.read();
                scores.at_mut(place)[position] += loss - whole;
            }
        }
    }
    sum_counts(context.reduce, [&mut targets])?;
    if targets == 0 {
        return Err(Error::data(
            "the calibration data has nothing to predict: the impact on the loss is undefined",
        ));
    }
    for impacts in scores.lists_mut() {
        context.reduce.sum(impacts)?;
        impacts.iter_mut().for_each(|impact| *impact /= targets as f64);
    }
    Ok(scores)
}

/// What of some kinds a layer has, by place and position.
fn units_of(model: &Model, units: Sites, layer: usize) -> Vec<(LayerSite, usize)> {
    let of = |site| {
        let place = LayerSite { layer, site };
        (0..model.units().layers()[layer].count(site)).map(move |position| (place, position))
    };
    units.iter().flat_map(of).collect()
}

/// Gates that shut the unit at this position, of all layers' places of the kinds that it has.
fn without(model: &Model, place: LayerSite, position: usize) -> BTreeMap<LayerSite, Tensor> {
    let mut all = BTreeMap::new();
    for &site in place.site.leaves() {
        for (layer, known) in model.units().layers().iter().enumerate() {
            let mut gates = Tensor::full(&[known.count(site)], 1.0);
            if layer == place.layer && place.site.is_block() {
                gates.data_mut().fill(0.0);
            } else if layer == place.layer {
                gates.data_mut()[position] = 0.0;
            }
            all.insert(LayerSite { layer, site }, gates);
        }
    }
    all
}
