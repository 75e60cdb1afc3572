//! One pass over the calibration data for every score that wants data: gate gradients, attention entropy, and
//! what the units write.
//!
//! ξ_u multiplies unit u's output and is 1, so ∂L/∂ξ_u says to first order what the loss owes the unit.
//! Weights are frozen; a few numbers per unit are all that is kept.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use upgrayedd_nn::ops::EntropyProbe;
use upgrayedd_nn::{Device, Gradients, Tape, Tensor, ops};

use super::context::ScoreContext;
use crate::data::Pass;
use crate::linalg::multiply;
use crate::model::{Batch, Hooks, Model};
use crate::reduce::sum_counts;
use crate::spec::Objective;
use crate::units::{LayerSite, Scores, Site, Sites};
use crate::weights::Writer;
use crate::{Error, Result, rng};

/// What a score reads; a pass computes what any of its scores wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Weights only, no pass.
    Nothing,
    /// Gradients of the gates: the pass goes backward too. For plain encoders, along random directions of the
    /// hidden states.
    Gates,
    /// Gradients of the gates in the loss itself, for plain encoders too.
    Slopes,
    /// Attention entropy.
    Entropy,
    /// Norms of what the writers read.
    Norms,
    /// Cosines between the heads' outputs.
    Cosines,
    /// Covariances of what the writers read, and of the loss's gradients in what they write.
    Curvature,
    /// Losses with one head left out at a time: passes of its own.
    Ablation,
}

/// Sums over the calibration sequences. What was not wanted is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Statistics {
    /// Mean of G over the sequences, each weighted by its targets; G is the gradient of a sequence's mean
    /// loss.
    pub(super) signed: Scores,
    /// Mean of |G|.
    pub(super) absolute: Scores,
    /// Mean of G²; of channels, as stretches of the sequences show it.
    pub(super) squared: Scores,
    /// Per layer, `H × H`: mean of Gᵢ Gⱼ, the heads' block of the empirical Fisher information.
    pub(super) blocks: Vec<Vec<f64>>,
    /// Mean attention entropy over queries, each divided by the log of its visible keys.
    pub(super) entropy: Scores,
    /// By place, for each feature that its writer reads: root of its mean square.
    pub(super) norms: BTreeMap<LayerSite, Vec<f64>>,
    /// Per layer, `H × H`: mean cosine of what two heads add to the residual stream, over up to 64 positions
    /// a sequence.
    pub(super) cosines: Vec<Vec<f64>>,
    /// Per layer and head, with the cosines: mean square of what it adds.
    pub(super) powers: Vec<Vec<f64>>,
    /// By place: Σ x xᵀ of what its writer reads, Σ g gᵀ of the summed loss's gradient in what it writes.
    pub(super) curvature: BTreeMap<LayerSite, (Tensor, Tensor)>,
    /// Positions that are not padding.
    pub(super) positions: u64,
    /// Sequences with something to predict, and how many targets they have.
    pub(super) sequences: u64,
    pub(super) targets: u64,
    /// By place, summed over its units: G², and the squares of G's parts from stretches of the sequence.
    stretched: BTreeMap<LayerSite, Vec<f64>>,
}

/// Runs the pass over `context.data`.
pub(super) fn gather(context: &ScoreContext<'_>, needs: &[Needs]) -> Result<Statistics> {
    let (data, range) = context.calibration()?;
    let context = &ScoreContext { units: context.units.leaves(), ..*context };
    let mut model = context.model.clone();
    model.params_mut().set_trainable(false);
    let mut gathering = Gathering::new(context, &model, needs);
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    for indices in indices.chunks(context.batch_size) {
        gathering.add(&data.batch(indices, Pass::Fixed))?;
    }
    gathering.sum()?;
    gathering.finish()
}

/// The pass at work: sums so far.
struct Gathering<'m> {
    context: &'m ScoreContext<'m>,
    model: &'m Model,
    needs: &'m [Needs],
    sums: Statistics,
    outputs: Outputs<'m>,
    /// By place Σ g gᵀ, where the curvature is wanted.
    gradients: BTreeMap<LayerSite, Tensor>,
    /// The weights', which are frozen: stay empty.
    frozen: Gradients,
    /// Directions of the hidden states, where a plain encoder's loss is flat.
    signs: Option<rng::Stream>,
    targets: u64,
    sequences: u64,
    queries: u64,
}

