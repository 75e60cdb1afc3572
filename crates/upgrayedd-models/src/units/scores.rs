//! A number for each unit.

use std::collections::BTreeMap;

use super::map::{LayerUnits, UnitMap};
use super::sites::Sites;
use super::unit::{LayerSite, Site};
use crate::{Error, Result};

/// A number for each unit that is there, by where it is, in the order of [`LayerUnits::units`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    places: BTreeMap<LayerSite, Vec<f64>>,
}

impl Scores {
    /// Of query heads, one list a layer.
    pub fn of_heads(layers: impl IntoIterator<Item = Vec<f64>>) -> Self {
        let place = |(layer, scores)| (LayerSite::heads(layer), scores);
        Self { places: layers.into_iter().enumerate().map(place).collect() }
    }

    /// Zero for every unit of some kinds.
    pub fn zeros(units: &UnitMap, sites: Sites) -> Self {
        Self::of_places(units, sites, |place, known| vec![0.0; known.count(place.site)])
    }

    /// What `of` says for each place of units of some kinds, kind after kind.
    pub fn of_places(
        units: &UnitMap,
        sites: Sites,
        mut of: impl FnMut(LayerSite, &LayerUnits) -> Vec<f64>,
    ) -> Self {
        let mut places = BTreeMap::new();
        for site in sites.iter() {
            for (layer, known) in units.layers().iter().enumerate() {
                let place = LayerSite { layer, site };
                places.insert(place, of(place, known));
            }
        }
        Self { places }
    }

    /// With a number for each block of some kinds that has none yet: the sum of its units', or their mean.
    #[must_use]
    pub fn with_blocks(mut self, units: &UnitMap, sites: Sites, mean: bool) -> Self {
        for site in sites.blocks() {
            for (layer, known) in units.layers().iter().enumerate() {
                let leaves = site.leaves().iter().flat_map(|&site| self.at(LayerSite { layer, site }));
                let (sum, count) = leaves.fold((0.0, 0), |(sum, count), score| (sum + score, count + 1));
                let there = vec![if mean { sum / f64::from(count.max(1)) } else { sum }; known.count(site)];
                self.places.entry(LayerSite { layer, site }).or_insert(there);
            }
        }
        self
    }

    /// The places themselves, layer after layer.
    pub fn places(&self) -> impl Iterator<Item = LayerSite> + '_ {
        self.places.keys().copied()
    }

    /// Those of one place; none where nothing was scored.
    pub fn at(&self, place: LayerSite) -> &[f64] {
        self.places.get(&place).map_or(&[], Vec::as_slice)
    }

    /// Those of one place, to be changed.
    pub fn at_mut(&mut self, place: LayerSite) -> &mut Vec<f64> {
        self.places.entry(place).or_default()
    }

    /// Place by place: layer after layer, a layer's kinds of units finest first.
    pub fn iter(&self) -> impl Iterator<Item = (LayerSite, &[f64])> {
        self.places.iter().map(|(place, scores)| (*place, scores.as_slice()))
    }

    /// Those of query heads, layer by layer.
    pub fn heads(&self) -> impl Iterator<Item = &[f64]> {
        self.iter().filter(|(place, _)| place.site == Site::Head).map(|(_, scores)| scores)
    }

    /// Mean of the scores of a kind of units, layer by layer.
    pub fn layer_means(&self, site: Site) -> Vec<f64> {
        let of_site = self.iter().filter(|(place, _)| place.site == site);
        of_site.map(|(_, l)| l.iter().sum::<f64>() / l.len().max(1) as f64).collect()
    }

    /// The lists themselves, in the order of [`Self::iter`].
    pub fn lists_mut(&mut self) -> impl Iterator<Item = &mut Vec<f64>> {
        self.places.values_mut()
    }

    /// All values in the order of [`Self::iter`].
    pub fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.places.values().flatten().copied()
    }

    /// The scores after a function of each.
    #[must_use]
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        let place =
            |(place, scores): (&LayerSite, &Vec<f64>)| (*place, scores.iter().map(|s| f(*s)).collect());
        Self { places: self.places.iter().map(place).collect() }
    }

    /// Checks that the scores are those of these units, of these kinds at least, and finite.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for another number of scores than there are units in a place, and for a
    /// place that has none, and [`Error::NotFinite`] for a score that is not finite.
    pub fn check(&self, units: &UnitMap, sites: Sites) -> Result<()> {
        for (LayerSite { layer, site }, scores) in self.iter() {
            let known = units.layers().get(layer).map(|known| known.units(site)).unwrap_or_default();
            let name = site.name();
            if scores.len() != known.len() {
                let count = scores.len();
                return Err(Error::does_not_fit(format!(
                    "layer {layer} has {count} scores for {} {name} that are there",
                    known.len()
                )));
            }
            if let Some((index, score)) = known.iter().zip(scores).find(|(_, s)| !s.is_finite()) {
                return Err(Error::NotFinite(format!(
                    "the score of {name} {index} in layer {layer} is {score}: the model's weights or the data give no finite value"
                )));
            }
        }
        let layers = 0..units.layers().len();
        let mut places =
            sites.iter().flat_map(|site| layers.clone().map(move |layer| LayerSite { layer, site }));
        match places.find(|place| !self.places.contains_key(place)) {
            Some(LayerSite { layer, site }) => {
                Err(Error::does_not_fit(format!("the {} of layer {layer} have no scores", site.name())))
            }
            None => Ok(()),
        }
    }

    /// Spearman's rank correlation with other scores of the same units, −1 to 1; equal values share their
    /// mean rank. `None` where all values of one side are equal.
    pub fn rank_correlation(&self, other: &Self) -> Option<f64> {
        rank_correlation(&self.values().collect::<Vec<f64>>(), &other.values().collect::<Vec<f64>>())
    }
}

