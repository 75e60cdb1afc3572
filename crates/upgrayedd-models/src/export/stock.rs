//! A pruned model as a plain one of its family, where its layers are all alike.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use upgrayedd_nn::ParamSet;

use crate::Result;
use crate::family::Task;
use crate::model::Model;
use crate::spec::{Block, LayerSpec, ModelSpec};
use crate::units::{LayerSite, LayerUnits, Selection, Site};
use crate::weights::{Kind, Part};

/// What would make a model that is not stock one.
const UNIFORM: &str = "shape uniform makes all layers alike";

/// A plain model that computes the same.
pub(super) struct Stock {
    config: Value,
    spec: ModelSpec,
    /// Original indices of the layers that stay.
    kept: Vec<usize>,
    /// Heads that are left out of its layers, which are numbered anew.
    pruned: BTreeMap<usize, Vec<usize>>,
}

/// What is said of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadsAre {
    /// Their number, the same in every layer.
    Counted,
    /// Which of them are gone (`pruned_heads` of transformers 4).
    Listed,
}

/// How a plain model of the family would be described; else what stands against it, in a line.
pub(super) fn stock(model: &Model, heads: HeadsAre) -> std::result::Result<Stock, String> {
    let spec = &model.spec;
    let layers = model.units.layers();
    let (kept, gone): (Vec<usize>, Vec<usize>) =
        (0..layers.len()).partition(|layer| layers[*layer].count(Site::Layer) > 0);
    let Some(first) = kept.first().map(|l| &layers[*l]) else {
        return Err("no layer has anything left".to_owned());
    };
    check_layers_may_go(model, &gone)?;
    let alike = |site: Site| kept.iter().all(|l| layers[*l].count(site) == first.count(site));
    if first.count(Site::Channel) == 0 || first.count(Site::Head) == 0 {
        return Err(
            "layers have lost their whole attention or MLP: a stock model keeps both, or neither".to_owned()
        );
    }
    if !alike(Site::Channel) {
        return Err(format!("layers differ in their channels: {UNIFORM}"));
    }
    let original = &spec.layers[kept[0]];
    let (mut num_heads, mut num_kv_heads) = (first.count(Site::Head), first.count(Site::KvGroup));
    let mut pruned = BTreeMap::new();
    match heads {
        HeadsAre::Counted => {
            let even = |l: &usize| readers(&layers[*l]).windows(2).all(|pair| pair[0] == pair[1]);
            if !alike(Site::Head) || !alike(Site::KvGroup) || !kept.iter().all(even) {
                return Err(format!("layers or key/value heads differ in their heads: {UNIFORM}"));
            }
            if (num_heads, num_kv_heads) != (original.num_heads, original.num_kv_heads)
                && let Some(why) = why_not_heads(model, num_heads)
            {
                return Err(why);
            }
        }
        HeadsAre::Listed => {
            let whole = kept.iter().map(|l| layers[*l].pruned()).enumerate();
            pruned = whole.filter(|(_, gone)| !gone.is_empty()).collect();
            if let Some((at, _)) = kept.iter().enumerate().find(|(_, l)| layers[**l].count(Site::Head) == 0) {
                return Err(format!("layer {at} has no heads: pruned_heads leaves one at least"));
            }
            (num_heads, num_kv_heads) = (original.num_heads, original.num_kv_heads);
        }
    }
    let intermediate_size = first.count(Site::Channel);
    let of = |l: &usize| LayerSpec { num_heads, num_kv_heads, intermediate_size, ..spec.layers[*l] };
    let expected = ModelSpec { layers: kept.iter().map(of).collect(), ..spec.clone() };
    let config = config(model, &kept, &expected)?;
    Ok(Stock { config, spec: expected, kept, pruned })
}

/// How many query heads each key/value head has.
fn readers(layer: &LayerUnits) -> Vec<usize> {
    let of = layer.kv_positions();
    (0..layer.count(Site::KvGroup)).map(|group| of.iter().filter(|g| **g == group).count()).collect()
}

/// Refuses to leave out layers without units where these are not the same as none.
fn check_layers_may_go(model: &Model, gone: &[usize]) -> std::result::Result<(), String> {
    let post_norm = gone.iter().any(|layer| model.spec.layers[*layer].block == Block::PostNorm);
    if post_norm || !gone.is_empty() && model.family.shape.layers.is_none() {
        return Err("layers without heads and channels still change what passes in this family: a stock model keeps something of each layer".to_owned());
    }
    let adds = |layer: &usize| {
        [Part::O, Part::Down, Part::Post1, Part::Post2]
            .iter()
            .any(|part| model.find(Some(*layer), *part, Kind::Bias).is_some())
    };
    if gone.iter().any(adds) {
        return Err("layers without heads and channels still add their biases: a stock model keeps something of each layer".to_owned());
    }
    Ok(())
}

