//! Gradients of head gates: ξ_h multiplies head h's output and is 1, so ∂L/∂ξ_h says to first order what the loss owes the head.
//! One forward and backward pass with frozen weights; a number per head and sequence is all that is kept.

use upgrayedd_nn::{Gradients, Tape, Tensor};

use super::ScoreContext;
use crate::data::Pass;
use crate::heads::HeadScores;
use crate::model::Hooks;
use crate::{Error, Result};

/// Sums over the calibration sequences, each weighted by its targets; G is the gradient of a sequence's mean loss.
pub(super) struct GateSums {
    /// Mean of |G|, per layer and active head.
    pub(super) absolute: HeadScores,
    /// Mean of G².
    pub(super) squared: HeadScores,
}

/// Runs the pass over `context.data`.
pub(super) fn gate_sums(context: &ScoreContext<'_>) -> Result<GateSums> {
    let (data, range) = context.data.ok_or_else(|| Error::invalid("gate gradients need calibration data"))?;
    let mut model = context.model.clone();
    model.params.set_trainable(false);
    let heads: Vec<usize> = model.heads.counts();
    let zeros = || HeadScores { layers: heads.iter().map(|&n| vec![0.0; n]).collect() };
    let mut sums = GateSums { absolute: zeros(), squared: zeros() };
    let mut grads = Gradients::for_params(&model.params);
    let mut total = 0.0;
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    for indices in indices.chunks(context.batch_size) {
        let batch = data.batch(indices, Pass::Fixed);
        let counted = batch.counted_per_sequence();
        let mut tape = Tape::recording(model.device, &model.params, &mut grads);
        let gates: Vec<_> = heads.iter().map(|&n| tape.leaf(Tensor::full(&[batch.batch, n], 1.0))).collect();
        let loss = model.loss(&mut tape, &batch, 1.0, &mut Hooks { gates: Some(&gates), ..Hooks::default() });
        let leaves = tape.backward(loss.seeds);
        total += counted.iter().sum::<u64>() as f64;
        for (layer, gate) in gates.iter().enumerate() {
            // A head that no target sees has no gradient.
            let Some(gradient) = leaves.get(gate) else { continue };
            let rows = gradient.data().chunks_exact(heads[layer].max(1));
            for (row, &count) in rows.zip(&counted).filter(|(_, count)| **count > 0) {
                for (head, &g) in row.iter().enumerate() {
                    // The row holds the gradient of the sequence's summed loss.
                    let mean = f64::from(g) / count as f64;
                    sums.absolute.layers[layer][head] += count as f64 * mean.abs();
                    sums.squared.layers[layer][head] += count as f64 * mean * mean;
                }
            }
        }
    }
    if total == 0.0 {
        return Err(Error::invalid("the calibration data has nothing to predict: gate gradients are undefined"));
    }
    for scores in [&mut sums.absolute, &mut sums.squared] {
        scores.layers.iter_mut().flatten().for_each(|s| *s /= total);
    }
    Ok(sums)
}