impl<'m> Gathering<'m> {
    fn new(context: &'m ScoreContext<'m>, model: &'m Model, needs: &'m [Needs]) -> Self {
        let wants = |need| needs.contains(&need);
        let heads = model.units().counts();
        let per_unit = || Scores::zeros(model.units(), context.units);
        let sums = Statistics {
            signed: per_unit(),
            absolute: per_unit(),
            squared: per_unit(),
            blocks: heads.iter().map(|&n| vec![0.0; n * n]).collect(),
            entropy: Scores::zeros(model.units(), Sites::of(Site::Head)),
            ..Statistics::default()
        };
        // A plain encoder's loss is flat where scores are taken.
        let flat = model.spec().objective == Objective::Encoder && !wants(Needs::Slopes);
        Self {
            context,
            model,
            needs,
            sums,
            outputs: Outputs::new(
                context,
                wants(Needs::Norms),
                wants(Needs::Cosines),
                wants(Needs::Curvature),
            ),
            gradients: BTreeMap::new(),
            frozen: Gradients::for_params(model.params()),
            signs: flat.then(|| rng::stream(context.seed, "signs")),
            targets: 0,
            sequences: 0,
            queries: 0,
        }
    }

    fn wants(&self, need: Needs) -> bool {
        self.needs.contains(&need)
    }

    fn goes_backward(&self) -> bool {
        [Needs::Gates, Needs::Slopes, Needs::Curvature].into_iter().any(|need| self.wants(need))
    }

