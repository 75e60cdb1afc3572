//! Least-squares repair without training: after pruning, the remaining heads' output projections are changed
//! such that the residual stream is again as close as they can bring it to that of the parent (the model
//! before pruning).
//!
//! Layer by layer, student and parent side by side: with X the student's output-projection input and R what
//! the stream then lacks, W' = W + argmin |R − X ΔWᵀ|² + λ|ΔW|². Where the projection has a bias, X has a
//! column of ones for it. Because R is a difference of streams and not of one layer's outputs, a layer
//! repairs what the layers below could not. The ridge λ is chosen on sequences that the solution has not
//! seen, and a solution that does not help there is not used.

use std::sync::Arc;

use upgrayedd_nn::{Tape, Tensor, Var, ops, trim_buffers};

use crate::data::{Dataset, Pass};
use crate::linalg::{Moments, ridge};
use crate::model::{Batch, Hooks, Model};
use crate::record::LayerRefit;
use crate::reduce::Reduce;
use crate::weights::Writer;
use crate::{Error, Result};

/// What is repaired: heads write through it.
const WRITER: Writer = Writer::Attention;

/// Every fifth batch only judges.
const JUDGES: usize = 5;

/// One batch on its way through both models.
struct Pair {
    batch: Batch,
    positions: Arc<Vec<u32>>,
    student: Tensor,
    parent: Tensor,
}

/// Sequences `indices` of `data` in batches of at most `batch_size`, and in at least five if there are as
/// many sequences.
pub fn batches(data: &Dataset, indices: &[usize], batch_size: usize) -> Vec<Batch> {
    let size = batch_size.min(indices.len().div_ceil(JUDGES)).max(1);
    indices.chunks(size).map(|indices| data.batch(indices, Pass::Fixed)).collect()
}

/// Repairs `model` towards `parent` on `batches`; their targets are not looked at.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for fewer than two batches, one to fit on and one to judge by, and for a
/// parent with other layers or another width; [`Error::Interrupted`] if the work is stopped; and what
/// `reduce` returns. Nothing changes then.
pub fn refit(
    model: &mut Model,
    parent: &Model,
    batches: Vec<Batch>,
    reduce: &dyn Reduce,
) -> Result<Vec<LayerRefit>> {
    if batches.len() < 2 {
        return Err(Error::does_not_fit(
            "refit needs at least 2 calibration sequences: one to fit on and one to judge by",
        ));
    }
    let shape =
        |m: &Model| (m.family().model_type, m.spec().num_layers(), m.spec().hidden_size, m.spec().vocab_size);
    if shape(model) != shape(parent) {
        return Err(Error::does_not_fit(
            "refit needs the model before pruning as the parent: this one has other layers or another width",
        ));
    }
    let mut repaired = model.clone();
    let mut pairs: Vec<Pair> =
        batches.into_iter().map(|batch| Pair::start(model, parent, batch)).collect::<Result<_>>()?;
    let mut report = Vec::with_capacity(model.spec().num_layers());
    for layer in 0..model.spec().num_layers() {
        let contexts =
            pairs.iter().map(|pair| pair.inputs(&repaired, parent, layer)).collect::<Result<Vec<_>>>()?;
        report.push(solve(&mut repaired, (parent, layer), &pairs, &contexts, reduce)?);
        for (pair, (student, teacher)) in pairs.iter_mut().zip(contexts) {
            pair.student = finish(&repaired, layer, &pair.student, student)?;
            pair.parent = finish(parent, layer, &pair.parent, teacher)?;
        }
    }
    *model = repaired;
    trim_buffers();
    Ok(report)
}

/// Takes back what repairs have changed, where all heads of `parent` are there again.
pub(crate) fn undo(model: &mut Model, parent: &Model) {
    for layer in 0..model.spec().num_layers() {
        let (id, bias) = model.writer(layer, WRITER);
        for id in [Some(id), bias].into_iter().flatten() {
            model.params_mut().set(id, parent.params().get(id).clone());
        }
    }
}

impl Pair {
    fn start(model: &Model, parent: &Model, batch: Batch) -> Result<Self> {
        let positions = model.positions_for(&batch, 0);
        let embed = |model: &Model| {
            let mut tape = Tape::inference(model.device(), model.params());
            Ok::<_, Error>(model.embed(&mut tape, &batch, &positions)?.tensor().clone())
        };
        let (student, parent) = (embed(model)?, embed(parent)?);
        Ok(Self { batch, positions, student, parent })
    }

