//! What units cost in parameters, multiply-accumulates or measured time, for budgets that are not counted in
//! units.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::{Tape, Tensor, ops};

use crate::eval::median;
use crate::model::{Batch, Hooks, Model};
use crate::named_enum;
use crate::spec::LayerSpec;
use crate::units::{LayerSite, LayerUnits, Selection, Site, Sites, UnitMap};
use crate::weights::Writer;
use crate::{Error, Result, surgery};

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
    /// Seconds of everything else, and of each layer's attention with 0, 1, 2 … query heads.
    Seconds(f64, Vec<Vec<f64>>),
}

impl<'a> Prices<'a> {
    /// Prices in `currency` for sequences of `length` tokens. `timings` are those of [`time_layers`], which
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
            (Currency::Latency, Some(timings)) => Count::Seconds(
                timings.rest,
                timings.by_layer(model)?.into_iter().map(<[f64]>::to_vec).collect(),
            ),
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
            Count::Seconds(rest, tables) => {
                let seconds = |(layer, table): (&LayerUnits, &Vec<f64>)| {
                    table[layer.count(Site::Head).min(table.len() - 1)]
                };
                rest + units.layers().iter().zip(tables).map(seconds).sum::<f64>()
            }
        }
    }
}

impl Prices<'_> {
    /// What a unit of each place costs on average, with all that goes with it.
    pub(crate) fn of_units(&self, units: &UnitMap, sites: Sites) -> BTreeMap<LayerSite, f64> {
        let all = self.total(units);
        let price = |place: LayerSite| {
            let there = units.layers()[place.layer].units(place.site);
            let mut less = units.clone();
            let gone = there.get(1..).unwrap_or_default().to_vec();
            let count = gone.len().max(1) as f64;
            less.remove(&Selection::from([(place, gone)]), 1).ok().map(|()| (all - self.total(&less)) / count)
        };
        let layers = 0..units.layers().len();
        let places = sites.iter().flat_map(|site| layers.clone().map(move |layer| LayerSite { layer, site }));
        places.filter_map(|place| Some((place, price(place)?))).collect()
    }
}

/// Times of this machine, in seconds; medians.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Everything up to the last hidden states but the layers' attention.
    pub rest: f64,
    /// One table for all layers of one shape.
    pub attention: Vec<AttentionTimes>,
}

/// What attention takes in layers that are alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionTimes {
    /// The layers' module paths.
    pub layers: Vec<String>,
    /// With 0, 1, 2 … query heads; never less with more of them.
    pub seconds: Vec<f64>,
}

impl Timings {
    /// The times that a file has: the `run.toml` of a run with a budget in latency.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Record {
            timings: Timings,
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let record: Record = toml::from_str(&text).map_err(|e| {
            Error::bad_file(
                path,
                format!("has no times of layers, as the run.toml of a run has them: {}", e.message()),
            )
        })?;
        Ok(record.timings)
    }

    /// Each layer's table. Refuses times that are none, layers without any, and tables that are too short for
    /// the heads that a layer has or may have again.
    pub(crate) fn by_layer(&self, model: &Model) -> Result<Vec<&[f64]>> {
        let is_time = |t: &f64| t.is_finite() && *t >= 0.0;
        let is_table =
            |times: &AttentionTimes| times.seconds.iter().all(is_time) && times.seconds.is_sorted();
        if !is_time(&self.rest) || !self.attention.iter().all(is_table) {
            return Err(Error::does_not_fit(
                "timings: expected seconds, of attention none less than the one before",
            ));
        }
        let restorable = model.archive().restorable(model.units(), Site::Head);
        let table = |(layer, gone): (usize, &usize)| {
            let name = model.layer_name(layer);
            let found = self.attention.iter().find(|times| times.layers.contains(&name));
            let seconds = found.map(|times| times.seconds.as_slice());
            let seconds = seconds.ok_or_else(|| Error::does_not_fit(format!("timings: {name} has none")))?;
            let need = model.units().layers()[layer].active().len() + gone + 1;
            if seconds.len() < need {
                let have = seconds.len();
                return Err(Error::does_not_fit(format!(
                    "timings: {name} has {have} times: expected {need}, for 0 to {} heads",
                    need - 1
                )));
            }
            Ok(seconds)
        };
        restorable.iter().enumerate().map(table).collect()
    }
}

/// Counted runs, after one that warms up.
const RUNS: usize = 5;