/// The configuration of such a model; the family's own reading of it decides.
fn config(model: &Model, kept: &[usize], expected: &ModelSpec) -> std::result::Result<Value, String> {
    let (family, shape) = (model.family, &model.family.shape);
    let mut config = model.config.as_object().cloned().unwrap_or_default();
    let set = |keys: &mut Map<String, Value>, key: &str, value: Value| {
        // As in transformers, other names of a key go first.
        for (other, _) in family.config_aliases.iter().filter(|(_, own)| *own == key) {
            keys.shift_remove(*other);
        }
        keys.insert(key.to_owned(), value);
    };
    let layer = &expected.layers[0];
    let before = &model.spec.layers[kept[0]];
    if kept.len() < model.spec.num_layers() {
        set(&mut config, shape.layers.unwrap_or_default(), kept.len().into());
        for key in shape.by_layer {
            if let Some(Value::Array(list)) = config.get(*key) {
                let entries = kept.iter().filter_map(|l| list.get(*l).cloned());
                let entries: Value = entries.collect();
                set(&mut config, key, entries);
            }
        }
    }
    if (layer.num_heads, layer.num_kv_heads) != (before.num_heads, before.num_kv_heads) {
        set(&mut config, "num_attention_heads", layer.num_heads.into());
        set(&mut config, "num_key_value_heads", layer.num_kv_heads.into());
        set(&mut config, "head_dim", expected.head_dim.into());
    }
    if layer.intermediate_size != before.intermediate_size {
        let key = shape.channels.ok_or("config.json has no key for the width of the MLP")?;
        set(&mut config, key, layer.intermediate_size.into());
    }
    let task = Task::of(expected.objective);
    let says = |config: &Map<String, Value>| {
        family.spec(&Value::Object(config.clone()), task).is_ok_and(|spec| spec == *expected)
    };
    if !says(&config) {
        // What follows from a layer's place in the original is said layer by layer.
        for key in shape.by_layer {
            set(&mut config, key, by_layer(key, expected));
        }
        if !says(&config) {
            return Err(
                "layers differ by their place in ways that config.json cannot say of those that are left"
                    .to_owned(),
            );
        }
    }
    Ok(Value::Object(config))
}

/// A list with an entry for each layer.
fn by_layer(key: &str, spec: &ModelSpec) -> Value {
    let entry = |layer: &LayerSpec| match key {
        "no_rope_layers" => json!(u8::from(layer.rope.is_some())),
        _ => json!(if layer.window.is_some() { "sliding_attention" } else { "full_attention" }),
    };
    spec.layers.iter().map(entry).collect()
}

impl Stock {
    /// The heads that are left out, by layer.
    pub(super) fn pruned(&self) -> &BTreeMap<usize, Vec<usize>> {
        &self.pruned
    }

    /// The plain model: the same weights, with layers that are numbered anew.
    ///
    /// # Errors
    /// Returns [`crate::Error::DoesNotFit`] if the family's table gives the layers that are left other weights.
    pub(super) fn of(self, model: &Model) -> Result<Model> {
        let mut units = self.spec.full_units();
        let gone: Selection =
            self.pruned.into_iter().map(|(layer, heads)| (LayerSite::heads(layer), heads)).collect();
        units.remove(&gone)?;
        let (mut params, mut dtypes) = (ParamSet::default(), BTreeMap::new());
        for weight in (model.family.weights)(&self.spec) {
            let layer = weight.layer.map(|layer| self.kept[layer]);
            let Some(id) = model.find(layer, weight.role.part, weight.role.kind) else { continue };
            dtypes.insert(weight.name(), model.dtype_of(id));
            params.add(weight.name(), model.params.get(id).clone());
        }
        let mut stock =
            Model::from_params(model.family, self.spec, self.config, params, units, model.dtype())?;
        stock.set_dtypes(&dtypes);
        stock.origin.clone_from(&model.origin);
        stock.companions.clone_from(&model.companions);
        stock.device = model.device;
        Ok(stock)
    }
}

/// What stands against so many heads in every layer of a plain model of the family, in a line; nothing if it can have
/// them.
pub fn why_not_heads(model: &Model, heads: usize) -> Option<String> {
    let (spec, shape) = (&model.spec, &model.family.shape);
    if spec.layers.iter().all(|layer| layer.num_heads == heads) {
        return None;
    }
    let long = spec.ropes.iter().any(|rope| rope.long.is_some());
    shape.heads.refuses(heads, spec.hidden_size).or_else(|| {
        long.then(|| {
            "transformers wants as many factors for long texts as the original number of heads makes: a stock model keeps all of them and loses channels or layers only"
                .to_owned()
        })
    })
}

/// What stands against a plain model of the family, in a line; nothing if the model is one, or can be written as one.
pub fn why_not_stock(model: &Model) -> Option<String> {
    if model.units.is_full() { None } else { stock(model, HeadsAre::Counted).err() }
}
