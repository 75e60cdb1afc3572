//! Times of a model's parts on this machine, by how many units they have: what a budget in latency goes by.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::{Tape, Tensor};

use crate::model::{Batch, Hooks, LayerVars, Model};
use crate::spec::LayerSpec;
use crate::units::{LayerSite, LayerUnits, Selection, Site, Sites, UnitMap};
use crate::weights::Writer;
use crate::{Error, Result, surgery};

/// Times of this machine, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Everything up to the last hidden states but the layers' attention and MLPs.
    pub rest: f64,
    /// A table of attention and one of the MLP for all layers of one shape.
    pub parts: Vec<PartTimes>,
}

/// What attention or the MLP takes in layers that are alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartTimes {
    /// What it is made of: heads or channels.
    pub units: Site,
    /// The layers' module paths.
    pub layers: Vec<String>,
    /// Numbers of units, from 0 upwards.
    pub counts: Vec<usize>,
    /// With so many units; never less with more of them.
    pub seconds: Vec<f64>,
}

impl PartTimes {
    /// With so many units, in a straight line between those that were measured.
    pub(crate) fn at(&self, count: usize) -> f64 {
        let above = self.counts.partition_point(|&known| known < count).min(self.counts.len() - 1);
        let (high, below) = (self.counts[above], above.saturating_sub(1));
        let low = self.counts[below];
        if count >= high || high == low {
            return self.seconds[above];
        }
        let share = (count - low) as f64 / (high - low) as f64;
        self.seconds[below] + share * (self.seconds[above] - self.seconds[below])
    }

    fn is_table(&self) -> bool {
        let is_time = |t: &f64| t.is_finite() && *t >= 0.0;
        self.counts.len() == self.seconds.len()
            && self.counts.first() == Some(&0)
            && self.counts.is_sorted_by(|a, b| a < b)
            && self.seconds.iter().all(is_time)
            && self.seconds.is_sorted()
    }
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

    /// What a model with these units takes, by the tables that [`Self::by_layer`] has found.
    pub(crate) fn total(&self, tables: &[(Site, Vec<usize>)], units: &UnitMap) -> f64 {
        let of = |(site, tables): &(Site, Vec<usize>)| -> f64 {
            let times = |(table, layer): (&usize, &LayerUnits)| self.parts[*table].at(layer.count(*site));
            tables.iter().zip(units.layers()).map(times).sum()
        };
        self.rest + tables.iter().map(of).sum::<f64>()
    }

    /// Which tables are each layer's. Refuses times that are none, layers without any, and tables that are too short for the
    /// units that a layer has or may have again.
    pub(crate) fn by_layer(&self, model: &Model) -> Result<Vec<(Site, Vec<usize>)>> {
        let is_rest = self.rest.is_finite() && self.rest >= 0.0;
        if !is_rest || !self.parts.iter().all(PartTimes::is_table) {
            return Err(Error::does_not_fit(
                "timings: expected seconds for numbers of units from 0 upwards, none less than the one before",
            ));
        }
        Sites::FINEST.iter().map(|site| Ok((site, self.of_site(model, site)?))).collect()
    }

    fn of_site(&self, model: &Model, site: Site) -> Result<Vec<usize>> {
        let restorable = model.archive().restorable(model.units(), site);
        let paths = model.paths();
        let table = |((layer, gone), name): ((&LayerUnits, usize), &String)| {
            let is_its = |times: &PartTimes| times.units == site && times.layers.contains(name);
            let index = self.parts.iter().position(is_its).ok_or_else(|| {
                Error::does_not_fit(format!("timings: {name} has none for its {}", site.name()))
            })?;
            let (have, need) =
                (self.parts[index].counts.last().copied().unwrap_or(0), layer.count(site) + gone);
            if have < need {
                return Err(Error::does_not_fit(format!(
                    "timings: {name} has times for up to {have} {}: expected {need}",
                    site.name()
                )));
            }
            Ok(index)
        };
        model.units().layers().iter().zip(restorable).zip(paths.of(site)).map(table).collect()
    }
}

/// Rounds that count, after one that warms up.
const ROUNDS: usize = 5;

/// Widths of an MLP that are timed.
const WIDTHS: usize = 16;

/// A part of a layer with so many units, and the least that it took.
struct Timed {
    model: Model,
    place: LayerSite,
    count: usize,
    seconds: f64,
}

