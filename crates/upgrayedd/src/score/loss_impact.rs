//! Exact ablation: what the loss rises by without a head. The truth that cheaper scores approximate.

use std::collections::BTreeMap;

use upgrayedd_nn::{Tape, Tensor};

use super::context::ScoreContext;
use super::definition::Score;
use super::statistics::{Needs, Statistics};
use crate::data::Pass;
use crate::model::{Hooks, Model};
use crate::reduce::sum_counts;
use crate::units::{LayerSite, Scores, Selection, Site};
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "loss_impact",
    summary: "loss without the head − loss, in nats per target, measured head by head with the layers below cached",
    shown_negated: false,
    needs: Needs::Ablation,
    compute: |context, _: &Statistics| every(context),
};

fn every(context: &ScoreContext<'_>) -> Result<Scores> {
    let all = context
        .model
        .units
        .layers()
        .iter()
        .enumerate()
        .map(|(l, heads)| (LayerSite::heads(l), heads.active().to_vec()))
        .collect();
    let mut scores = Scores::zeros(&context.model.units, Site::Head);
    for (layer, impacts) in of(context, &all)? {
        *scores.at_mut(LayerSite::heads(layer)) = impacts;
    }
    Ok(scores)
}

/// The impact of each head of `selection`, in its order.
pub(crate) fn of(context: &ScoreContext<'_>, selection: &Selection) -> Result<Vec<(usize, Vec<f64>)>> {
    let (data, range) = context.calibration()?;
    let model = context.model;
    let mut sums: Vec<(usize, Vec<f64>)> = selection.iter().map(|(place, heads)| (place.layer, vec![0.0; heads.len()])).collect();
    let mut targets = 0u64;
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    for indices in indices.chunks(context.batch_size) {
        let batch = data.batch(indices, Pass::Fixed);
        let mut inputs = Vec::with_capacity(model.spec.num_layers());
        let mut tape = Tape::inference(model.device, &model.params);
        // The reference sees the batch once, not once for each head.
        let wanted = model.wanted_rows(&batch)?;
        let hooks = &mut Hooks { inputs: Some(&mut inputs), wanted: wanted.as_ref(), ..Hooks::default() };
        let whole = model.loss_from(&mut tape, None, &batch, 1.0, hooks)?;
        targets += whole.count;
        let whole = whole.sum.read();
        for ((layer, sums), heads) in sums.iter_mut().zip(selection.values()) {
            for (sum, &head) in sums.iter_mut().zip(heads) {
                let gates = without(model, *layer, head)?;
                let mut tape = Tape::inference(model.device, &model.params);
                let gates = gates.into_iter().map(|(place, gates)| (place, tape.constant(gates))).collect();
                let start = (*layer, tape.constant(inputs[*layer].clone()));
                let hooks = &mut Hooks { gates: Some(&gates), wanted: wanted.as_ref(), ..Hooks::default() };
                *sum += model.loss_from(&mut tape, Some(start), &batch, 1.0, hooks)?.sum.read() - whole;
            }
        }
    }
    sum_counts(context.reduce, [&mut targets])?;
    sums.iter_mut().try_for_each(|(_, sums)| context.reduce.sum(sums))?;
    if targets == 0 {
        return Err(Error::invalid("the calibration data has nothing to predict: the impact on the loss is undefined"));
    }
    sums.iter_mut().flat_map(|(_, s)| s).for_each(|s| *s /= targets as f64);
    Ok(sums)
}

/// Gates of all layers that shut one head.
fn without(model: &Model, layer: usize, head: usize) -> Result<BTreeMap<LayerSite, Tensor>> {
    let open = |(layer, n): (usize, usize)| (LayerSite::heads(layer), Tensor::full(&[n], 1.0));
    let mut gates: BTreeMap<LayerSite, Tensor> = model.units.counts().into_iter().enumerate().map(open).collect();
    let position = model.units.layers()[layer].active().binary_search(&head);
    let position = position.map_err(|_| Error::invalid(format!("head {head} of layer {layer} is not there to be left out")))?;
    if let Some(gates) = gates.get_mut(&LayerSite::heads(layer)) {
        gates.data_mut()[position] = 0.0;
    }
    Ok(gates)
}
