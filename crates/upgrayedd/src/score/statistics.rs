//! One pass over the calibration data for every score that wants data: gate gradients, attention entropy, and
//! what the units write.
//!
//! ξ_u multiplies unit u's output and is 1, so ∂L/∂ξ_u says to first order what the loss owes the unit.
//! Weights are frozen; a few numbers per unit are all that is kept.

use std::collections::BTreeMap;

use upgrayedd_nn::ops::EntropyProbe;
use upgrayedd_nn::{Gradients, Tape, Tensor, trim_buffers};

use super::context::ScoreContext;
use super::outputs::{Outputs, add_products};
use crate::data::Pass;
use crate::model::{Batch, Hooks, Model};
use crate::reduce::{Reduce, own, sum_counts, sum_tensor};
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
    for indices in own(context.reduce, indices.chunks(context.batch_size)) {
        gathering.add(&data.batch(indices, Pass::Fixed))?;
    }
    gathering.sum()?;
    trim_buffers();
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
    /// Whether gates of channels cut sequences into stretches: not where gradients and squares are of one thing.
    in_stretches: bool,
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
            stretched: per_unit().places().map(|place| (place, vec![0.0; 2])).collect(),
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
            signs: flat.then(|| signs(context)),
            targets: 0,
            sequences: 0,
            queries: 0,
            in_stretches: !wants(Needs::Slopes),
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
        self.outputs.check()?;
        // The same for every layer that has attention.
        self.queries += probes.iter().map(|p| p.queries).max().unwrap_or(0);
        for (layer, probe) in probes.iter().enumerate() {
            let sums = self.sums.entropy.at_mut(LayerSite::heads(layer));
            sums.iter_mut().zip(&probe.sums).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn backward(&mut self, batch: &Batch, entropy: Option<&mut Vec<EntropyProbe>>) -> Result<()> {
        let (model, curved) = (self.model, self.wants(Needs::Curvature));
        let tape = Tape::recording(model.device(), model.params(), &mut self.frozen);
        let mut tape = tape.with_segments(self.context.gradient_checkpointing || model.spill().is_some());
        let places: Vec<LayerSite> = self.sums.signed.places().collect();
        let parts = |place: &LayerSite| if self.in_stretches { stretches(*place, batch.len) } else { 1 };
        let rows = |place: &LayerSite| batch.batch * parts(place);
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
            add_products(model, &mut self.gradients, place, gradient)?;
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
        let model = self.model;
        let features = |place: LayerSite| {
            Writer::of(place.site).map_or(0, |w| model.writer_weight(place.layer, w).cols())
        };
        let hidden = model.spec().hidden_size;
        have_all(reduce, model, gradients, |_| Tensor::zeros(&[hidden, hidden]))?;
        if let Some(grams) = &mut outputs.grams {
            have_all(reduce, model, grams, |place| Tensor::zeros(&[features(place), features(place)]))?;
        }
        if let Some(norms) = &mut outputs.norms {
            have_all(reduce, model, norms, |place| vec![0.0; features(place)])?;
        }
        let Outputs { positions, comparisons, .. } = outputs;
        sum_counts(reduce, [targets, sequences, queries, positions, comparisons])?;
        sums.lists().chain(outputs.lists()).try_for_each(|list| reduce.sum(list))?;
        for sum in gradients.values_mut().chain(outputs.grams.iter_mut().flat_map(BTreeMap::values_mut)) {
            sum_tensor(reduce, model.device(), sum)?;
            *sum = model.kept(sum.clone())?;
        }
        Ok(())
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
        let Outputs { norms, cosines, powers, grams, positions, .. } = self.outputs.finish();
        (sums.positions, sums.powers) = (positions, powers);
        (sums.norms, sums.cosines) = (norms.unwrap_or_default(), cosines.unwrap_or_default());
        let inputs = grams.unwrap_or_default().into_iter();
        sums.curvature =
            inputs.filter_map(|(place, gram)| Some((place, (gram, gradients.remove(&place)?)))).collect();
        Ok(sums)
    }
}

/// Directions of the hidden states; other processes have other sequences and others of these.
fn signs(context: &ScoreContext<'_>) -> rng::Stream {
    match context.reduce.rank() {
        0 => rng::stream(context.seed, "signs"),
        rank => rng::stream(context.seed, &format!("signs {rank}")),
    }
}

/// Makes an entry for each place of which any process has one.
fn have_all<T>(
    reduce: &dyn Reduce,
    model: &Model,
    sums: &mut BTreeMap<LayerSite, T>,
    nothing: impl Fn(LayerSite) -> T,
) -> Result<()> {
    let places: Vec<LayerSite> = (0..model.spec().num_layers())
        .flat_map(|layer| Writer::ALL.into_iter().map(move |writer| LayerSite { layer, site: writer.site() }))
        .collect();
    let mut found: Vec<f64> =
        places.iter().map(|place| f64::from(u8::from(sums.contains_key(place)))).collect();
    reduce.sum(&mut found)?;
    for (place, _) in places.into_iter().zip(found).filter(|(_, found)| *found > 0.0) {
        sums.entry(place).or_insert_with(|| nothing(place));
    }
    Ok(())
}

/// Parts of a sequence with gates of their own, at most.
pub(crate) const STRETCHES: usize = 128;

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
        let (units, parts) = (gradient.cols(), gradient.rows() / batch.batch.max(1));
        let sequences = gradient.data().chunks_exact((units * parts).max(1));
        let Self { signed, absolute, squared, blocks, stretched, .. } = self;
        let [signed, absolute, squared] = [signed, absolute, squared].map(|scores| scores.at_mut(place));
        let Some(stretched) = stretched.get_mut(&place) else { return };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_of_channels_cut_sequences_into_equal_parts() {
        let of_channels = |length| stretches(LayerSite::channels(0), length);
        assert_eq!([512, 250, 127, 131, 1].map(of_channels), [128, 125, 127, 1, 1]);
        assert_eq!(stretches(LayerSite::heads(0), 512), 1);
    }

    #[test]
    fn stretches_say_how_a_place_is_shared_and_sequences_how_much_it_is() {
        let place = LayerSite::channels(0);
        let batch =
            Batch { targets: vec![1; 4], tokens: vec![1; 4].into(), batch: 1, len: 4, ..Batch::default() };
        let mut sums = Statistics { stretched: [(place, vec![0.0; 2])].into(), ..Statistics::default() };
        for scores in [&mut sums.signed, &mut sums.absolute, &mut sums.squared] {
            scores.at_mut(place).resize(2, 0.0);
        }
        // The first channel's gradients cancel over the sequence, those of the second add up.
        let gradient = Tensor::from_vec(&[4, 2], vec![4.0, 4.0, -4.0, 4.0, 4.0, 4.0, -4.0, 4.0]);
        sums.add_gradients(place, &gradient, &batch);
        sums.join_stretches();
        assert_eq!(sums.signed.at(place), [0.0, 16.0]);
        // As much for each, and together (4 targets) · (a mean of 4)².
        assert_eq!(sums.squared.at(place), [32.0, 32.0]);
    }
}