/// Times a forward pass, and for each shape of layer the attention and the MLP of one at numbers of units that
/// it has or may have again: at every number of heads, and at sixteenths of the channels. Everything in turn, round
/// by round, the least of each: what else a machine does only adds.
///
/// # Errors
/// Returns [`Error::Interrupted`] if the work is stopped, and [`Error::DoesNotFit`] if the archive holds
/// units that the model still has or never had.
///
/// # Panics
/// If `length` is more than a model that has a table of positions takes.
pub fn time_layers(model: &Model, batch: usize, length: usize) -> Result<Timings> {
    let tokens: Vec<u32> = (0..batch * length).map(|i| (i * 31 % model.spec().vocab_size) as u32).collect();
    let batch = Batch { tokens: tokens.into(), batch, len: length, ..Batch::default() };
    let mut full = model.clone();
    surgery::restore(&mut full, None, &model.archive().selection(), 1.0)?;
    let mut shapes: Vec<(LayerSpec, Vec<usize>)> = Vec::new();
    for (layer, spec) in model.spec().layers.iter().enumerate() {
        match shapes.iter_mut().find(|(known, _)| known == spec) {
            Some((_, layers)) => layers.push(layer),
            None => shapes.push((*spec, vec![layer])),
        }
    }
    let mut tables: Vec<(Site, &Vec<usize>, Vec<Timed>)> = Vec::new();
    for (_, layers) in &shapes {
        for units in Sites::FINEST.iter() {
            // The layer of this shape that has most of its units.
            let most = layers.iter().max_by_key(|&&l| full.units().layers()[l].count(units));
            let Some(&layer) = most else { continue };
            tables.push((units, layers, widths(&full, LayerSite { layer, site: units })?));
        }
    }
    let mut forward = f64::INFINITY;
    for round in 0..=ROUNDS {
        let least = |old: f64, new: f64| if round == 0 { old } else { old.min(new) };
        forward = least(forward, time_forward(model, &batch)?);
        for timed in tables.iter_mut().flat_map(|(.., table)| table) {
            timed.seconds = least(timed.seconds, time_one(&timed.model, timed.place, &batch)?);
        }
    }
    let (mut parts, mut spent, paths) = (Vec::new(), 0.0, model.paths());
    for (units, layers, table) in tables {
        let mut times = PartTimes {
            units,
            layers: layers.iter().map(|&l| paths.of(units)[l].clone()).collect(),
            counts: vec![0],
            seconds: vec![0.0],
        };
        for timed in table {
            // Noise must not make a unit's removal look like a loss.
            let before = times.seconds.last().copied().unwrap_or_default();
            times.seconds.push(timed.seconds.max(before));
            times.counts.push(timed.count);
        }
        spent += layers.iter().map(|&l| times.at(model.units().layers()[l].count(units))).sum::<f64>();
        parts.push(times);
    }
    // Noise must not make the parts dearer than everything.
    Ok(Timings { rest: (forward - spent).max(0.0), parts })
}

/// A layer with fewer and fewer heads or channels of which it is timed.
fn widths(model: &Model, place: LayerSite) -> Result<Vec<Timed>> {
    let layer = &model.units().layers()[place.layer];
    let all = layer.count(place.site);
    let (order, counts): (Vec<usize>, Vec<usize>) = match place.site {
        Site::Channel => {
            let mut counts: Vec<usize> = (1..=WIDTHS).map(|i| (all * i).div_ceil(WIDTHS)).collect();
            counts.dedup();
            (layer.channels().to_vec(), counts)
        }
        // Where no head can go, one time is all there is to know.
        _ if model.spec().why_heads_stay().is_some() => (layer.active().to_vec(), vec![all]),
        _ => (spread_over_groups(layer), (1..=all).collect()),
    };
    let less = |&count: &usize| {
        let mut less = model.clone();
        let gone = order.get(count..).unwrap_or_default().to_vec();
        surgery::remove(&mut less, None, &Selection::from([(place, gone)]), 0, None)?;
        Ok(Timed { model: less, place, count, seconds: f64::INFINITY })
    };
    counts.iter().filter(|count| **count > 0).map(less).collect()
}

fn time_forward(model: &Model, batch: &Batch) -> Result<f64> {
    let start = Instant::now();
    let mut tape = Tape::inference(model.device(), model.params());
    model.hidden(&mut tape, batch, &mut Hooks::default())?;
    model.device().settle()?;
    Ok(start.elapsed().as_secs_f64())
}