    /// What both models' output projections of a layer read.
    fn inputs(&self, model: &Model, parent: &Model, layer: usize) -> Result<(Tensor, Tensor)> {
        let context = |model: &Model, x: &Tensor| {
            let mut tape = Tape::inference(model.device(), model.params());
            let (x, hooks) = (tape.constant(x.clone()), &mut Hooks::default());
            let context =
                model.attention_context(&mut tape, layer, &x, None, &self.batch, &self.positions, hooks)?;
            Ok::<_, Error>(context.tensor().clone())
        };
        Ok((context(model, &self.student)?, context(parent, &self.parent)?))
    }
}

/// Changes the output projection of a layer, if that helps.
fn solve(
    model: &mut Model,
    (parent, layer): (&Model, usize),
    pairs: &[Pair],
    contexts: &[(Tensor, Tensor)],
    reduce: &dyn Reduce,
) -> Result<LayerRefit> {
    let (id, bias) = model.writer(layer, WRITER);
    let (outputs, features) = (model.params().get(id).rows(), model.params().get(id).cols());
    let inputs = features + usize::from(bias.is_some());
    let (mut fit, mut held_out) = (Moments::new(inputs, outputs), Moments::new(inputs, outputs));
    for (i, (pair, (student, teacher))) in pairs.iter().zip(contexts).enumerate() {
        let mut missing = added(parent, layer, &pair.parent, teacher)?.to_host();
        let student_output = added(model, layer, &pair.student, student)?.to_host();
        let student = &student.to_host();
        missing.data_mut().iter_mut().zip(student_output.data()).for_each(|(m, t)| *m -= t);
        let mut x = if bias.is_some() { with_ones(student) } else { student.clone() };
        if let Some(mask) = &pair.batch.mask {
            // Padding never counts.
            x.blank_rows(mask);
            missing.blank_rows(mask);
        }
        let moments = if i % JUDGES == JUDGES - 1 || (i + 1 == pairs.len() && i < JUDGES) {
            &mut held_out
        } else {
            &mut fit
        };
        moments.add(model.device(), &x, &missing)?;
    }
    fit.reduce(reduce)?;
    held_out.reduce(reduce)?;
    let Some(found) = ridge(&fit, &held_out)? else { return Ok(LayerRefit { ridge: None, repaired: 0.0 }) };
    let rows = || found.change.data().chunks_exact(inputs);
    let device = model.device();
    model.params_mut().edit(device, id, |weight| {
        let lines = weight.data_mut().chunks_exact_mut(features).zip(rows());
        lines.for_each(|(w, change)| w.iter_mut().zip(change).for_each(|(w, c)| *w += c));
    });
    if let Some(bias) = bias {
        model.params_mut().edit(device, bias, |bias| {
            bias.data_mut().iter_mut().zip(rows()).for_each(|(b, change)| *b += change[features]);
        });
    }
    Ok(LayerRefit { ridge: Some(found.ridge), repaired: found.repaired })
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

/// What is to be repaired: the stream with what the writer makes of its inputs added, before any norm; or what
/// the writer makes alone, where a norm reads that.
fn added(model: &Model, layer: usize, x: &Tensor, context: &Tensor) -> Result<Tensor> {
    let mut tape = Tape::inference(model.device(), model.params());
    let (x, context) = (tape.constant(x.clone()), tape.constant(context.clone()));
    let written = model.project(&mut tape, layer, WRITER, context, None)?;
    if !model.adds_plainly(layer, WRITER) {
        return Ok(written.tensor().clone());
    }
    Ok(ops::add(&mut tape, &x, &written)?.tensor().clone())
}

/// The stream after the whole layer.
fn finish(model: &Model, layer: usize, x: &Tensor, context: Tensor) -> Result<Tensor> {
    let mut tape = Tape::inference(model.device(), model.params());
    let (x, context): (Var, Var) = (tape.constant(x.clone()), tape.constant(context));
    Ok(model.after_attention(&mut tape, layer, x, context, (None, None))?.tensor().clone())
}
