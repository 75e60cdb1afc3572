//! Attention entropy: how evenly a head spreads its attention, normalised by the log of the visible keys.

use upgrayedd_nn::Tape;

use super::{Score, ScoreContext};
use crate::data::Pass;
use crate::heads::HeadScores;
use crate::model::Hooks;
use crate::{Error, Result};

pub(super) static SCORE: Score = Score {
    name: "entropy",
    summary: "mean attention entropy divided by the log of the visible keys, in [0, 1]; padding never counts",
    higher_keeps: false,
    needs_data: true,
    compute,
};

fn compute(context: &ScoreContext<'_>) -> Result<HeadScores> {
    let (data, range) = context.data.ok_or_else(|| Error::invalid("attention entropy needs calibration data"))?;
    let indices: Vec<usize> = range.clone().take(context.samples).collect();
    let mut sums: Vec<Vec<f64>> = context.model.heads.layers().iter().map(|l| vec![0.0; l.active().len()]).collect();
    let mut queries = 0;
    for indices in indices.chunks(context.batch_size) {
        let batch = data.batch(indices, Pass::Fixed);
        let mut probes = Vec::new();
        let mut tape = Tape::inference(context.model.device, &context.model.params);
        context.model.hidden(&mut tape, &batch, &mut Hooks { entropy: Some(&mut probes), ..Hooks::default() });
        queries += probes.first().map_or(0, |p| p.queries);
        for (sums, probe) in sums.iter_mut().zip(&probes) {
            sums.iter_mut().zip(&probe.sums).for_each(|(sum, value)| *sum += value);
        }
    }
    if queries == 0 {
        return Err(Error::invalid(
            "the calibration data has no position that sees more than one token: attention entropy is undefined",
        ));
    }
    Ok(HeadScores { layers: sums.into_iter().map(|l| l.into_iter().map(|s| s / queries as f64).collect()).collect() })
}