    fn add(&mut self, batch: &Batch) -> Result<()> {
        self.outputs.start(batch);
        let mut probes = Vec::new();
        let entropy = self.wants(Needs::Entropy).then_some(&mut probes);
        if self.goes_backward() {
            self.backward(batch, entropy)?;
        } else {
            let mut look = |from: (usize, Writer), x: &Tensor| self.outputs.add(from, x);
            let hooks = &mut Hooks { entropy, read: Some(&mut look), ..Hooks::default() };
            if self.context.units == Sites::of(Site::Head) {
                self.model.attend(batch, hooks)?;
            } else {
                let mut tape = Tape::inference(self.model.device(), self.model.params());
                self.model.hidden(&mut tape, batch, hooks)?;
            }
        }
        self.queries += probes.first().map_or(0, |p| p.queries);
        for (layer, probe) in probes.iter().enumerate() {
            let sums = self.sums.entropy.at_mut(LayerSite::heads(layer));
            sums.iter_mut().zip(&probe.sums).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn backward(&mut self, batch: &Batch, entropy: Option<&mut Vec<EntropyProbe>>) -> Result<()> {
        let (model, curved) = (self.model, self.wants(Needs::Curvature));
        let tape = Tape::recording(model.device(), model.params(), &mut self.frozen);
        let mut tape = tape.with_segments(self.context.gradient_checkpointing);
        let places: Vec<LayerSite> = self.sums.signed.places().collect();
        let rows = |place: &LayerSite| batch.batch * stretches(*place, batch.len);
        let gate = |place: &LayerSite| (*place, tape.leaf(gates_of(model, *place, rows(place))));
        let gates: BTreeMap<_, _> = places.iter().map(gate).collect();
        // Nothing is added, but its gradient is that of what the projection writes.
        let nothing = Tensor::zeros(&[batch.batch * batch.len, model.spec().hidden_size]);
        let written = places.iter().filter_map(|place| Some((place.layer, Writer::of(place.site)?)));
        let offsets: BTreeMap<_, _> =
            written.filter(|_| curved).map(|from| (from, tape.leaf(nothing.clone()))).collect();
        let outputs = &mut self.outputs;
        let mut look = |from: (usize, Writer), x: &Tensor| outputs.add(from, x);
        let hooks = &mut Hooks {
            entropy,
            read: Some(&mut look),
            gates: Some(&gates),
            offsets: Some(&offsets),
            ..Hooks::default()
        };
        let seeds = match &mut self.signs {
            Some(stream) => model.random_signs(&mut tape, batch, stream, hooks)?,
            None => model.loss(&mut tape, batch, 1.0, hooks)?.seeds,
        };
        let leaves = tape.backward(seeds)?;
        for ((layer, writer), offset) in offsets {
            let Some(gradient) = leaves.get(&offset) else { continue };
            let place = LayerSite { layer, site: writer.site() };
            add_products(model.device(), &mut self.gradients, place, gradient);
        }
        self.targets += batch.counted();
        self.sequences += batch.counted_per_sequence().iter().filter(|count| **count > 0).count() as u64;
        for (place, gate) in &gates {
            // A head that no target sees has no gradient.
            let Some(gradient) = leaves.get(gate) else { continue };
            self.sums.add_gradients(*place, gradient, batch);
        }
        Ok(())
    }

    /// Over all processes.
    fn sum(&mut self) -> Result<()> {
        let reduce = self.context.reduce;
        let Self { targets, sequences, queries, outputs, sums, gradients, .. } = self;
        let Outputs { positions, comparisons, .. } = outputs;
        sum_counts(reduce, [targets, sequences, queries, positions, comparisons])?;
        sums.lists().chain(outputs.lists()).try_for_each(|list| reduce.sum(list))?;
        gradients
            .values_mut()
            .chain(outputs.grams.iter_mut().flat_map(BTreeMap::values_mut))
            .try_for_each(|sum| reduce.sum_tensor(sum))
    }

    fn finish(self) -> Result<Statistics> {
        if self.goes_backward() && self.targets == 0 {
            return Err(Error::data(
                "the calibration data has nothing to predict: gate gradients are undefined",
            ));
        }
        if self.wants(Needs::Entropy) && self.queries == 0 {
            return Err(Error::data(
                "the calibration data has no position that sees more than one token: attention entropy is undefined",
            ));
        }
        let mut sums = self.sums;
        (sums.sequences, sums.targets) = (self.sequences, self.targets);
        sums.join_stretches();
        let per_target = 1.0 / self.targets.max(1) as f64;
        for sums in [&mut sums.signed, &mut sums.absolute, &mut sums.squared] {
            *sums = sums.map(|sum| sum * per_target);
        }
        sums.blocks.iter_mut().flatten().for_each(|b| *b /= self.targets.max(1) as f64);
        let per_query = 1.0 / self.queries.max(1) as f64;
        sums.entropy = sums.entropy.map(|sum| sum * per_query);
        let mut gradients = self.gradients;
        let inputs = self.outputs.finish(&mut sums).into_iter();
        sums.curvature =
            inputs.filter_map(|(place, gram)| Some((place, (gram, gradients.remove(&place)?)))).collect();
        Ok(sums)
    }
}

/// Parts of a sequence with gates of their own, at most.
const STRETCHES: usize = 128;

/// Into how many equal parts the gates of a place cut a sequence. There are far more channels than sequences, and a
/// channel's gradients in different parts have little to do with each other: their squares are that many more
/// looks at the same number.
fn stretches(place: LayerSite, length: usize) -> usize {
    match place.site {
        Site::Channel => (1..=STRETCHES).rev().find(|n| length.is_multiple_of(*n)).unwrap_or(1),
        _ => 1,
    }
}

/// A place's own gates (1 where it has none), a row for each stretch of each sequence.
fn gates_of(model: &Model, place: LayerSite, rows: usize) -> Tensor {
    let units = model.units().layers()[place.layer].count(place.site);
    match model.gates(place) {
        Some(gates) => Tensor::from_vec(&[rows, units], gates.data().repeat(rows)),
        None => Tensor::full(&[rows, units], 1.0),
    }
}

impl Statistics {
    /// All the sums.
    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        let Self { signed, absolute, squared, entropy, blocks, stretched, .. } = self;
        let scores = [signed, absolute, squared, entropy].into_iter().flat_map(Scores::lists_mut);
        scores.chain(blocks).chain(stretched.values_mut())
    }

    /// Adds what one batch's gradient of the summed loss says, `(batch · stretches, U)`.
    fn add_gradients(&mut self, place: LayerSite, gradient: &Tensor, batch: &Batch) {
        let gradient = gradient.to_host();
        let (units, parts) = (gradient.cols(), stretches(place, batch.len));
        let sequences = gradient.data().chunks_exact((units * parts).max(1));
        let Self { signed, absolute, squared, blocks, stretched, .. } = self;
        let [signed, absolute, squared] = [signed, absolute, squared].map(|scores| scores.at_mut(place));
        let stretched = stretched.entry(place).or_insert_with(|| vec![0.0; 2]);
        for (rows, count) in sequences.zip(batch.counted_per_sequence()).filter(|(_, count)| *count > 0) {
            let count = count as f64;
            for unit in 0..units {
                let of_unit = rows[unit..].iter().step_by(units).map(|g| f64::from(*g) / count);
                let (mut mean, mut square) = (0.0, 0.0);
                of_unit.for_each(|g| (mean, square) = (mean + g, square + g * g));
                signed[unit] += count * mean;
                absolute[unit] += count * mean.abs();
                squared[unit] += count * square;
                stretched[0] += count * mean * mean;
                stretched[1] += count * square;
                if place.site != Site::Head {
                    continue;
                }
                let block = &mut blocks[place.layer][unit * units..(unit + 1) * units];
                block.iter_mut().zip(rows).for_each(|(sum, &other)| *sum += mean * f64::from(other));
            }
        }
    }

    /// Times a mean of G²: nats per target that the loss rises by without the unit, ½ T G² to second order with T
    /// targets a sequence.
    pub(super) fn nats_per_square(&self) -> f64 {
        0.5 * self.targets as f64 / self.sequences.max(1) as f64
    }

    /// Brings the squares of stretches to the scale of whole sequences': both have the same sum over a place.
    fn join_stretches(&mut self) {
        for (place, sums) in &self.stretched {
            let factor = if sums[1] > 0.0 { sums[0] / sums[1] } else { 1.0 };
            self.squared.at_mut(*place).iter_mut().for_each(|square| *square *= factor);
        }
    }
}

/// Adds `xᵀ x` to a place's sum, which is made when its first rows come by.
fn add_products(device: Device, sums: &mut BTreeMap<LayerSite, Tensor>, place: LayerSite, x: &Tensor) {
    let products = ops::gram(device, &device.upload(x.clone())).to_host();
    match sums.get_mut(&place) {
        Some(sum) => sum.data_mut().iter_mut().zip(products.data()).for_each(|(s, p)| *s += p),
        None => _ = sums.insert(place, products),
    }
}

/// What the units write, batch by batch.
struct Outputs<'m> {
    model: &'m Model,
    units: Sites,
    norms: Option<BTreeMap<LayerSite, Vec<f64>>>,
    cosines: Option<Vec<Vec<f64>>>,
    powers: Vec<Vec<f64>>,
    /// By place Σ x xᵀ of what its writer reads.
    grams: Option<BTreeMap<LayerSite, Tensor>>,
    mask: Option<Vec<u8>>,
    /// This batch's rows that are not padding, and those of them at which heads are compared.
    rows: Vec<usize>,
    compared: Vec<usize>,
    /// How many there were of both in all.
    positions: u64,
    comparisons: u64,
}

