//! Least-squares repair without training: after pruning, the projections through which the remaining units
//! write are changed such that the residual stream is again as close as they can bring it to that of the parent
//! (the model before pruning).
//!
//! Writer by writer, student and parent side by side: with X what the student's writer reads and R what
//! the stream then lacks, W' = W + argmin |R − X ΔWᵀ|² + λ|ΔW|². Where the projection has a bias, X has a
//! column of ones for it. Because R is a difference of streams and not of one layer's outputs, a layer
//! repairs what the layers below could not. The ridge λ is chosen on sequences that the solution has not
//! seen, and a solution that does not help there is not used.

use std::collections::BTreeMap;
use std::sync::Arc;

use upgrayedd_nn::{Tape, Tensor, Var, ops, trim_buffers};

use crate::data::{Dataset, Pass};
use crate::linalg::{Moments, ridge};
use crate::model::{Batch, Hooks, LayerVars, Model};
use crate::record::LayerRefit;
use crate::reduce::{Reduce, own};
use crate::weights::Writer;
use crate::{Error, Result};

/// Every fifth batch only judges.
const JUDGES: usize = 5;

/// One batch on its way through both models.
struct Pair {
    batch: Batch,
    /// Whether it judges the solution.
    judges: bool,
    positions: Arc<Vec<u32>>,
    student: Tensor,
    parent: Tensor,
}

/// What a refit came to: of each writer that it repaired, layer by layer.
pub type Repairs = BTreeMap<Writer, Vec<LayerRefit>>;

/// The writers whose units are not those of the parent.
fn writers(model: &Model, parent: &Model) -> Vec<Writer> {
    let differs = |writer: &Writer| {
        let units = |model: &Model| -> Vec<Vec<usize>> {
            model.units().layers().iter().map(|layer| layer.units(writer.site())).collect()
        };
        units(model) != units(parent)
    };
    Writer::ALL.into_iter().filter(differs).collect()
}

/// Sequences `indices` of `data` in batches of at most `batch_size`, and in at least five if there are as
/// many sequences.
pub fn batches(data: &Dataset, indices: &[usize], batch_size: usize) -> Vec<Batch> {
    let size = batch_size.min(indices.len().div_ceil(JUDGES)).max(1);
    indices.chunks(size).map(|indices| data.batch(indices, Pass::Fixed)).collect()
}

/// Repairs the writers of `model` that have lost units towards `parent` on `batches`, whose targets are not looked
/// at; the processes of `reduce` share them.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] for fewer than two batches, one to fit on and one to judge by, and for a
/// parent with other layers or another width; [`Error::Interrupted`] if the work is stopped; and what
/// `reduce` returns. Nothing changes then.
pub fn refit(model: &mut Model, parent: &Model, batches: Vec<Batch>, reduce: &dyn Reduce) -> Result<Repairs> {
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
    let count = batches.len();
    let judges = (0..count).map(|i| i % JUDGES == JUDGES - 1 || (i + 1 == count && i < JUDGES));
    let mut pairs: Vec<Pair> = own(reduce, batches.into_iter().zip(judges))
        .map(|(batch, judges)| Pair::start(model, parent, batch, judges))
        .collect::<Result<_>>()?;
    let writers = writers(model, parent);
    let mut repairs: Repairs = writers.iter().map(|writer| (*writer, Vec::new())).collect();
    for layer in 0..model.spec().num_layers() {
        let contexts =
            pairs.iter().map(|pair| pair.contexts(&repaired, parent, layer)).collect::<Result<Vec<_>>>()?;
        if let Some(report) = repairs.get_mut(&Writer::Attention) {
            report.push(solve_attention(&mut repaired, (parent, layer), &pairs, &contexts, reduce)?);
        }
        let mut reads = Vec::with_capacity(pairs.len());
        for (pair, (student, teacher)) in pairs.iter_mut().zip(contexts) {
            let student = after_attention(&repaired, layer, &pair.student, &student)?;
            let teacher = after_attention(parent, layer, &pair.parent, &teacher)?;
            (pair.student, pair.parent) = (student.0, teacher.0);
            reads.push((student.1, teacher.1));
        }
        if let Some(report) = repairs.get_mut(&Writer::Mlp) {
            report.push(solve_mlp(&mut repaired, (parent, layer), &pairs, &reads, reduce)?);
        }
        for (pair, (student, teacher)) in pairs.iter_mut().zip(reads) {
            let hidden = hidden(&repaired, layer, &student)?;
            pair.student = written(&repaired, (layer, Writer::Mlp), &pair.student, &hidden)?;
            let hidden = self::hidden(parent, layer, &teacher)?;
            pair.parent = written(parent, (layer, Writer::Mlp), &pair.parent, &hidden)?;
        }
        repaired.let_go(layer);
        parent.let_go(layer);
        if model.spill().is_some() {
            trim_buffers();
        }
    }
    *model = repaired;
    trim_buffers();
    Ok(repairs)
}