/// Spearman's rank correlation, as [`Scores::rank_correlation`] has it.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let ranks = |values: &[f64]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        let mut ranks = vec![0.0; values.len()];
        for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
            let lower = order.partition_point(|&i| values[i] < values[tied[0]]);
            tied.iter().for_each(|&i| ranks[i] = lower as f64 + (tied.len() - 1) as f64 / 2.0);
        }
        let mean = ranks.iter().sum::<f64>() / ranks.len().max(1) as f64;
        ranks.iter().map(|r| r - mean).collect::<Vec<f64>>()
    };
    let (a, b) = (ranks(a), ranks(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norm = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if a.len() == b.len() && norm > 0.0 { Some(dot(&a, &b) / norm) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_that_do_not_fit_are_refused() {
        let units = UnitMap::full(2, 2, 1);
        let heads = Sites::of(Site::Head);
        let error = |scores: Scores| scores.check(&units, heads).expect_err("does not fit").to_string();
        assert!(Scores::zeros(&units, heads).check(&units, heads).is_ok());
        assert!(
            error(Scores::of_heads([vec![1.0, 2.0], vec![1.0]])).contains("layer 1 has 1 scores for 2 heads")
        );
        assert!(error(Scores::of_heads([vec![1.0, 2.0]])).contains("the heads of layer 1 have no scores"));
        assert!(error(Scores::of_heads([vec![1.0], vec![], vec![]])).contains("layer 0 has 1 scores"));
        assert!(
            error(Scores::of_heads([vec![1.0, f64::NAN], vec![1.0, 2.0]]))
                .contains("heads 1 in layer 0 is NaN")
        );
        let mut groups = Scores::zeros(&units, heads);
        *groups.at_mut(LayerSite { layer: 0, site: Site::KvGroup }) = vec![0.0, 0.0];
        assert!(error(groups).contains("2 scores for 1 kv-groups"));
    }

    #[test]
    fn rank_correlations_are_spearmans() {
        let scores = |layers: &[&[f64]]| Scores::of_heads(layers.iter().map(|l| l.to_vec()));
        let a = scores(&[&[1.0, 2.0], &[3.0, 4.0]]);
        assert_eq!(a.rank_correlation(&scores(&[&[10.0, 20.0], &[30.0, 1e9]])), Some(1.0));
        assert_eq!(a.rank_correlation(&a.map(|s| -s)), Some(-1.0));
        // Ranks 0.5, 0.5, 2, 3 against 0, 1, 2, 3.
        let tied = a.rank_correlation(&scores(&[&[7.0, 7.0], &[8.0, 9.0]])).expect("they differ");
        assert!((tied - 4.5 / (5.0f64 * 4.5).sqrt()).abs() < 1e-12);
        assert_eq!(a.rank_correlation(&scores(&[&[1.0, 1.0], &[1.0, 1.0]])), None);
    }
}
