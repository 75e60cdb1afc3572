//! config.json and weights → a model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use upgrayedd_nn::{ParamSet, Tensor, interrupt};

use super::folder::{TensorFolder, read_config};
use super::names::Names;
use super::source::Weights;
use crate::family::{self, Family, Task};
use crate::files::DType;
use crate::model::{Companions, Model};
use crate::spec::{ModelSpec, Objective};
use crate::units::{CONFIG_KEY, FORMAT, UnitMap, heads_by_layer};
use crate::weights::{Layout, Part, Weight, rows_in_tensor};
use crate::{Error, Result};

/// What the user may say about a model that its files do not.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Family, for a config.json that does not tell.
    pub family: Option<String>,
}

impl Model {
    /// Loads a Hugging Face folder.
    ///
    /// # Errors
    /// Returns [`Error::UnknownName`] if there is no family `options.family`, [`Error::File`] if the folder
    /// or a file in it cannot be used, [`Error::Io`] if the system cannot read one, and
    /// [`Error::Interrupted`] if the work is stopped.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        if let Some(name) = &options.family {
            family::named(name)?;
        }
        let config = read_config(dir)?;
        let folder = TensorFolder::open(dir)?;
        let mut model = Self::from_weights(config, &folder, options).map_err(|error| error.of_file(dir))?;
        model.notices.extend(folder.notes);
        model.companions = Companions::Folder(dir.to_owned());
        model.set_as_read();
        Ok(model)
    }

    /// A model of the weights that a config.json describes, wherever they are.
    ///
    /// # Errors
    /// Returns what [`family::recognise`] and `weights` return; [`Error::Malformed`] if a weight is missing,
    /// is there twice, has another shape than config.json asks for, or is one that the model does not have;
    /// [`Error::DoesNotFit`] for pruned heads that the model never had; [`Error::Unsupported`] for an adapter
    /// that is not merged, and for several models in one; and [`Error::Interrupted`] if the work is stopped.
    pub fn from_weights(mut config: Value, weights: &dyn Weights, options: &LoadOptions) -> Result<Self> {
        let names = Names::new(weights.names())?;
        let (family, mut spec, mut notices) =
            family::recognise(&config, &names.all(), options.family.as_deref())?;
        let names = names.without_prefix(family)?;
        notices.extend_from_slice(&names.notes);
        let heads = units_from_config(&config, family, &spec)?;
        let said = spec.tied_head;
        check_second_names(family, &spec, &names)?;
        let head = settle_head(family, &mut spec, &names, weights)?;
        if spec.tied_head != said {
            config[TIED] = spec.tied_head.into();
            notices.push(format!(
                "the output projection differs from the embedding, although config.json says {TIED}: it is one of its own, as in transformers"
            ));
        }
        let (mut params, mut dtypes) = (ParamSet::default(), BTreeMap::new());
        let mut read: BTreeSet<String> = head.compared.into_iter().collect();
        let table = (family.weights)(&spec);
        for weight in &table {
            interrupt::check()?;
            let instead = head.embedding.as_deref().filter(|_| weight.role.part == Part::Tokens);
            let found = match instead {
                None => names.find(&weight.hf_name, family)?,
                found => found,
            };
            match found {
                Some(name) => {
                    let tensor = read_canonical(weights, name, &table, weight, &heads)?;
                    dtypes.insert(weight.name(), weights.dtype(name)?);
                    read.insert(name.to_owned());
                    params.add(weight.name(), tensor);
                }
                None if weight.optional => {}
                None => {
                    return Err(Error::malformed(format!(
                        "the weight {} is missing: weights and config.json do not belong together, or the file is not complete",
                        weight.hf_name
                    )));
                }
            }
        }
        notices.extend(check_unread(family, &spec, &names, &read)?);
        let mut model = Self::from_params(family, spec, config, params, heads, DType::F32)?;
        model.set_dtypes(&dtypes);
        notices.extend(mixed_types(&model));
        model.notices = notices;
        Ok(model)
    }
}

const TIED: &str = "tie_word_embeddings";

/// Where the output projection stands, by the names in the file.
#[derive(Default)]
struct Head {
    /// Holds the embedding, which is not under its own name.
    embedding: Option<String>,
    /// Holds the embedding once more.
    compared: Option<String>,
}

/// Settles whether the output projection is the embedding: as in transformers a projection that differs is
/// one of its own whatever config.json says, and where only the projection is stored and the two are one, it
/// is the embedding.
fn settle_head(family: &Family, spec: &mut ModelSpec, names: &Names, weights: &dyn Weights) -> Result<Head> {
    let learns_tokens = matches!(spec.objective, Objective::CausalLm | Objective::MaskedLm);
    let Some(head) = family.output_head.filter(|_| learns_tokens) else { return Ok(Head::default()) };
    let table = (family.weights)(spec);
    let Some(embedding) = table.into_iter().find(|w| w.role.part == Part::Tokens) else {
        return Ok(Head::default());
    };
    match (spec.tied_head, names.find(head, family)?, names.find(&embedding.hf_name, family)?) {
        (true, Some(head), Some(embedding)) => {
            let alike = weights.shape(head)? == weights.shape(embedding)?;
            spec.tied_head = alike && weights.read(head)?.data() == weights.read(embedding)?.data();
            Ok(Head { compared: spec.tied_head.then(|| head.to_owned()), embedding: None })
        }
        (true, Some(head), None) => Ok(Head { embedding: Some(head.to_owned()), compared: None }),
        (false, None, Some(_)) => Err(Error::malformed(format!(
            "the weight {head} is missing: if the output projection is the embedding, config.json has to say {TIED}: true"
        ))),
        _ => Ok(Head::default()),
    }
}

