//! The families there are, and which of them a checkpoint is of.

use serde_json::Value;

use super::definition::Family;
use super::task::Task;
use super::{
    bert, distilbert, gemma, gpt_neox, gpt2, llama, mistral, modernbert, mpnet, olmo2, opt, phi3, qwen2,
    qwen3, roberta, smollm3,
};
use crate::keys;
use crate::registry::{Named, Registry};
use crate::spec::ModelSpec;
use crate::{Error, Result};

static FAMILIES: Registry<Family> = Registry::new(&[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &smollm3::FAMILY,
    &gemma::GEMMA3,
    &gemma::GEMMA2,
    &phi3::FAMILY,
    &olmo2::FAMILY,
    &gpt_neox::FAMILY,
    &opt::FAMILY,
    &gpt2::FAMILY,
    &bert::FAMILY,
    &roberta::FAMILY,
    &roberta::XLM_ROBERTA,
    &roberta::CAMEMBERT,
    &distilbert::FAMILY,
    &mpnet::FAMILY,
    &modernbert::FAMILY,
]);

impl Named for Family {
    const KIND: &'static str = "model family";

    fn name(&self) -> &'static str {
        self.model_type
    }
}

/// Every family, in the order in which messages name them.
pub fn all() -> Vec<&'static Family> {
    FAMILIES.all()
}

/// Adds a family of the caller's own, for all that this process reads from now on.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] if the name is taken.
pub fn register(family: &'static Family) -> Result<()> {
    FAMILIES.register(family)
}

/// The names of all families.
pub fn names() -> Vec<&'static str> {
    FAMILIES.names()
}

/// The family called `name`.
///
/// # Errors
/// Returns [`Error::UnknownName`] if there is no such family.
pub fn named(name: &str) -> Result<&'static Family> {
    FAMILIES.named(name)
}

/// Finds the family of a checkpoint and reads its config. `wanted` is the user's word where config.json has
/// none.
///
/// Returns notes on keys that are passed over, too.
///
/// # Errors
/// Returns [`Error::UnknownName`] if there is no family `wanted`, [`Error::DoesNotFit`] if the checkpoint is
/// of another, [`Error::Unsupported`] for a family, an architecture or a setting that this program does not
/// do, [`Error::OutOfRange`] or [`Error::UnknownName`] for a value that a key cannot have, and
/// [`Error::Malformed`] if config.json contradicts itself or nothing tells the family.
pub fn recognise(
    config: &Value,
    tensor_names: &[String],
    wanted: Option<&str>,
) -> Result<(&'static Family, ModelSpec, Vec<String>)> {
    if !config.is_object() {
        return Err(Error::malformed("config.json: expected an object of keys and values"));
    }
    let family = family_of(config, tensor_names, wanted)?;
    let tables: Vec<keys::Keys> = family.keys.iter().copied().chain([keys::COMMON]).collect();
    let mut notes =
        keys::check("config.json", config, &tables, |key| keys::GENERATION_IN_CONFIG.contains(&key))?;
    let mut task = task_of(family, config, tensor_names, wanted)?;
    if task != Task::Encoder && is_without_head(family, tensor_names) {
        task = Task::Encoder;
        notes.push(
            "config.json names an architecture with a head, of which there is no weight: it is read as a plain encoder"
                .to_owned(),
        );
    }
    Ok((family, family.spec(config, task)?, notes))
}

/// The first architecture, if config.json names any.
fn architecture(config: &Value) -> Result<Option<&str>> {
    let refuse = |what: &str, value: &Value| {
        Error::malformed(format!("config.json: architectures {what} {value}: expected names of classes"))
    };
    match config.get("architectures") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(names)) => {
            names.first().map(|name| name.as_str().ok_or_else(|| refuse("lists", name))).transpose()
        }
        Some(other) => Err(refuse("is", other)),
    }
}

/// Whether one of the tensors is that of the base model, whatever stands before its name.
fn has(tensor_names: &[String], name: &str) -> bool {
    tensor_names
        .iter()
        .any(|t| t.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.')))
}

/// The families whose weights these may be; those under the prefix of the base model go first.
fn by_tensors(tensor_names: &[String]) -> Vec<&'static Family> {
    let with = |prefixed: bool| -> Vec<&'static Family> {
        let marker = |f: &Family| {
            if prefixed { format!("{}{}", f.base_prefix, f.marker) } else { f.marker.to_owned() }
        };
        all().into_iter().filter(|f| has(tensor_names, &marker(f))).collect()
    };
    Some(with(true)).filter(|found| !found.is_empty()).unwrap_or_else(|| with(false))
}

fn family_of(config: &Value, tensor_names: &[String], wanted: Option<&str>) -> Result<&'static Family> {
    let supported = names().join(", ");
    let said = match config.get("model_type") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(other) => {
            return Err(Error::out_of_range("config.json: model_type", other, format!("one of {supported}")));
        }
    };
    if let Some(name) = said {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != name) {
            return Err(Error::does_not_fit(format!(
                "config.json says model_type {name:?}, so family {wanted} cannot be right"
            )));
        }
        return all().into_iter().find(|f| f.model_type == name).ok_or_else(|| {
            Error::unsupported(format!(
                "config.json: model_type {name:?} is not supported: expected one of {supported}"
            ))
        });
    }
    let architecture = architecture(config)?;
    let by_architecture =
        all().into_iter().find(|f| f.architectures.iter().any(|a| Some(a.class) == architecture));
    let told = by_architecture.map_or_else(|| by_tensors(tensor_names), |family| vec![family]);
    let names = || told.iter().map(|family| family.model_type).collect::<Vec<_>>().join(", ");
    match (wanted, &told[..]) {
        (Some(wanted), [_, ..]) if told.iter().all(|family| family.model_type != wanted) => {
            Err(Error::does_not_fit(format!(
                "the architecture or the tensors are those of another model ({}), so family {wanted} cannot be right",
                names()
            )))
        }
        (Some(wanted), _) => named(wanted),
        (None, [told]) => Ok(told),
        (None, []) => Err(Error::malformed(format!(
            "config.json has no model_type and neither its architectures nor the tensor names tell the family: \
             say which as family ({supported})"
        ))),
        (None, _) => Err(Error::malformed(format!(
            "config.json has neither model_type nor architectures, and the tensor names are those of several families: say which as family ({})",
            names()
        ))),
    }
}

/// Whether the weights are those of an encoder without any head, as sentence encoders are stored.
fn is_without_head(family: &'static Family, tensor_names: &[String]) -> bool {
    family.architecture_of(Task::Encoder).is_some()
        && has(tensor_names, family.marker)
        && !family.task_markers.iter().any(|(name, _)| has(tensor_names, name))
}

/// What the checkpoint's head is for: as its architecture says, else as its tensors say.
fn task_of(
    family: &'static Family,
    config: &Value,
    tensor_names: &[String],
    wanted: Option<&str>,
) -> Result<Task> {
    let from_tensors = || {
        let marked = family.task_markers.iter().find(|(name, _)| has(tensor_names, name));
        marked.map_or(family.architectures[0].task, |(_, task)| *task)
    };
    let Some(name) = architecture(config)? else { return Ok(from_tensors()) };
    match family.task_of(name) {
        Some(task) => Ok(task),
        None if wanted.is_some() => Ok(from_tensors()),
        None => {
            let known: Vec<&str> = family.architectures.iter().map(|a| a.class).collect();
            Err(Error::unsupported(format!(
                "config.json: architecture {name:?} is not supported: expected one of {}; if it computes what one of them does, \
                 family {} reads it as what its tensors say",
                known.join(", "),
                family.model_type
            )))
        }
    }
}
