//! How important the units were when the first of them went.

use serde::Serialize;
use serde_json::Value;

use super::log::{Log, Scored};
use super::map::head_x;

/// Layer by layer.
#[derive(Debug, Serialize)]
pub(super) struct Importance {
    strategy: String,
    higher_keeps: bool,
    by_logarithm: bool,
    heads: Vec<Vec<Cell>>,
    channels: Vec<Spread>,
}

/// A head.
#[derive(Debug, Serialize)]
struct Cell {
    /// The share of heads with less, in hundredths; absent for a head that is not there.
    rank: Option<usize>,
    x: usize,
    title: String,
}

/// The channels of a layer, on a scale from 0 to 100.
#[derive(Debug, Serialize)]
struct Spread {
    layer: usize,
    least: f64,
    low: f64,
    median: f64,
    high: f64,
    most: f64,
    title: String,
}

/// What the first scoring found, if it has been.
pub(super) fn importance(log: &Log) -> Option<Importance> {
    let Scored { strategy, higher_keeps, importances: scored } = log.told.scored.as_ref()?;
    let numbers = |kind: &str, path: &str| -> Vec<f64> {
        let values = scored.get(kind).and_then(|layers| layers.get(path)).and_then(Value::as_array);
        values.into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let layers = &log.told.layers;
    let heads: Vec<Vec<f64>> = layers.iter().map(|l| numbers("heads", &l.start.attention)).collect();
    let channels: Vec<Vec<f64>> = layers.iter().map(|l| numbers("channels", &l.start.mlp)).collect();
    let ranks = sorted(heads.iter().flatten().copied());
    let cells = |(layer, values): (usize, &Vec<f64>)| {
        let start = &layers[layer].start;
        let cell = |head: usize| {
            let found = start.heads.binary_search(&head).ok().and_then(|at| values.get(at));
            let rank = found.map(|value| 100 * ranks.partition_point(|v| v < value) / ranks.len().max(1));
            let value = found.map_or("not there".to_owned(), |value| format!("{value:.4e}"));
            Cell {
                rank,
                x: head_x(&layers[layer], head),
                title: format!("layer {layer}, head {head}: {value}"),
            }
        };
        (0..start.num_heads).map(cell).collect()
    };
    let has_heads = heads.iter().any(|values| !values.is_empty());
    if !has_heads && channels.iter().all(Vec::is_empty) {
        return None;
    }
    Some(Importance {
        strategy: strategy.clone(),
        higher_keeps: *higher_keeps,
        by_logarithm: all_positive(&channels),
        heads: if has_heads { heads.iter().enumerate().map(cells).collect() } else { Vec::new() },
        channels: spreads(&channels),
    })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Whether but for a few of the least all are.
fn all_positive(channels: &[Vec<f64>]) -> bool {
    let most = |values: &Vec<f64>| 4 * values.iter().filter(|value| **value > 0.0).count() > 3 * values.len();
    channels.iter().filter(|values| !values.is_empty()).all(most)
}

/// By logarithms, where all are positive.
fn spreads(channels: &[Vec<f64>]) -> Vec<Spread> {
    let quartiles: Vec<(usize, [f64; 5])> = channels
        .iter()
        .enumerate()
        .filter(|(_, values)| !values.is_empty())
        .map(|(layer, values)| {
            let values = sorted(values.iter().copied());
            (
                layer,
                [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| values[(share * (values.len() - 1) as f64) as usize]),
            )
        })
        .collect();
    let positive = all_positive(channels);
    let floor =
        quartiles.iter().map(|(_, q)| q[1]).fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE) / 10.0;
    let scale = |value: f64| if positive { value.max(floor).ln() } else { value };
    let all = || quartiles.iter().flat_map(|(_, q)| q.iter().map(|v| scale(*v)));
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let place = |value: f64| {
        let share = if high > low { (scale(value) - low) / (high - low) } else { 0.5 };
        (1000.0 * share).round() / 10.0
    };
    let spread = |(layer, q): &(usize, [f64; 5])| {
        let [least, low, median, high, most] = q.map(place);
        let title = format!(
            "layer {layer}: least {:.2e}, quartiles {:.2e}, {:.2e}, {:.2e}, most {:.2e}",
            q[0], q[1], q[2], q[3], q[4]
        );
        Spread { layer: *layer, least, low, median, high, most, title }
    };
    quartiles.iter().map(spread).collect()
}
