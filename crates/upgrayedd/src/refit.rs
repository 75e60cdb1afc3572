//! Least-squares repair without training: after pruning, the remaining heads' output projections are changed such that the
//! residual stream is again as close as they can bring it to that of the parent (the model before pruning).
//!
//! Layer by layer, student and parent side by side: with X the student's output-projection input, W the parent's weights of the heads
//! that are left and R what the stream lacks with those, W' = W + argmin |R − X ΔWᵀ|² + λ|ΔW|². Where the projection has a bias, X has a
//! column of ones for it. Because R is a difference of streams and not of one layer's outputs, a layer repairs what the layers below
//! could not. Starting from the parent's weights, a refit after growing back does not inherit what an earlier one did for heads that
//! were missing then. The ridge λ is chosen on sequences that the solution has not seen, and a solution that is not better there
//! than the weights as they are is not used.

use std::sync::Arc;

use serde::Serialize;
use upgrayedd_nn::{ParamId, Tape, Tensor, Var, trim_buffers};

use crate::data::{Dataset, Pass};
use crate::linalg::{Moments, ridge};
use crate::model::{Batch, Hooks, Model};
use crate::{Error, Result};

/// What came of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerRefit {
    /// λ as a share of the mean square of the inputs; absent if no λ helped (the parent's own weights may).
    pub ridge: Option<f64>,
    /// Share of the held-out squared distance to the parent's stream that is gone.
    pub repaired: f64,
}

/// Every fifth batch only judges.
const JUDGES: usize = 5;

/// One batch on its way through both models.
struct Pair {
    batch: Batch,
    positions: Arc<Vec<u32>>,
    student: Tensor,
    parent: Tensor,
}

/// Sequences `indices` of `data` in batches of at most `batch_size`, and in at least five if there are as many sequences.
pub fn batches(data: &Dataset, indices: &[usize], batch_size: usize) -> Vec<Batch> {
    let size = batch_size.min(indices.len().div_ceil(JUDGES)).max(1);
    indices.chunks(size).map(|indices| data.batch(indices, Pass::Fixed)).collect()
}

/// Repairs `model` towards `parent` on `batches`; their targets are not looked at.
///
/// Nothing changes if it is refused: for fewer than two batches, one to fit on and one to judge by.
pub fn refit(model: &mut Model, parent: &Model, batches: Vec<Batch>) -> Result<Vec<LayerRefit>> {
    if batches.len() < 2 {
        return Err(Error::invalid("refit needs at least 2 calibration sequences: one to fit on and one to judge by"));
    }
    let shape = |m: &Model| (m.spec.family.model_type, m.spec.num_layers, m.spec.hidden_size, m.spec.vocab_size);
    if shape(model) != shape(parent) {
        return Err(Error::invalid(
            "refit needs the model before pruning as the parent: this one has other layers or another width",
        ));
    }
    let mut pairs: Vec<Pair> = batches.into_iter().map(|batch| Pair::start(model, parent, batch)).collect();
    let mut report = Vec::with_capacity(model.spec.num_layers);
    for layer in 0..model.spec.num_layers {
        let contexts = pairs.iter().map(|pair| pair.inputs(model, parent, layer)).collect::<Vec<_>>();
        report.push(solve(model, parent, layer, &pairs, &contexts));
        for (pair, (student, teacher)) in pairs.iter_mut().zip(contexts) {
            pair.student = finish(model, layer, &pair.student, student);
            pair.parent = finish(parent, layer, &pair.parent, teacher);
        }
    }
    model.touch();
    trim_buffers();
    Ok(report)
}

impl Pair {
    fn start(model: &Model, parent: &Model, batch: Batch) -> Self {
        let positions = model.positions_for(batch.batch, batch.len, 0);
        let embed = |model: &Model| {
            let mut tape = Tape::inference(model.device, &model.params);
            model.embed(&mut tape, &batch, &positions).tensor().clone()
        };
        let (student, parent) = (embed(model), embed(parent));
        Self { batch, positions, student, parent }
    }

    /// What both models' output projections of a layer read.
    fn inputs(&self, model: &Model, parent: &Model, layer: usize) -> (Tensor, Tensor) {
        let context = |model: &Model, x: &Tensor| {
            let mut tape = Tape::inference(model.device, &model.params);
            let (x, hooks) = (tape.constant(x.clone()), &mut Hooks::default());
            model.attention_context(&mut tape, layer, &x, None, &self.batch, &self.positions, hooks).tensor().clone()
        };
        (context(model, &self.student), context(parent, &self.parent))
    }
}