/// Takes back what repairs have changed of the writers that have all units of `parent` again.
pub(crate) fn undo(model: &mut Model, parent: &Model) {
    let missing = writers(model, parent);
    for writer in Writer::ALL.into_iter().filter(|writer| !missing.contains(writer)) {
        for layer in 0..model.spec().num_layers() {
            let (id, bias) = model.writer(layer, writer);
            for id in [Some(id), bias].into_iter().flatten() {
                model.params_mut().set(id, parent.params().get(id).clone());
            }
        }
    }
}

impl Pair {
    fn start(model: &Model, parent: &Model, batch: Batch, judges: bool) -> Result<Self> {
        let positions = model.positions_for(&batch, 0);
        let embed = |model: &Model| {
            let mut tape = Tape::inference(model.device(), model.params());
            kept(model, &model.embed(&mut tape, &batch, &positions)?)
        };
        let (student, parent) = (embed(model)?, embed(parent)?);
        Ok(Self { batch, judges, positions, student, parent })
    }

    /// What both models' attention makes in a layer, for its writer to read.
    fn contexts(&self, model: &Model, parent: &Model, layer: usize) -> Result<(Tensor, Tensor)> {
        let context = |model: &Model, x: &Tensor| {
            let mut tape = Tape::inference(model.device(), model.params());
            let (x, hooks) = (tape.constant(x.in_memory()), &mut Hooks::default());
            let context =
                model.attention_context(&mut tape, layer, &x, None, &self.batch, &self.positions, hooks)?;
            kept(model, &context)
        };
        Ok((context(model, &self.student)?, context(parent, &self.parent)?))
    }
}

/// Sums for the solution and for the judgement of it.
struct Sums {
    fit: Moments,
    held_out: Moments,
}

impl Sums {
    fn new(model: &Model, (layer, writer): (usize, Writer)) -> Self {
        let (id, bias) = model.writer(layer, writer);
        let (outputs, features) = (model.params().get(id).rows(), model.params().get(id).cols());
        let inputs = features + usize::from(bias.is_some());
        Self { fit: Moments::new(inputs, outputs), held_out: Moments::new(inputs, outputs) }
    }

    /// Adds what the writer reads in a batch, and what is missing after it.
    fn add(
        &mut self,
        model: &Model,
        from: (usize, Writer),
        pair: &Pair,
        read: &Tensor,
        mut missing: Tensor,
    ) -> Result<()> {
        let bias = model.writer(from.0, from.1).1;
        let mut x = if bias.is_some() { with_ones(read) } else { read.clone() };
        if let Some(mask) = &pair.batch.mask {
            // Padding never counts.
            x.blank_rows(mask);
            missing.blank_rows(mask);
        }
        let moments = if pair.judges { &mut self.held_out } else { &mut self.fit };
        Ok(moments.add(model.device(), &x, &missing)?)
    }

