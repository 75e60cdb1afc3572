//! Every layer's heads and channels, as the geometry of a drawing.

use serde::Serialize;

use super::fate::{Fate, Layer};
use super::show::grouped;

/// Where the first head is, how far the next, and how much farther where another key/value head is read.
const HEADS_AT: usize = 40;
const HEAD: usize = 17;
const GROUP: usize = 4;
/// How wide all channels of a layer are.
const CHANNELS: f64 = 240.0;

/// The drawing.
#[derive(Debug, Clone, Serialize)]
pub(super) struct UnitMap {
    width: usize,
    height: usize,
    heads_width: usize,
    /// Where the channels begin; absent where none of them has gone.
    channels_at: Option<usize>,
    has_absent: bool,
    rows: Vec<Row>,
}

/// A layer.
#[derive(Debug, Clone, Serialize)]
struct Row {
    heads: Vec<Cell>,
    channels: Vec<Part>,
    left: String,
}

/// A head.
#[derive(Debug, Clone, Serialize)]
struct Cell {
    x: usize,
    kind: &'static str,
    mark: String,
    title: String,
}

/// Channels with one fate.
#[derive(Debug, Clone, Serialize)]
struct Part {
    x: f64,
    width: f64,
    kind: &'static str,
    title: String,
}

/// What is left of the layers.
pub(super) fn map(layers: &[Layer]) -> UnitMap {
    let heads = layers.iter().map(|layer| head_x(layer, layer.start.num_heads)).max().unwrap_or(HEADS_AT);
    let narrower = layers.iter().any(|layer| layer.channels().keys().any(|fate| *fate != Fate::Kept));
    let channels_at = narrower.then_some(heads + 20);
    UnitMap {
        width: channels_at.map_or(heads, |at| at + CHANNELS as usize + 2),
        height: 18 * layers.len() + 18,
        heads_width: heads,
        channels_at,
        has_absent: layers
            .iter()
            .any(|l| l.heads().contains(&Fate::Absent) || l.channels().contains_key(&Fate::Absent)),
        rows: layers.iter().enumerate().map(|(index, layer)| row(index, layer, channels_at)).collect(),
    }
}

/// Where a head of a layer is drawn.
pub(super) fn head_x(layer: &Layer, head: usize) -> usize {
    let readers = (layer.start.num_heads / layer.start.num_kv_heads.max(1)).max(1);
    HEADS_AT + HEAD * head + if readers > 1 { GROUP * (head / readers) } else { 0 }
}

/// A kind for the style, a mark, and the fate in words.
fn said(fate: Fate) -> (&'static str, String, String) {
    match fate {
        Fate::Absent => ("absent", String::new(), "gone before the run".to_owned()),
        Fate::Kept => ("kept", String::new(), "kept".to_owned()),
        Fate::Gone(cycle) => ("gone", cycle.to_string(), format!("pruned in cycle {cycle}")),
        Fate::Back(cycle) => ("back", cycle.to_string(), format!("grown back in cycle {cycle}")),
    }
}

fn row(index: usize, layer: &Layer, channels_at: Option<usize>) -> Row {
    let heads = layer.heads();
    let cell = |(head, fate): (usize, &Fate)| {
        let (kind, mark, what) = said(*fate);
        Cell { x: head_x(layer, head), kind, mark, title: format!("layer {index}, head {head}: {what}") }
    };
    let there = |fate: &Fate| matches!(fate, Fate::Kept | Fate::Back(_));
    let counts = layer.channels();
    let left: usize = counts.iter().filter(|(fate, _)| there(fate)).map(|(_, count)| count).sum();
    Row {
        left: format!(
            "{} of {} heads, {} of {} channels",
            heads.iter().filter(|fate| there(fate)).count(),
            heads.len(),
            grouped(left as u64),
            grouped(layer.start.num_channels as u64)
        ),
        heads: heads.iter().enumerate().map(cell).collect(),
        channels: channels_at.map_or(Vec::new(), |at| parts(index, layer, at)),
    }
}

/// What is there to the left, what has gone to the right.
fn parts(index: usize, layer: &Layer, at: usize) -> Vec<Part> {
    let mut counts: Vec<(Fate, usize)> = layer.channels().into_iter().collect();
    counts.sort_by_key(|(fate, _)| match fate {
        Fate::Kept => (0, 0),
        Fate::Back(cycle) => (1, *cycle),
        Fate::Gone(cycle) => (2, usize::MAX - cycle),
        Fate::Absent => (3, 0),
    });
    let tenths = |value: f64| (10.0 * value).round() / 10.0;
    let total = layer.start.num_channels;
    let mut before = 0;
    let part = |(fate, count): (Fate, usize)| {
        let (kind, _, what) = said(fate);
        let place = |channels: usize| tenths(CHANNELS * channels as f64 / total.max(1) as f64);
        let (begins, ends) = (place(before), place(before + count));
        before += count;
        let title =
            format!("layer {index}: {} of {} channels {what}", grouped(count as u64), grouped(total as u64));
        Part { x: at as f64 + begins, width: tenths(ends - begins), kind, title }
    };
    counts.into_iter().map(part).collect()
}
