//! What a stock model was before: a run keeps it beside a result that does not say so itself, such that units keep their
//! original indices and those that are gone can be restored.

use std::path::Path;

use serde_json::Value;
use upgrayedd_nn::{ParamSet, Tensor};

use super::hf::with_own_config;
use crate::family::Task;
use crate::files::{TensorFile, safetensors_file};
use crate::load::units_from_config;
use crate::model::Model;
use crate::units::{CONFIG_KEY, LayerUnits, Site};
use crate::{Error, Result};

/// The file beside a run's result.
pub const HISTORY_FILE: &str = "history.safetensors";

/// The key of the file's metadata: config.json with the units that are left.
const CONFIG: &str = "config";

/// Writes what a stock folder of this model does not have: which units it is made of, and what else layers had that are
/// gone.
///
/// # Errors
/// Returns [`Error::NotFinite`] if a weight is not finite, and [`Error::Io`] if the system cannot write the file.
pub fn save_history(model: &Model, path: &Path) -> Result<()> {
    let config = with_own_config(model.clone()).config.to_string();
    let gone = |layer: usize| model.units.layers()[layer].count(Site::Layer) == 0;
    let left = model
        .params
        .ids()
        .filter(|id| model.weight(*id).layer.is_some_and(gone) && !model.params.get(*id).is_empty());
    let tensors =
        left.map(|id| (model.params.name(id).to_owned(), model.params.get(id).clone(), model.dtype_of(id)));
    safetensors_file::write(path, tensors.collect(), [(CONFIG.to_owned(), config)].into())
}

/// The model that a stock one was made of, by what [`save_history`] has written.
///
/// # Errors
/// Returns [`Error::File`] if the file is damaged or tells of another model, and [`Error::Io`] if the system cannot read
/// it.
pub fn with_history(stock: Model, path: &Path) -> Result<Model> {
    let file = TensorFile::open(path)?;
    let of_file = |error: Error| error.of_file(path);
    let before: Option<Value> =
        file.metadata().get(CONFIG).and_then(|config| serde_json::from_str(config).ok());
    let before = before.ok_or_else(|| Error::bad_file(path, "does not say what a model was made of"))?;
    let family = stock.family;
    // Sizes and units are those of before; everything else is as the folder says now.
    let mut config = stock.config.clone();
    let shape = &family.shape;
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim", CONFIG_KEY];
    for key in
        keys.into_iter().chain(shape.layers).chain(shape.channels).chain(shape.by_layer.iter().copied())
    {
        match (config.as_object_mut(), before.get(key)) {
            (Some(config), Some(value)) => drop(config.insert(key.to_owned(), value.clone())),
            (Some(config), None) => drop(config.shift_remove(key)),
            (None, _) => {}
        }
    }
    let spec = family.spec(&config, Task::of(stock.spec.objective)).map_err(of_file)?;
    let units = units_from_config(&config, family, &spec).map_err(of_file)?;
    let there = |layer: &LayerUnits| layer.count(Site::Layer) > 0;
    // Where each layer stands in the stock model.
    let places: Vec<Option<usize>> = units
        .layers()
        .iter()
        .scan(0, |next, layer| {
            let place = there(layer).then_some(*next);
            *next += usize::from(there(layer));
            Some(place)
        })
        .collect();
    let mut params = ParamSet::default();
    let mut dtypes = std::collections::BTreeMap::new();
    for weight in (family.weights)(&spec) {
        let (name, shape) = (weight.name(), weight.shape(&units));
        let place = weight.layer.map(|layer| places[layer]);
        match place {
            Some(None) if shape.contains(&0) => {
                params.add(name, Tensor::zeros(&shape));
            }
            Some(None) if weight.optional && !file.names().contains(&name) => {}
            Some(None) => {
                dtypes.insert(name.clone(), file.dtype(&name)?);
                params.add(name.clone(), file.read(&name)?);
            }
            None | Some(Some(_)) => {
                let Some(id) = stock.find(place.flatten(), weight.role.part, weight.role.kind) else {
                    continue;
                };
                dtypes.insert(name.clone(), stock.dtype_of(id));
                params.add(name, stock.params.get(id).clone());
            }
        }
    }
    let mut model =
        Model::from_params(family, spec, config, params, units, stock.dtype()).map_err(of_file)?;
    model.set_dtypes(&dtypes);
    model.origin = stock.origin;
    model.notices = stock.notices;
    model.companions = stock.companions;
    model.device = stock.device;
    model.set_as_read();
    Ok(model)
}
