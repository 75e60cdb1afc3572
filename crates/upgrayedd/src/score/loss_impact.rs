//! Exact ablation: what the loss rises by without a head. The truth that cheaper scores approximate.

use std::collections::BTreeMap;

use upgrayedd_nn::{Tape, Tensor};

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::data::Pass;
use crate::model::{Hooks, Model};
use crate::reduce::sum_counts;
use crate::units::{LayerSite, Scores, Site, Sites};
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "loss_impact",
    summary: "loss without the head − loss, in nats per target, measured head by head with the layers below cached",
    shown_negated: false,
    units: Sites::of(Site::Head),
    needs: Needs::Ablation,
    compute: |context, _: &Statistics| ablate(context),
};

/// Leaves each head out alone.
fn ablate(context: &ScoreContext<'_>) -> Result<Scores> {
    let (data, range) = context.calibration()?;
    let model = context.model;
    let mut scores = Scores::zeros(model.units(), context.units);
    let mut targets = 0u64;
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    for indices in indices.chunks(context.batch_size) {
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
            for position in 0..model.units().layers()[layer].active().len() {
                let mut tape = Tape::inference(model.device(), model.params());
                let gates = without(model, layer, position);
                let gates = gates.into_iter().map(|(place, gates)| (place, tape.constant(gates))).collect();
                let start = (layer, tape.constant(start.clone()));
                let hooks = &mut Hooks { gates: Some(&gates), wanted: wanted.as_ref(), ..Hooks::default() };
                let loss = model.loss_from(&mut tape, Some(start), &batch, 1.0, hooks)?.sum.read();
                scores.at_mut(LayerSite::heads(layer))[position] += loss - whole;
            }
        }
    }
    sum_counts(context.reduce, [&mut targets])?;
    if targets == 0 {
        return Err(Error::data(
            "the calibration data has nothing to predict: the impact on the loss is undefined",
        ));
    }
    for layer in 0..model.spec().num_layers() {
        let impacts = scores.at_mut(LayerSite::heads(layer));
        context.reduce.sum(impacts)?;
        impacts.iter_mut().for_each(|impact| *impact /= targets as f64);
    }
    Ok(scores)
}

/// Gates of all layers that shut the head at this position.
fn without(model: &Model, layer: usize, position: usize) -> BTreeMap<LayerSite, Tensor> {
    let open = |(layer, n): (usize, usize)| (LayerSite::heads(layer), Tensor::full(&[n], 1.0));
    let mut gates: BTreeMap<LayerSite, Tensor> =
        model.units().counts().into_iter().enumerate().map(open).collect();
    if let Some(gates) = gates.get_mut(&LayerSite::heads(layer)) {
        gates.data_mut()[position] = 0.0;
    }
    gates
}