/// Where config.json says that the output projection is not the embedding, transformers takes two names of a
/// weight for two weights, and computes with the other one.
fn check_second_names(family: &Family, spec: &ModelSpec, names: &Names) -> Result<()> {
    if spec.tied_head || spec.objective != Objective::MaskedLm {
        return Ok(());
    }
    for (own, other) in family.other_names {
        if names.find_as(other, family)?.is_none() {
            return Err(Error::malformed(format!(
                "the weight {other} is missing: where config.json says {TIED}: false, {own} does not stand for it, as in transformers 5"
            )));
        }
    }
    Ok(())
}

/// Refuses weights of layers that the model does not have; names in a notice what is passed over.
fn check_unread(
    family: &Family,
    spec: &ModelSpec,
    names: &Names,
    read: &BTreeSet<String>,
) -> Result<Option<String>> {
    // A weight that has been read under its other name is not missed under its own.
    let is_read =
        |name: &str| names.find_as(name, family).ok().flatten().is_some_and(|stored| read.contains(stored));
    let second = |name: &str| family.other_names.iter().any(|(own, other)| *own == name && is_read(other));
    let unread = names.unread(|stored| read.contains(stored));
    let unread: Vec<&str> = unread.filter(|name| !family.is_buffer(name) && !second(name)).collect();
    if let Some(name) = unread.iter().find(|name| family.is_layer_weight(name)) {
        return Err(Error::malformed(format!(
            "holds the weight {name}, which a {} model as config.json describes it does not have: it would compute something else without it",
            family.model_type
        )));
    }
    let class = family.architecture_of(Task::of(spec.objective)).map_or(family.model_type, |a| a.class);
    let shown = unread.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    let more = if unread.len() > 4 { ", …" } else { "" };
    let what = if unread.len() == 1 { "a tensor".to_owned() } else { format!("{} tensors", unread.len()) };
    Ok((!unread.is_empty()).then(|| {
        format!(
            "the file also holds {what} that a {class} does not have, and that is not read: {shown}{more}"
        )
    }))
}

/// A notice if not all weights have one type.
fn mixed_types(model: &Model) -> Option<String> {
    let all =
        DType::EACH.into_iter().filter(|dtype| model.params.ids().any(|id| model.dtype_of(id) == *dtype));
    let names: Vec<&str> = all.map(DType::name).collect();
    (names.len() > 1).then(|| {
        format!(
            "weights are stored as {}: each is written as it was unless one type is asked for, and config.json names {}, that of most elements",
            names.join(" and "),
            model.dtype().name()
        )
    })
}

pub(crate) fn units_from_config(config: &Value, family: &Family, spec: &ModelSpec) -> Result<UnitMap> {
    let Some(ours) = config.get(CONFIG_KEY) else {
        return match &config["pruned_heads"] {
            Value::Null => Ok(spec.full_units()),
            _ => pruned_by_transformers(config, spec),
        };
    };
    let version = &ours["format_version"];
    if version.as_u64() != Some(FORMAT) {
        return Err(Error::unsupported(format!(
            "config.json: {CONFIG_KEY}.format_version is {version}: this program reads version {FORMAT}"
        )));
    }
    let units = spec.full_units().with_record(&ours["units"], &family.paths(spec));
    units.map_err(|e| Error::malformed(format!("config.json: {CONFIG_KEY}.units: {e}")))
}

/// transformers 4 recorded pruning as `pruned_heads`: layer → original indices removed.
fn pruned_by_transformers(config: &Value, spec: &ModelSpec) -> Result<UnitMap> {
    let pruned: BTreeMap<usize, Vec<usize>> = serde_json::from_value(config["pruned_heads"].clone())
        .map_err(|e| {
            Error::malformed(format!(
                "config.json: pruned_heads: expected lists of heads by layer, as in {{\"0\": [1, 3]}}: {e}"
            ))
        })?;
    let mut heads = spec.full_units();
    heads.remove(&heads_by_layer(pruned))?;
    Ok(heads)
}

/// Reads one weight in canonical layout, after its stored shape has been checked.
fn read_canonical(
    weights: &dyn Weights,
    name: &str,
    table: &[Weight],
    weight: &Weight,
    heads: &UnitMap,
) -> Result<Tensor> {
    let want = weight.shape(heads);
    let (own, outputs) = rows_in_tensor(table, weight, heads);
    let stored = match want[..] {
        [_, input] if weight.layout.is_transposed() => vec![input, outputs],
        [_, input] => vec![outputs, input],
        _ => vec![outputs],
    };
    let found = weights.shape(name)?;
    if found != stored {
        return Err(Error::malformed(format!(
            "tensor {name} has shape {found:?}, but config.json asks for {stored:?}: weights and config do not belong together"
        )));
    }
    // Matrices as they lie are not copied. Vectors are small, and kernels read them as `f32`.
    let as_it_lies = weight.layout == Layout::Plain && want.len() == 2;
    if let Some(stored) = if as_it_lies { weights.stored(name)? } else { None } {
        return Ok(stored);
    }
    let read = weights.read(name)?;
    Ok(match (want.len(), weight.layout.is_transposed()) {
        _ if outputs == want[0] && !weight.layout.is_transposed() => read,
        (1, _) => read.take_cols(&own).reshaped(&want),
        (_, true) if outputs == want[0] => read.transposed(),
        (_, true) => read.take_cols(&own).transposed(),
        (_, false) => read.take_rows(&own),
    })
}