/// Times a forward pass, and for each shape of layer the attention of one at every number of heads that it
/// has or may have again.
///
/// # Errors
/// Returns [`Error::Interrupted`] if the work is stopped, and [`Error::DoesNotFit`] if the archive holds
/// heads that the model still has or never had.
///
/// # Panics
/// If `length` is more than a model that has a table of positions takes.
pub fn time_layers(model: &Model, batch: usize, length: usize) -> Result<Timings> {
    let tokens: Vec<u32> = (0..batch * length).map(|i| (i * 31 % model.spec().vocab_size) as u32).collect();
    let batch = Batch { tokens: tokens.into(), batch, len: length, ..Batch::default() };
    let forward = timed(|| {
        let mut tape = Tape::inference(model.device(), model.params());
        model.hidden(&mut tape, &batch, &mut Hooks::default())?;
        Ok(())
    })?;
    let mut full = model.clone();
    let mut back = model.archive().selection();
    back.retain(|place, _| place.site == Site::Head);
    surgery::restore(&mut full, None, &back, 1.0)?;
    let mut shapes: Vec<(LayerSpec, Vec<usize>)> = Vec::new();
    for (layer, spec) in model.spec().layers.iter().enumerate() {
        match shapes.iter_mut().find(|(known, _)| known == spec) {
            Some((_, layers)) => layers.push(layer),
            None => shapes.push((*spec, vec![layer])),
        }
    }
    let (mut attention, mut spent) = (Vec::new(), 0.0);
    for (_, layers) in shapes {
        // The layer of this shape that has most of its heads.
        let Some(&layer) = layers.iter().max_by_key(|&&l| full.units().layers()[l].active().len()) else {
            continue;
        };
        let seconds = time_attention(&full, layer, &batch)?;
        spent += layers.iter().map(|&l| seconds[model.units().layers()[l].active().len()]).sum::<f64>();
        attention
            .push(AttentionTimes { layers: layers.iter().map(|&l| model.layer_name(l)).collect(), seconds });
    }
    // Noise must not make attention dearer than everything.
    Ok(Timings { rest: (forward - spent).max(0.0), attention })
}

/// Seconds of a layer's attention with 0, 1, 2 … of its query heads.
fn time_attention(model: &Model, layer: usize, batch: &Batch) -> Result<Vec<f64>> {
    let active = spread_over_groups(&model.units().layers()[layer]);
    let positions = model.positions_for(batch, 0);
    let x = Tensor::full(&[batch.batch * batch.len, model.spec().hidden_size], 0.1);
    let mut seconds = vec![0.0];
    for count in 1..=active.len() {
        let mut less = model.clone();
        surgery::remove(
            &mut less,
            None,
            &Selection::from([(LayerSite::heads(layer), active[count..].to_vec())]),
            0,
            None,
        )?;
        let time = timed(|| {
            let mut tape = Tape::inference(less.device(), less.params());
            let x = tape.constant(x.clone());
            let context =
                less.attention_context(&mut tape, layer, &x, None, batch, &positions, &mut Hooks::default())?;
            let written = less.project(&mut tape, layer, Writer::Attention, context, None)?;
            ops::add(&mut tape, &x, &written)?;
            Ok(less.device().settle()?)
        })?;
        // Noise must not make a head's removal look like a loss.
        seconds.push(time.max(seconds[count - 1]));
    }
    Ok(seconds)
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

fn timed(work: impl Fn() -> Result<()>) -> Result<f64> {
    work()?;
    let mut seconds = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(median(&mut seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
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

    #[test]
    fn timings_cover_every_number_of_heads_and_never_fall() {
        let (model, less) = pruned(&[(1, vec![0, 2, 4])]);
        let timings = time_layers(&model, 2, 32).expect("it runs");
        let seconds = &timings.attention[0].seconds;
        assert_eq!((timings.attention.len(), seconds.len()), (1, 9));
        assert!(seconds.is_sorted() && seconds[1] > 0.0);
        let prices = Prices::new(&model, Currency::Latency, 32, Some(&timings)).expect("timings are there");
        assert!(prices.total(less.units()) <= prices.total(model.units()));
        // What has gone may come back.
        assert_eq!(time_layers(&less, 2, 32).expect("it runs").attention[0].seconds.len(), 9);
    }

    #[test]
    fn latency_is_that_of_the_heads_whatever_was_there_before() {
        let all: Vec<(usize, Vec<usize>)> = (0..4).map(|layer| (layer, vec![0, 1, 2, 3])).collect();
        let (model, less) = pruned(&all);
        let times = |seconds: std::ops::Range<u32>| {
            vec![AttentionTimes {
                layers: model.paths().of(Site::Head).to_vec(),
                seconds: seconds.map(f64::from).collect(),
            }]
        };
        let timings = Timings { rest: 2.0, attention: times(0..9) };
        for from in [&model, &less] {
            let prices = Prices::new(from, Currency::Latency, 32, Some(&timings)).expect("timings are there");
            assert_eq!((prices.total(model.units()), prices.total(less.units())), (34.0, 18.0));
        }
        let error = |timings: &Timings| {
            Prices::new(&less, Currency::Latency, 32, Some(timings)).expect_err("too few").to_string()
        };
        let short = error(&Timings { attention: times(0..6), ..timings });
        assert!(short.contains("expected 9"), "four may come back: {short}");
        assert!(
            error(&Timings { attention: Vec::new(), ..timings })
                .contains("model.layers.0.self_attn has none")
        );
    }

    #[test]
    fn layers_of_different_shapes_have_times_of_their_own() {
        let model = with_window(&pruned(&[]).0, 2, 4);
        let timings = time_layers(&model, 1, 16).expect("it runs");
        let layers: Vec<usize> = timings.attention.iter().map(|times| times.layers.len()).collect();
        assert_eq!(layers, [3, 1]);
        assert_eq!(timings.attention[1].layers, [model.layer_name(2)]);
        assert_eq!(timings.by_layer(&model).expect("all there")[2], timings.attention[1].seconds);
    }

    #[test]
    fn one_head_of_each_group_comes_first() {
        let layer = UnitMap::full(1, 6, 2).layers()[0].clone();
        assert_eq!(spread_over_groups(&layer), [0, 3, 1, 4, 2, 5]);
    }
}
