//! What units cost in parameters, multiply-accumulates or measured time, for budgets that are not counted in
//! units.

use std::collections::BTreeMap;

use crate::model::Model;
use crate::named_enum;
use crate::timings::Timings;
use crate::units::{LayerSite, Selection, Site, Sites, UnitMap};
use crate::{Error, Result};

named_enum! {
    /// What a pruning ratio is a share of.
    Currency, "budget" {
        /// The units themselves. Kinds do not compete: of each the same share goes.
        #[default]
        Units = "units",
        /// Elements of all weights.
        Parameters = "parameters",
        /// Multiply-accumulates per token at the run's sequence length.
        Macs = "macs",
        /// Bytes of all weights as they are stored.
        Bytes = "bytes",
        /// Bytes of keys and values per token.
        KvCache = "kv-cache",
        /// Time of a forward pass, measured on this machine at the run's batch size and sequence length.
        Latency = "latency",
    }
}

/// The cost of a model with given units.
#[derive(Debug, Clone)]
pub struct Prices<'a> {
    model: &'a Model,
    length: usize,
    count: Count,
}

#[derive(Debug, Clone)]
enum Count {
    Units,
    Parameters,
    Macs,
    Bytes,
    KvCache,
    /// With each layer's tables.
    Seconds(Timings, Vec<(Site, Vec<usize>)>),
}

impl<'a> Prices<'a> {
    /// Prices in `currency` for sequences of `length` tokens. `timings` are those of [`time_layers`](crate::timings::time_layers), which
    /// latency needs.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for latency without timings, and for timings that are not the model's.
    pub fn new(
        model: &'a Model,
        currency: Currency,
        length: usize,
        timings: Option<&Timings>,
    ) -> Result<Self> {
        let count = match (currency, timings) {
            (Currency::Units, _) => Count::Units,
            (Currency::Parameters, _) => Count::Parameters,
            (Currency::Macs, _) => Count::Macs,
            (Currency::Bytes, _) => Count::Bytes,
            (Currency::KvCache, _) => Count::KvCache,
            (Currency::Latency, Some(timings)) => Count::Seconds(timings.clone(), timings.by_layer(model)?),
            (Currency::Latency, None) => {
                return Err(Error::does_not_fit("a budget in latency needs timings of the layers"));
            }
        };
        Ok(Self { model, length, count })
    }

    /// What the model would cost with these units, of which no layer has more than the model could have
    /// again.
    pub fn total(&self, units: &UnitMap) -> f64 {
        match &self.count {
            Count::Units => Sites::FINEST.iter().map(|site| units.count(site)).sum::<usize>() as f64,
            Count::Parameters => self.model.cost_with(units, self.length).parameters as f64,
            Count::Macs => self.model.cost_with(units, self.length).macs_per_token as f64,
            Count::Bytes => self.model.cost_with(units, self.length).bytes as f64,
            Count::KvCache => self.model.cost_with(units, self.length).kv_cache_bytes_per_token as f64,
            Count::Seconds(timings, tables) => timings.total(tables, units),
        }
    }
}

impl Prices<'_> {
    /// What a unit of each place costs on average, with all that goes with it. One of several stays, so that what
    /// goes with the last alone does not count.
    pub(crate) fn of_units(&self, units: &UnitMap, sites: Sites) -> BTreeMap<LayerSite, f64> {
        let all = self.total(units);
        let price = |LayerSite { layer, site }: LayerSite| {
            let known = &units.layers()[layer];
            let kept = usize::from(!site.is_block());
            let of = |&site: &Site| {
                (LayerSite { layer, site }, known.units(site).into_iter().skip(kept).collect())
            };
            let gone: Selection = site.leaves().iter().map(of).collect();
            let count = known.count(site).saturating_sub(kept).max(1) as f64;
            let mut less = units.clone();
            less.remove(&gone).ok().map(|()| (all - self.total(&less)) / count)
        };
        let layers = 0..units.layers().len();
        let places = sites.iter().flat_map(|site| layers.clone().map(move |layer| LayerSite { layer, site }));
        places.filter_map(|place| Some((place, price(place)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::surgery;
    use crate::units::heads_by_layer;

    fn pruned(selection: &[(usize, Vec<usize>)]) -> (Model, Model) {
        let model = builtin::model().expect("it is there");
        let mut less = model.clone();
        surgery::remove(&mut less, None, &heads_by_layer(selection.iter().cloned().collect()), 0, None)
            .expect("heads are there");
        (model, less)
    }

    /// The model with a window in one layer.
    fn with_window(model: &Model, layer: usize, window: usize) -> Model {
        let mut spec = model.spec().clone();
        spec.layers[layer].window = Some(window);
        let (params, units) = (model.params().clone(), model.units().clone());
        Model::from_params(model.family(), spec, model.config.clone(), params, units, model.dtype())
            .expect("a model")
    }

    #[test]
    fn prices_are_the_costs_of_the_model_that_surgery_leaves() {
        let (model, less) = pruned(&[(0, vec![0, 1, 2, 3]), (2, vec![5]), (3, vec![0, 7])]);
        let prices = |currency| Prices::new(&model, currency, 64, None).expect("no timings needed");
        let there: usize = Sites::FINEST.iter().map(|site| less.units().count(site)).sum();
        assert_eq!(prices(Currency::Units).total(less.units()), there as f64);
        assert_eq!(prices(Currency::Parameters).total(less.units()), less.num_parameters() as f64);
        assert_eq!(prices(Currency::Macs).total(less.units()), less.cost(64).macs_per_token as f64);
        assert!(Prices::new(&model, Currency::Latency, 64, None).is_err());
    }

    #[test]
    fn attention_is_charged_for_the_keys_that_its_window_shows() {
        let (model, less) = pruned(&[(1, vec![0, 1])]);
        let all = model.cost(32).macs_per_token as f64;
        let width = model.spec().head_dim;
        let model = with_window(&model, 1, 8);
        // Scores and sums of eight heads, each over 24 keys fewer.
        let hidden = (2 * 8 * width * (32 - 8)) as f64;
        assert_eq!(model.cost(32).macs_per_token as f64, all - hidden);
        let prices = Prices::new(&model, Currency::Macs, 32, None).expect("no timings needed");
        assert_eq!(prices.total(less.units()), less.cost(32).macs_per_token as f64 - hidden * 6.0 / 8.0);
    }
}
