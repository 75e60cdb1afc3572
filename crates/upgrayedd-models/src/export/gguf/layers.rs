//! Heads and channels of layers as an architecture has them.

use crate::model::Model;
use crate::units::{LayerUnits, Site};
use crate::weights::{Kind, Part};

/// The heads of a layer as they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// The model's layer.
    pub(super) source: usize,
    /// Positions among the layer's query heads; none for a head of zeros.
    pub(super) queries: Vec<Option<usize>>,
    /// Positions among its key/value heads; some may be there several times, and none is one of zeros.
    pub(super) keys: Vec<Option<usize>>,
    /// Positions among its channels; none for a channel of zeros.
    pub(super) channels: Vec<Option<usize>>,
}

/// Channels of an MLP that is there only because llama.cpp passes over the rest of a layer without one: a whole block
/// of numbers in 8 bits.
pub(super) const CHANNELS: usize = 32;

/// What is there only because the architecture needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// Query heads of zeros, so that each key/value head has as many readers.
    pub(super) zeros: usize,
    /// Key/value heads that are there again, for the same.
    pub(super) copies: usize,
    /// MLPs of zeros.
    pub(super) mlps: usize,
}

/// The layers that add anything, and what had to be added to them.
pub(super) fn layers(model: &Model) -> (Vec<Layer>, Added) {
    let mut added = Added::default();
    let mut layers = Vec::new();
    for (source, units) in model.units.layers().iter().enumerate() {
        // What is left of attention or MLP without units is the bias of its output.
        let biased = |part| model.find(Some(source), part, Kind::Bias).is_some();
        if units.count(Site::Layer) == 0 && !biased(Part::O) && !biased(Part::Down) {
            continue;
        }
        let (queries, keys) = match units.count(Site::Head) {
            0 if biased(Part::O) => {
                added.zeros += 1;
                (vec![None], vec![None])
            }
            _ => heads(units, &mut added),
        };
        let channels = match units.count(Site::Channel) {
            0 => {
                added.mlps += 1;
                vec![None; CHANNELS]
            }
            count => (0..count).map(Some).collect(),
        };
        layers.push(Layer { source, queries, keys, channels });
    }
    (layers, added)
}

/// Heads such that each key/value head has as many readers: zeros fill up the groups, or key/value heads come several
/// times, whichever adds fewer heads.
fn heads(units: &LayerUnits, added: &mut Added) -> (Vec<Option<usize>>, Vec<Option<usize>>) {
    let of = units.kv_positions();
    let groups: Vec<Vec<usize>> = (0..units.count(Site::KvGroup))
        .map(|group| (0..of.len()).filter(|head| of[*head] == group).collect())
        .collect();
    let largest = groups.iter().map(Vec::len).max().unwrap_or(0);
    let each = groups.iter().fold(0, |divisor, group| greatest_common_divisor(divisor, group.len())).max(1);
    let zeros = groups.len() * largest - of.len();
    let copies = of.len() / each - groups.len();
    if zeros <= copies {
        added.zeros += zeros;
        let fill = |group: &Vec<usize>| {
            let filled = group.iter().copied().map(Some).chain(std::iter::repeat(None));
            filled.take(largest).collect::<Vec<Option<usize>>>()
        };
        return (groups.iter().flat_map(fill).collect(), (0..groups.len()).map(Some).collect());
    }
    added.copies += copies;
    let again =
        groups.iter().enumerate().flat_map(|(at, group)| std::iter::repeat_n(Some(at), group.len() / each));
    (groups.iter().flatten().copied().map(Some).collect(), again.collect())
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{LayerSite, Selection, UnitMap};

    fn written(gone: &[usize]) -> (Vec<Option<usize>>, Vec<Option<usize>>, Added) {
        let mut units = UnitMap::full(1, 9, 3);
        units.remove(&Selection::from([(LayerSite::heads(0), gone.to_vec())])).expect("they are there");
        let mut added = Added::default();
        let (queries, keys) = heads(&units.layers()[0], &mut added);
        (queries, keys, added)
    }

    #[test]
    fn groups_are_filled_up_or_their_keys_repeated() {
        let positions = |count: usize| (0..count).map(Some).collect::<Vec<_>>();
        assert_eq!(written(&[]), (positions(9), positions(3), Added::default()));
        // Two, three and three readers: one head of zeros.
        let (queries, keys, added) = written(&[1]);
        assert_eq!(queries[..4], [Some(0), Some(1), None, Some(2)]);
        assert_eq!((keys, added), (positions(3), Added { zeros: 1, ..Added::default() }));
        // One and three: two heads of zeros, or each reader with keys of its own.
        let (queries, keys, added) = written(&[0, 1, 3, 4, 5]);
        assert_eq!((queries.len(), keys, added), (6, positions(2), Added { zeros: 2, ..Added::default() }));
        // Two and one and one: keys of the first come twice or two heads are added.
        let (queries, keys, added) = written(&[0, 3, 4, 6, 7]);
        assert_eq!(
            (queries, keys, added),
            (positions(4), vec![Some(0), Some(0), Some(1), Some(2)], Added { copies: 1, ..Added::default() })
        );
        let (queries, keys, _) = written(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(queries.is_empty() && keys.is_empty());
    }
}