/// Positions of a sequence at which the heads' outputs are compared at most, evenly spread.
const COMPARED: usize = 64;
/// Rows whose heads' outputs are in memory at a time.
const ROWS: usize = 128;

impl<'m> Outputs<'m> {
    fn new(context: &ScoreContext<'m>, norms: bool, cosines: bool, grams: bool) -> Self {
        let model = context.model;
        let heads = model.units().counts();
        Self {
            model,
            units: context.units,
            norms: norms.then(BTreeMap::new),
            cosines: cosines.then(|| heads.iter().map(|n| vec![0.0; n * n]).collect()),
            grams: grams.then(BTreeMap::new),
            powers: if cosines { heads.iter().map(|&n| vec![0.0; n]).collect() } else { Vec::new() },
            mask: None,
            rows: Vec::new(),
            compared: Vec::new(),
            positions: 0,
            comparisons: 0,
        }
    }

    fn start(&mut self, batch: &Batch) {
        self.mask.clone_from(&batch.mask);
        let counts = |row: &usize| batch.mask.as_ref().is_none_or(|m| m[*row] != 0);
        self.rows = (0..batch.batch * batch.len).filter(counts).collect();
        let sequences = self.rows.chunk_by(|a, b| a / batch.len == b / batch.len);
        self.compared =
            sequences.flat_map(|rows| rows.iter().step_by(rows.len().div_ceil(COMPARED))).copied().collect();
        self.positions += self.rows.len() as u64;
        self.comparisons += self.compared.len() as u64;
    }

