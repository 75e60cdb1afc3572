//! What heads cost in parameters, multiply-accumulates or measured time, for budgets that are not counted in heads.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::{Tape, Tensor, ops};

use crate::eval::median;
use crate::model::{Batch, Hooks, Model};
use crate::named_enum;
use crate::spec::ModelSpec;
use crate::units::{LayerSite, LayerUnits, Selection, UnitMap};
use crate::weights::Writer;
use crate::{Error, Result, surgery};

named_enum! {
    /// What a pruning ratio is a share of.
    Currency, "budget" {
        /// Query heads.
        #[default]
        Heads = "heads",
        /// Elements of all weights.
        Parameters = "parameters",
        /// Multiply-accumulates per token at the run's sequence length.
        Macs = "macs",
        /// Time of a forward pass, measured on this machine at the run's batch size and sequence length.
        Latency = "latency",
    }
}

/// The cost of a model with given heads.
#[derive(Debug, Clone)]
pub struct Prices {
    /// Everything that no head changes.
    rest: f64,
    layer: LayerPrice,
}

#[derive(Debug, Clone)]
enum LayerPrice {
    /// Per query head and per key/value head.
    Linear { query: f64, kv: f64 },
    /// By number of query heads, from 0.
    Table(Vec<f64>),
}

impl Prices {
    /// Prices in `currency` for sequences of `length` tokens. `timings` are those of [`time_layers`], which latency needs.
    pub fn new(model: &Model, currency: Currency, length: usize, timings: Option<&Timings>) -> Result<Self> {
        let ModelSpec { hidden_size, head_dim, qkv_bias, .. } = model.spec;
        let (d, width) = (hidden_size as f64, head_dim as f64);
        let bias = if qkv_bias { 1.0 } else { 0.0 };
        let cost = model.cost(length);
        let (layer, total) = match (currency, timings) {
            (Currency::Heads, _) => (LayerPrice::Linear { query: 1.0, kv: 0.0 }, model.units.num_active() as f64),
            (Currency::Parameters, _) => {
                let (query, kv) = (width * (2.0 * d + bias), 2.0 * width * (d + bias));
                (LayerPrice::Linear { query, kv }, cost.parameters as f64)
            }
            (Currency::Macs, _) => {
                let (query, kv) = (2.0 * width * (d + length as f64), 2.0 * width * d);
                (LayerPrice::Linear { query, kv }, cost.macs_per_token as f64)
            }
            (Currency::Latency, Some(timings)) => {
                timings.check(model)?;
                return Ok(Self { rest: timings.rest, layer: LayerPrice::Table(timings.attention.clone()) });
            }
            (Currency::Latency, None) => return Err(Error::invalid("a budget in latency needs timings of the layers")),
        };
        let mut prices = Self { rest: 0.0, layer };
        prices.rest = total - prices.total(&model.units);
        Ok(prices)
    }

    /// What the model would cost with `heads`, of which no layer has more than the model could have again.
    pub fn total(&self, heads: &UnitMap) -> f64 {
        let price = |l: &LayerUnits| match &self.layer {
            LayerPrice::Linear { query, kv } => query * l.active().len() as f64 + kv * l.kv_active().len() as f64,
            LayerPrice::Table(table) => table[l.active().len().min(table.len() - 1)],
        };
        self.rest + heads.layers().iter().map(price).sum::<f64>()
    }
}

/// Times of this machine, in seconds; medians.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Everything up to the last hidden states but the layers' attention.
    pub rest: f64,
    /// One layer's attention with 0, 1, 2 … query heads, which never costs less with more of them.
    pub attention: Vec<f64>,
}

impl Timings {
    /// Refuses times that are none, or not enough of them for the heads that a layer has or may have again.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let restorable = model.archive.restorable(&model.units);
        let heads = model.units.counts().iter().zip(restorable).map(|(there, gone)| there + gone).max().unwrap_or(0);
        let is_time = |t: &f64| t.is_finite() && *t >= 0.0;
        if !is_time(&self.rest) || !self.attention.iter().all(is_time) || !self.attention.is_sorted() {
            return Err(Error::invalid("timings: expected seconds, of attention none less than the one before"));
        }
        if self.attention.len() <= heads {
            let (have, need) = (self.attention.len(), heads + 1);
            return Err(Error::invalid(format!("timings: attention has {have} times: expected {need}, for 0 to {heads} heads")));
        }
        Ok(())
    }
}

/// Counted runs, after one that warms up.
const RUNS: usize = 5;