/// Changes the output projection of a layer, if that helps.
fn solve(model: &mut Model, parent: &Model, layer: usize, pairs: &[Pair], contexts: &[(Tensor, Tensor)]) -> LayerRefit {
    let (id, bias) = model.output_projection_ids(layer);
    let (outputs, features) = (model.params.get(id).rows(), model.params.get(id).cols());
    let inputs = features + usize::from(bias.is_some());
    let current = model.params.get(id).clone();
    let current_bias = bias.map(|bias| model.params.get(bias).clone());
    start_from(model, parent, layer);
    let (mut fit, mut held_out) = (Moments::new(inputs, outputs), Moments::new(inputs, outputs));
    for (i, (pair, (student, teacher))) in pairs.iter().zip(contexts).enumerate() {
        let mut missing = added(parent, layer, &pair.parent, teacher);
        let there = added(model, layer, &pair.student, student);
        missing.data_mut().iter_mut().zip(there.data()).for_each(|(m, t)| *m -= t);
        let mut x = if bias.is_some() { with_ones(student) } else { student.clone() };
        if let Some(mask) = &pair.batch.mask {
            // Padding never counts.
            x.blank_rows(mask);
            missing.blank_rows(mask);
        }
        let moments = if i % JUDGES == JUDGES - 1 || (i + 1 == pairs.len() && i < JUDGES) { &mut held_out } else { &mut fit };
        moments.add(model.device, &x, &missing);
    }
    // What an earlier refit has made of the parent's weights.
    let earlier = deviation(model, (id, &current), bias.zip(current_bias.as_ref()));
    let kept = earlier.as_ref().map_or(0.0, |change| held_out.gain_of(change));
    let repaired = |gain: f64| (gain - kept) / (held_out.power - kept);
    let Some(found) = ridge(&fit, &held_out).filter(|found| found.gain > kept) else {
        if kept < 0.0 {
            // With all heads back, say.
            return LayerRefit { ridge: None, repaired: repaired(0.0) };
        }
        *model.params.get_mut(id) = current;
        if let Some((bias, current)) = bias.zip(current_bias) {
            *model.params.get_mut(bias) = current;
        }
        return LayerRefit { ridge: None, repaired: 0.0 };
    };
    let rows = || found.change.data().chunks_exact(inputs);
    let weight = model.params.get_mut(id).data_mut();
    weight.chunks_exact_mut(features).zip(rows()).for_each(|(w, change)| w.iter_mut().zip(change).for_each(|(w, c)| *w += c));
    if let Some(bias) = bias {
        let bias = model.params.get_mut(bias).data_mut();
        bias.iter_mut().zip(rows()).for_each(|(b, change)| *b += change[features]);
    }
    LayerRefit { ridge: Some(found.ridge), repaired: repaired(found.gain) }
}

/// Gives the heads of a layer the output weights that they have in the parent, where they are the same heads there, and its bias.
fn start_from(model: &mut Model, parent: &Model, layer: usize) {
    let d = model.spec.head_dim;
    let queries = |model: &Model, at: usize| {
        let q = model.params.get(model.query_projection_id(layer));
        q.data()[at * d * q.cols()..][..d * q.cols()].to_vec()
    };
    // A head that has come back as another one, or has learned, has other queries.
    let position = |(at, head): (usize, &usize)| {
        let of_parent = parent.heads.layers()[layer].active().binary_search(head).ok()?;
        (queries(model, at) == queries(parent, of_parent)).then_some(of_parent)
    };
    let heads: Vec<Option<usize>> = model.heads.layers()[layer].active().iter().enumerate().map(position).collect();
    let ((id, bias), (parents, parents_bias)) = (model.output_projection_ids(layer), parent.output_projection_ids(layer));
    let from = parent.params.get(parents);
    let to = model.params.get_mut(id);
    let (width, from_width) = (to.cols(), from.cols());
    for (to, from) in to.data_mut().chunks_exact_mut(width).zip(from.data().chunks_exact(from_width)) {
        for (to, from_head) in to.chunks_exact_mut(d).zip(&heads) {
            if let Some(at) = from_head {
                to.copy_from_slice(&from[at * d..(at + 1) * d]);
            }
        }
    }
    if let Some((bias, from)) = bias.zip(parents_bias) {
        *model.params.get_mut(bias) = parent.params.get(from).clone();
    }
}

/// How far weights (and bias, as a last column) are from the model's; `None` if they are the same.
fn deviation(model: &Model, (id, weight): (ParamId, &Tensor), bias: Option<(ParamId, &Tensor)>) -> Option<Tensor> {
    let difference = |id: ParamId, of: &Tensor| {
        let data = of.data().iter().zip(model.params.get(id).data()).map(|(a, b)| a - b).collect();
        Tensor::from_vec(of.shape(), data)
    };
    let mut change = difference(id, weight);
    if let Some((id, bias)) = bias {
        let last = difference(id, bias);
        change = with_ones(&change);
        let width = change.cols();
        change.data_mut().chunks_exact_mut(width).zip(last.data()).for_each(|(row, b)| row[width - 1] = *b);
    }
    change.data().iter().any(|v| *v != 0.0).then_some(change)
}

/// `x (N, inputs)` with a column of ones at its end.
fn with_ones(x: &Tensor) -> Tensor {
    let mut wider = Tensor::zeros(&[x.rows(), x.cols() + 1]);
    for (wider, row) in wider.data_mut().chunks_exact_mut(x.cols() + 1).zip(x.data().chunks_exact(x.cols())) {
        wider[..row.len()].copy_from_slice(row);
        wider[row.len()] = 1.0;
    }
    wider
}

/// The stream with attention added.
fn added(model: &Model, layer: usize, x: &Tensor, context: &Tensor) -> Tensor {
    let mut tape = Tape::inference(model.device, &model.params);
    let (x, context) = (tape.constant(x.clone()), tape.constant(context.clone()));
    model.add_attention(&mut tape, layer, &x, context, None).tensor().clone()
}

/// The stream after the whole layer.
fn finish(model: &Model, layer: usize, x: &Tensor, context: Tensor) -> Tensor {
    let mut tape = Tape::inference(model.device, &model.params);
    let (x, context): (Var, Var) = (tape.constant(x.clone()), tape.constant(context));
    let x = model.after_attention(&mut tape, layer, x, context, None);
    let hidden = model.mlp_hidden(&mut tape, layer, &x);
    model.after_mlp(&mut tape, layer, x, hidden).tensor().clone()
}