    /// Changes the writer, if that helps.
    fn solve(
        mut self,
        model: &mut Model,
        (layer, writer): (usize, Writer),
        reduce: &dyn Reduce,
    ) -> Result<LayerRefit> {
        self.fit.reduce(reduce)?;
        self.held_out.reduce(reduce)?;
        // A block that has gone leaves nothing to change where it has no bias.
        let found = if self.fit.inputs() > 0 { ridge(&self.fit, &self.held_out)? } else { None };
        let Some(found) = found else {
            return Ok(LayerRefit { ridge: None, repaired: 0.0 });
        };
        let (id, bias) = model.writer(layer, writer);
        let features = model.params().get(id).cols();
        let rows = || found.change.data().chunks_exact(found.change.cols());
        let device = model.device();
        model.params_mut().edit(device, id, |weight| {
            let lines = weight.data_mut().chunks_exact_mut(features.max(1)).zip(rows());
            lines.for_each(|(w, change)| w.iter_mut().zip(change).for_each(|(w, c)| *w += c));
        });
        if let Some(bias) = bias {
            model.params_mut().edit(device, bias, |bias| {
                bias.data_mut().iter_mut().zip(rows()).for_each(|(b, change)| *b += change[features]);
            });
        }
        model.put_away(&[id])?;
        Ok(LayerRefit { ridge: Some(found.ridge), repaired: found.repaired })
    }
}

/// What the student's stream lacks of its parent's, given what both read.
fn missing(
    from: (usize, Writer),
    student: (&Model, &Tensor, &Tensor),
    parent: (&Model, &Tensor, &Tensor),
) -> Result<Tensor> {
    let of =
        |(model, x, read): (&Model, &Tensor, &Tensor)| Ok::<_, Error>(added(model, from, x, read)?.to_host());
    let (mut missing, there) = (of(parent)?, of(student)?);
    missing.data_mut().iter_mut().zip(there.data()).for_each(|(m, t)| *m -= t);
    Ok(missing)
}

fn solve_attention(
    model: &mut Model,
    (parent, layer): (&Model, usize),
    pairs: &[Pair],
    contexts: &[(Tensor, Tensor)],
    reduce: &dyn Reduce,
) -> Result<LayerRefit> {
    let from = (layer, Writer::Attention);
    let mut sums = Sums::new(model, from);
    for (pair, (student, teacher)) in pairs.iter().zip(contexts) {
        let lacks = missing(from, (model, &pair.student, student), (parent, &pair.parent, teacher))?;
        sums.add(model, from, pair, &on_host(student), lacks)?;
    }
    sums.solve(model, from, reduce)
}

/// Hidden layers are wide: each is made when it is needed, and made again afterwards.
fn solve_mlp(
    model: &mut Model,
    (parent, layer): (&Model, usize),
    pairs: &[Pair],
    reads: &[(Tensor, Tensor)],
    reduce: &dyn Reduce,
) -> Result<LayerRefit> {
    let from = (layer, Writer::Mlp);
    let mut sums = Sums::new(model, from);
    for (pair, (student, teacher)) in pairs.iter().zip(reads) {
        let (student, teacher) = (hidden(model, layer, student)?, hidden(parent, layer, teacher)?);
        let lacks = missing(from, (model, &pair.student, &student), (parent, &pair.parent, &teacher))?;
        sums.add(model, from, pair, &on_host(&student), lacks)?;
    }
    sums.solve(model, from, reduce)
}

/// `x (N, inputs)` with a column of ones at its end.
fn with_ones(x: &Tensor) -> Tensor {
    let mut wider = Tensor::full(&[x.rows(), x.cols() + 1], 1.0);
    let rows = x.data().chunks_exact(x.cols().max(1));
    for (wider, row) in wider.data_mut().chunks_exact_mut(x.cols() + 1).zip(rows) {
        wider[..row.len()].copy_from_slice(row);
    }
    wider
}