/// Times a forward pass, and one layer's attention at every number of heads that a layer has or may have again. Layers have the same
/// shapes, so one stands for all.
pub fn time_layers(model: &Model, batch: usize, length: usize) -> Result<Timings> {
    let tokens: Vec<u32> = (0..batch * length).map(|i| (i * 31 % model.spec.vocab_size) as u32).collect();
    let batch = Batch { tokens: tokens.into(), batch, len: length, ..Batch::default() };
    let forward = timed(|| {
        let mut tape = Tape::inference(model.device, &model.params);
        model.hidden(&mut tape, &batch, &mut Hooks::default());
    });
    let positions = model.positions_for(batch.batch, batch.len, 0);
    let x = Tensor::full(&[batch.batch * batch.len, model.spec.hidden_size], 0.1);
    let mut full = model.clone();
    surgery::restore(&mut full, None, &model.archive.selection(), 1.0)?;
    // A layer that has most of its heads.
    let Some(layer) = (0..full.spec.num_layers()).max_by_key(|&l| full.units.layers()[l].active().len()) else {
        return Err(Error::invalid("the model has no layers to time"));
    };
    let active = spread_over_groups(&full.units.layers()[layer]);
    let mut attention = vec![0.0];
    for count in 1..=active.len() {
        let mut less = full.clone();
        surgery::remove(&mut less, None, &Selection::from([(LayerSite::heads(layer), active[count..].to_vec())]), 0, None)?;
        let seconds = timed(|| {
            let mut tape = Tape::inference(less.device, &less.params);
            let x = tape.constant(x.clone());
            let context = less.attention_context(&mut tape, layer, &x, None, &batch, &positions, &mut Hooks::default());
            let written = less.project(&mut tape, layer, Writer::Attention, context, None);
            ops::add(&mut tape, &x, &written);
        });
        // Noise must not make a head's removal look like a loss.
        attention.push(seconds.max(attention[count - 1]));
    }
    let spent: f64 = model.units.counts().into_iter().map(|n| attention[n]).sum();
    // Noise must not make attention dearer than everything.
    Ok(Timings { rest: (forward - spent).max(0.0), attention })
}

/// A layer's heads in an order that takes one of each key/value head first, as most selections leave them.
fn spread_over_groups(layer: &LayerUnits) -> Vec<usize> {
    let mut order: Vec<(usize, usize)> = Vec::new();
    for &head in layer.active() {
        let before = order.iter().filter(|(_, h)| layer.kv_group_of(*h) == layer.kv_group_of(head)).count();
        order.push((before, head));
    }
    order.sort_unstable();
    order.into_iter().map(|(_, head)| head).collect()
}

fn timed(work: impl Fn()) -> f64 {
    work();
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    median(&mut seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::units::heads_by_layer;

    fn pruned(selection: &[(usize, Vec<usize>)]) -> (Model, Model) {
        let model = builtin::model().expect("it is there");
        let mut less = model.clone();
        surgery::remove(&mut less, None, &heads_by_layer(selection.iter().cloned().collect()), 0, None).expect("heads are there");
        (model, less)
    }

    #[test]
    fn prices_are_the_costs_of_the_model_that_surgery_leaves() {
        let (model, less) = pruned(&[(0, vec![0, 1, 2, 3]), (2, vec![5]), (3, vec![0, 7])]);
        let prices = |currency| Prices::new(&model, currency, 64, None).expect("no timings needed");
        assert_eq!(prices(Currency::Heads).total(&less.units), less.units.num_active() as f64);
        assert_eq!(prices(Currency::Parameters).total(&less.units), less.num_parameters() as f64);
        assert_eq!(prices(Currency::Macs).total(&less.units), less.cost(64).macs_per_token as f64);
        assert!(Prices::new(&model, Currency::Latency, 64, None).is_err());
    }

    #[test]
    fn timings_cover_every_number_of_heads_and_never_fall() {
        let (model, less) = pruned(&[(1, vec![0, 2, 4])]);
        let timings = time_layers(&model, 2, 32).expect("it runs");
        assert_eq!(timings.attention.len(), model.spec.num_heads() + 1);
        assert!(timings.attention.is_sorted() && timings.attention[1] > 0.0);
        let prices = Prices::new(&model, Currency::Latency, 32, Some(&timings)).expect("timings are there");
        assert!(prices.total(&less.units) <= prices.total(&model.units));
        // What has gone may come back.
        assert_eq!(time_layers(&less, 2, 32).expect("it runs").attention.len(), model.spec.num_heads() + 1);
    }

    #[test]
    fn latency_is_that_of_the_heads_whatever_was_there_before() {
        let all: Vec<(usize, Vec<usize>)> = (0..4).map(|layer| (layer, vec![0, 1, 2, 3])).collect();
        let (model, less) = pruned(&all);
        let timings = Timings { rest: 2.0, attention: (0..9).map(f64::from).collect() };
        for from in [&model, &less] {
            let prices = Prices::new(from, Currency::Latency, 32, Some(&timings)).expect("timings are there");
            assert_eq!((prices.total(&model.units), prices.total(&less.units)), (34.0, 18.0));
        }
        let short = Timings { attention: timings.attention[..6].to_vec(), ..timings };
        let error = Prices::new(&less, Currency::Latency, 32, Some(&short)).expect_err("four may come back").to_string();
        assert!(error.contains("expected 9"), "{error}");
    }

    #[test]
    fn one_head_of_each_group_comes_first() {
        let layer = UnitMap::full(1, 6, 2).layers()[0].clone();
        assert_eq!(spread_over_groups(&layer), [0, 3, 1, 4, 2, 5]);
    }
}