fn time_one(model: &Model, place: LayerSite, batch: &Batch) -> Result<f64> {
    let positions = model.positions_for(batch, 0);
    let mut tape = Tape::inference(model.device(), model.params());
    let x = tape.constant(Tensor::full(&[batch.batch * batch.len, model.spec().hidden_size], 0.1));
    let start = Instant::now();
    let (layer, hooks) = (place.layer, &mut Hooks::default());
    let (writer, read) = match place.site {
        Site::Channel => (Writer::Mlp, model.mlp_hidden(&mut tape, layer, &x, None, hooks)?),
        _ => {
            let read = model.attention_context(&mut tape, layer, &x, None, batch, &positions, hooks)?;
            (Writer::Attention, read)
        }
    };
    model.write(&mut tape, layer, writer, &x, read, &LayerVars::default())?;
    model.device().settle()?;
    Ok(start.elapsed().as_secs_f64())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::price::{Currency, Prices};
    use crate::units::heads_by_layer;

    fn pruned(heads: Vec<usize>, channels: Vec<usize>) -> (Model, Model) {
        let model = builtin::model().expect("it is there");
        let mut less = model.clone();
        let mut gone = heads_by_layer([(1, heads)].into());
        gone.insert(LayerSite::channels(1), channels);
        surgery::remove(&mut less, None, &gone, 0, None).expect("they are there");
        (model, less)
    }

    /// A table of each kind for all layers: so many seconds with 0, 1 … heads, and a second a channel.
    fn times(model: &Model, heads: std::ops::Range<u32>, channels: usize) -> Vec<PartTimes> {
        let part = |units, counts: Vec<usize>, seconds| PartTimes {
            units,
            layers: model.paths().of(units).to_vec(),
            counts,
            seconds,
        };
        vec![
            part(Site::Head, (0..heads.len()).collect(), heads.map(f64::from).collect()),
            part(Site::Channel, vec![0, channels], vec![0.0, channels as f64]),
        ]
    }

    #[test]
    fn timings_cover_every_number_of_units_and_never_fall() {
        let (model, less) = pruned(vec![0, 2, 4], (0..100).collect());
        let timings = time_layers(&model, 2, 32).expect("it runs");
        let [heads, channels] = &timings.parts[..] else { panic!("one shape of layers: {timings:?}") };
        assert_eq!(
            (heads.seconds.len(), channels.counts.last()),
            (9, Some(&model.spec().layers[0].intermediate_size))
        );
        assert!(timings.parts.iter().all(|part| part.is_table() && part.seconds[1] > 0.0));
        let prices = Prices::new(&model, Currency::Latency, 32, Some(&timings)).expect("timings are there");
        assert!(prices.total(less.units()) <= prices.total(model.units()));
        // What has gone may come back.
        assert_eq!(time_layers(&less, 2, 32).expect("it runs").parts[0].seconds.len(), 9);
    }

    #[test]
    fn between_what_was_measured_times_rise_in_a_straight_line() {
        let table = PartTimes {
            units: Site::Channel,
            layers: Vec::new(),
            counts: vec![0, 10, 20],
            seconds: vec![0.0, 1.0, 4.0],
        };
        let at = |counts: [usize; 5]| counts.map(|count| table.at(count));
        assert_eq!(at([0, 5, 10, 15, 20]), [0.0, 0.5, 1.0, 2.5, 4.0]);
        assert_eq!(table.at(99), 4.0);
    }

    #[test]
    fn latency_is_that_of_the_units_whatever_was_there_before() {
        let (model, less) = pruned(vec![0, 1, 2, 3], vec![7, 8]);
        let ffn = model.spec().layers[0].intermediate_size;
        let timings = Timings { rest: 2.0, parts: times(&model, 0..9, ffn) };
        for from in [&model, &less] {
            let prices = Prices::new(from, Currency::Latency, 32, Some(&timings)).expect("timings are there");
            let all = 2.0 + 4.0 * (8.0 + ffn as f64);
            assert_eq!((prices.total(model.units()), prices.total(less.units())), (all, all - 4.0 - 2.0));
        }
        let error = |parts: Vec<PartTimes>| {
            let timings = Timings { rest: 2.0, parts };
            Prices::new(&less, Currency::Latency, 32, Some(&timings)).expect_err("too few").to_string()
        };
        let short = error(times(&model, 0..6, ffn));
        assert!(short.contains("up to 5 heads: expected 8"), "four may come back: {short}");
        let short = error(times(&model, 0..9, ffn - 1));
        assert!(short.contains(&format!("channels: expected {ffn}")), "two may come back: {short}");
        assert!(error(Vec::new()).contains("model.layers.0.self_attn has none for its heads"));
    }

    #[test]
    fn layers_of_different_shapes_have_times_of_their_own() {
        let model = builtin::model().expect("it is there");
        let mut spec = model.spec().clone();
        spec.layers[2].window = Some(4);
        let (params, units) = (model.params().clone(), model.units().clone());
        let model =
            Model::from_params(model.family(), spec, model.config.clone(), params, units, model.dtype())
                .expect("a model");
        let timings = time_layers(&model, 1, 16).expect("it runs");
        let layers: Vec<usize> = timings.parts.iter().map(|times| times.layers.len()).collect();
        assert_eq!(layers, [3, 3, 1, 1]);
        let tables = timings.by_layer(&model).expect("all there");
        assert_eq!(timings.parts[tables[0].1[2]].layers, [model.layer_name(2)]);
    }

    #[test]
    fn one_head_of_each_group_comes_first() {
        let layer = UnitMap::full(1, 6, 2).layers()[0].clone();
        assert_eq!(spread_over_groups(&layer), [0, 3, 1, 4, 2, 5]);
    }
}