    fn add(&mut self, (layer, writer): (usize, Writer), read: &Tensor) -> upgrayedd_nn::Result<()> {
        let place = LayerSite { layer, site: writer.site() };
        let nothing = self.grams.is_none() && self.norms.is_none() && self.cosines.is_none();
        if nothing || !self.units.contains(place.site) {
            return Ok(());
        }
        let context = &read.to_host();
        if let Some(grams) = &mut self.grams {
            let mut x = context.clone();
            if let Some(mask) = &self.mask {
                x.blank_rows(mask);
            }
            add_products(self.model.device(), grams, place, &x);
        }
        let d = self.model.spec().head_dim;
        if let Some(norms) = &mut self.norms {
            let norms = norms.entry(place).or_insert_with(|| vec![0.0; context.cols()]);
            // Each task has features of its own, so that no sum depends on how many threads there are.
            norms.par_chunks_mut(d).enumerate().for_each(|(part, sums)| {
                for row in &self.rows {
                    let values = &context.data()[row * context.cols() + part * d..][..sums.len()];
                    sums.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
                }
            });
        }
        if let Some(cosines) = self.cosines.as_mut().filter(|_| writer == Writer::Attention) {
            let weight = &self.model.writer_weight(layer, Writer::Attention).to_host();
            let all: Vec<usize> = (0..weight.rows()).collect();
            let weights: Vec<Tensor> =
                (0..weight.cols() / d).map(|h| block(weight, &all, h * d..(h + 1) * d)).collect();
            for rows in self.compared.chunks(ROWS) {
                let output = |(h, weight): (usize, &Tensor)| {
                    multiply(self.model.device(), &block(context, rows, h * d..(h + 1) * d), weight)
                };
                let outputs: Vec<Tensor> =
                    weights.iter().enumerate().map(output).collect::<upgrayedd_nn::Result<_>>()?;
                add_cosines(&outputs, &mut cosines[layer], &mut self.powers[layer]);
            }
        }
        Ok(())
    }

    /// All the sums but those of products.
    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        self.norms
            .iter_mut()
            .flat_map(BTreeMap::values_mut)
            .chain(self.cosines.iter_mut().flatten())
            .chain(&mut self.powers)
    }

    /// Leaves the means in `into` and returns the Σ x xᵀ.
    fn finish(self, into: &mut Statistics) -> BTreeMap<LayerSite, Tensor> {
        into.positions = self.positions;
        let mean = |mut sums: Vec<Vec<f64>>, n: u64| {
            sums.iter_mut().flatten().for_each(|s| *s /= n.max(1) as f64);
            sums
        };
        into.norms = self.norms.unwrap_or_default();
        let positions = self.positions.max(1) as f64;
        into.norms.values_mut().flatten().for_each(|s| *s = (*s / positions).sqrt());
        into.cosines = mean(self.cosines.unwrap_or_default(), self.comparisons);
        into.powers = mean(self.powers, self.comparisons);
        self.grams.unwrap_or_default()
    }
}

/// Some rows and columns of a matrix.
fn block(matrix: &Tensor, rows: &[usize], columns: Range<usize>) -> Tensor {
    let mut out = Tensor::zeros(&[rows.len(), columns.len()]);
    for (out, row) in out.data_mut().chunks_exact_mut(columns.len().max(1)).zip(rows) {
        out.copy_from_slice(&matrix.data()[row * matrix.cols()..][columns.clone()]);
    }
    out
}

/// Adds the cosines of the heads' outputs at every row, `(rows, d)` a head, and their squares' sums.
fn add_cosines(outputs: &[Tensor], cosines: &mut [f64], powers: &mut [f64]) {
    let heads = outputs.len();
    let rows = outputs.first().map_or(0, Tensor::rows);
    let products = |row: usize| -> Vec<f64> {
        let of = |h: usize| &outputs[h].data()[row * outputs[h].cols()..][..outputs[h].cols()];
        let mut inner = vec![0.0; heads * heads];
        for a in 0..heads {
            for b in a..heads {
                inner[a * heads + b] = f64::from(dot(of(a), of(b)));
            }
        }
        inner
    };
    for inner in (0..rows).into_par_iter().map(products).collect::<Vec<_>>() {
        powers.iter_mut().enumerate().for_each(|(h, sum)| *sum += inner[h * (heads + 1)]);
        for (i, sum) in cosines.iter_mut().enumerate() {
            let (a, b) = ((i / heads).min(i % heads), (i / heads).max(i % heads));
            let norm = inner[a * (heads + 1)].sqrt() * inner[b * (heads + 1)].sqrt();
            *sum += if norm > 0.0 { (inner[a * heads + b] / norm).clamp(-1.0, 1.0) } else { 0.0 };
        }
    }
}

/// Sixteen sums side by side, so that the compiler can use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a, b) = (a.chunks(LANES), b.chunks(LANES));
    a.zip(b).for_each(|(a, b)| sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b));
    sums.iter().sum()
}