/// What is to be repaired: the stream with what the writer makes of its inputs added, before any norm; or what
/// the writer makes alone, where a norm reads that.
fn added(model: &Model, (layer, writer): (usize, Writer), x: &Tensor, read: &Tensor) -> Result<Tensor> {
    let mut tape = Tape::inference(model.device(), model.params());
    let (x, read) = (tape.constant(x.in_memory()), tape.constant(read.in_memory()));
    let written = model.project(&mut tape, layer, writer, read, None)?;
    if !model.adds_plainly(layer, writer) {
        return Ok(written.tensor().clone());
    }
    Ok(ops::add(&mut tape, &x, &written)?.tensor().clone())
}

/// In host memory, wherever it is kept.
fn on_host(x: &Tensor) -> Tensor {
    x.in_memory().to_host()
}

/// What a batch keeps from layer to layer.
fn kept(model: &Model, x: &Var) -> Result<Tensor> {
    model.kept(x.tensor().clone())
}

/// The stream after a layer's attention, and what its MLP reads.
fn after_attention(model: &Model, layer: usize, x: &Tensor, context: &Tensor) -> Result<(Tensor, Tensor)> {
    let mut tape = Tape::inference(model.device(), model.params());
    let (x, context): (Var, Var) = (tape.constant(x.in_memory()), tape.constant(context.in_memory()));
    let (x, read) = model.after_attention(&mut tape, layer, x, context, &LayerVars::default())?;
    Ok((kept(model, &x)?, kept(model, &read)?))
}

/// What a layer's MLP makes of what it reads, for its writer to read.
fn hidden(model: &Model, layer: usize, read: &Tensor) -> Result<Tensor> {
    let mut tape = Tape::inference(model.device(), model.params());
    let read = tape.constant(read.in_memory());
    Ok(model.mlp_hidden(&mut tape, layer, &read, None, &mut Hooks::default())?.tensor().clone())
}

/// The stream after a writer.
fn written(model: &Model, (layer, writer): (usize, Writer), x: &Tensor, read: &Tensor) -> Result<Tensor> {
    let mut tape = Tape::inference(model.device(), model.params());
    let (x, read) = (tape.constant(x.in_memory()), tape.constant(read.in_memory()));
    kept(model, &model.write(&mut tape, layer, writer, &x, read, &LayerVars::default())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataOptions;
    use crate::reduce::Alone;
    use crate::units::{LayerSite, Selection};
    use crate::{builtin, surgery};

    #[test]
    fn a_writer_that_has_its_units_again_is_as_it_was() {
        let parent = builtin::model().expect("it is there");
        let options = DataOptions { sequence_length: 32, ..DataOptions::default() };
        let tokenizer = parent.tokenizer().expect("it has one");
        let data = Dataset::from_documents(builtin::stories(1, 20), &parent, &tokenizer, &options);
        let data = data.expect("there is text");
        let mut model = parent.clone();
        let channels = Selection::from([(LayerSite::channels(1), (0..200).collect())]);
        let heads = Selection::from([(LayerSite::heads(1), vec![0, 1, 2])]);
        for gone in [&channels, &heads] {
            surgery::remove(&mut model, None, gone, 1, None).expect("they are there");
        }
        let indices: Vec<usize> = (0..12).collect();
        refit(&mut model, &parent, batches(&data, &indices, 2), &Alone).expect("not stopped");
        surgery::restore(&mut model, None, &channels, 1.0).expect("they are archived");
        let same = |model: &Model, writer| model.writer_weight(1, writer) == parent.writer_weight(1, writer);
        assert!(!same(&model, Writer::Mlp), "the repair for missing channels is still in");
        undo(&mut model, &parent);
        assert!(same(&model, Writer::Mlp) && !same(&model, Writer::Attention));
    }
}
