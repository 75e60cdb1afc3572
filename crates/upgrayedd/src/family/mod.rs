//! Model families: config.json → [`ModelSpec`], Hugging Face tensor names ↔ canonical weights. One file a family.

mod bert;
mod config;
mod gpt2;
pub mod keys;
mod llama;
mod rope;

use serde_json::Value;

use crate::error::unknown_name;
use crate::model::{ModelSpec, Objective};
use crate::{Error, Result};

pub(crate) use config::Config;
use keys::Keys;

/// How a canonical weight lies in a Hugging Face tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// As it is.
    Plain,
    /// Transposed: GPT-2's `Conv1D` stores `(in, out)`.
    Transposed,
    /// The `part`-th of three equal column blocks of a transposed tensor (or of a bias): GPT-2's fused Q, K, V.
    FusedThird(usize),
}

/// Where a canonical weight comes from and goes to.
#[derive(Debug, Clone)]
pub struct HfTensor {
    /// The canonical name, as in `layers.3.attn.q.weight`.
    pub canonical: String,
    /// The Hugging Face name, with the base prefix.
    pub name: String,
    /// How it is stored there.
    pub layout: Layout,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

/// A model family, as data.
pub struct Family {
    /// The value of `model_type`.
    pub model_type: &'static str,
    /// Architectures that can be read, and what they learn.
    pub architectures: &'static [(&'static str, Task)],
    /// Prefix of the base model's tensors.
    pub base_prefix: &'static str,
    /// A base tensor (without prefix) that tells the family.
    pub marker: &'static str,
    /// A tensor that tells that the checkpoint has a task head, and which.
    pub task_markers: &'static [(&'static str, Task)],
    /// Other names of configuration keys: `(other, own)`.
    pub config_aliases: &'static [(&'static str, &'static str)],
    /// What becomes of the keys of its configuration, beside [`keys::COMMON`].
    pub keys: Keys,
    /// The output projection that may be the embedding.
    pub output_head: Option<&'static str>,
    /// Other names of tensors, which go first where both are there: `(own, other)`.
    pub other_names: &'static [(&'static str, &'static str)],
    /// Whether transformers adds token types to the tokens through the token embedding.
    pub types_are_tokens: bool,
    /// How names of tensors end that are computed anew and not read.
    pub buffers: &'static [&'static str],
    parse: fn(&Config<'_>, Task) -> Result<ModelSpec>,
    tensors: fn(&ModelSpec) -> Vec<HfTensor>,
    module: fn(usize) -> String,
}

/// What a checkpoint's head is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Next-token prediction.
    CausalLm,
    /// Masked-token prediction.
    MaskedLm,
    /// Sequence classification.
    Classifier,
    /// No head.
    Encoder,
}

impl Task {
    /// What the class of a pruned model's modeling file is called, after `Upgrayedd`.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::CausalLm => "ForCausalLM",
            Self::MaskedLm => "ForMaskedLM",
            Self::Classifier => "ForSequenceClassification",
            Self::Encoder => "Model",
        }
    }

    /// The task of a model with this objective.
    pub(crate) fn of(objective: Objective) -> Self {
        match objective {
            Objective::CausalLm => Self::CausalLm,
            Objective::MaskedLm => Self::MaskedLm,
            Objective::Classifier { .. } => Self::Classifier,
            Objective::Encoder => Self::Encoder,
        }
    }
}

/// Every family, in the order in which messages name them.
pub const ALL: [&Family; 3] = [&llama::FAMILY, &gpt2::FAMILY, &bert::FAMILY];

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.model_type)
    }
}

impl Family {
    /// The family called `name`.
    pub fn named(name: &str) -> Result<&'static Self> {
        let names = ALL.map(|f| f.model_type);
        ALL.into_iter().find(|f| f.model_type == name).ok_or_else(|| unknown_name("model family", name, &names))
    }

    /// The module path of a layer's attention, the layer's name in files and in Python.
    pub fn attention_module(&self, layer: usize) -> String {
        (self.module)(layer)
    }

    /// What an architecture learns, the classes of pruned models included.
    fn task_of(&self, architecture: &str) -> Option<Task> {
        let own = architecture.strip_prefix("Upgrayedd");
        let known = self.architectures.iter();
        known.filter(|(name, task)| *name == architecture || own == Some(task.class())).map(|(_, task)| *task).next()
    }

    /// transformers' class for a task.
    pub(crate) fn architecture_of(&self, task: Task) -> Option<&'static str> {
        self.architectures.iter().find(|(_, t)| *t == task).map(|(name, _)| *name)
    }

    /// Whether a tensor's name is that of a weight inside a layer.
    pub(crate) fn is_layer_weight(&self, name: &str) -> bool {
        let base = name.strip_prefix(self.base_prefix).unwrap_or(name);
        let layers = self.marker.split("0.").next().unwrap_or_default();
        base.starts_with(layers)
    }

    /// Whether a tensor holds what is computed anew: positions, masks, frequencies.
    pub(crate) fn is_buffer(&self, name: &str) -> bool {
        self.buffers.iter().any(|end| {
            name.strip_suffix(end).is_some_and(|front| front.is_empty() || end.starts_with('.') || front.ends_with('.'))
        })
    }

    /// All weights of a model of this family.
    pub fn tensors(&self, spec: &ModelSpec) -> Vec<HfTensor> {
        (self.tensors)(spec)
    }
}

/// Finds the family of a checkpoint and reads its config. `wanted` is the user's word where config.json has none.
///
/// Returns notes on keys that are passed over, too.
pub fn recognise(config: &Value, tensor_names: &[String], wanted: Option<&str>) -> Result<(ModelSpec, Vec<String>)> {
    if !config.is_object() {
        return Err(Error::invalid("config.json: expected an object of keys and values"));
    }
    let family = family_of(config, tensor_names, wanted)?;
    let tables = [family.keys, keys::COMMON];
    let notes = keys::check("config.json", config, &tables, |key| keys::GENERATION_IN_CONFIG.contains(&key))?;
    let task = task_of(family, config, tensor_names, wanted)?;
    let spec = (family.parse)(&Config::new(config, family.config_aliases), task)?;
    spec.check()?;
    Ok((spec, notes))
}

/// The first architecture, if config.json names any.
fn architecture(config: &Value) -> Result<Option<&str>> {
    let refuse = |what: &str, value: &Value| {
        Error::invalid(format!("config.json: architectures {what} {value}: expected names of classes"))
    };
    match config.get("architectures") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(names)) => names.first().map(|name| name.as_str().ok_or_else(|| refuse("lists", name))).transpose(),
        Some(other) => Err(refuse("is", other)),
    }
}

/// Whether one of the tensors is that of the base model, whatever stands before its name.
fn has(tensor_names: &[String], name: &str) -> bool {
    tensor_names.iter().any(|t| t.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.')))
}

fn family_of(config: &Value, tensor_names: &[String], wanted: Option<&str>) -> Result<&'static Family> {
    let supported = ALL.map(|f| f.model_type).join(", ");
    let said = match config.get("model_type") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(other) => return Err(Error::invalid(format!("config.json: model_type is {other}: expected one of {supported}"))),
    };
    if let Some(name) = said {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != name) {
            return Err(Error::invalid(format!("config.json says model_type {name:?}, so --family {wanted} cannot be right")));
        }
        return ALL.into_iter().find(|f| f.model_type == name).ok_or_else(|| {
            Error::invalid(format!("config.json: model_type {name:?} is not supported: expected one of {supported}"))
        });
    }
    let architecture = architecture(config)?;
    let by_architecture = ALL.into_iter().find(|f| f.architectures.iter().any(|(a, _)| Some(*a) == architecture));
    let told = by_architecture.or_else(|| ALL.into_iter().find(|f| has(tensor_names, f.marker)));
    match (wanted, told) {
        (Some(wanted), Some(told)) if wanted != told.model_type => Err(Error::invalid(format!(
            "the architecture or the tensors are those of a {} model, so --family {wanted} cannot be right",
            told.model_type
        ))),
        (Some(wanted), _) => Family::named(wanted),
        (None, Some(told)) => Ok(told),
        (None, None) => Err(Error::invalid(format!(
            "config.json has no model_type and neither its architectures nor the tensor names tell the family: \
             say which with --family ({supported})"
        ))),
    }
}

/// What the checkpoint's head is for: as its architecture says, else as its tensors say.
fn task_of(family: &'static Family, config: &Value, tensor_names: &[String], wanted: Option<&str>) -> Result<Task> {
    let from_tensors = || {
        let marked = family.task_markers.iter().find(|(name, _)| has(tensor_names, name));
        marked.map_or(family.architectures[0].1, |(_, task)| *task)
    };
    let Some(name) = architecture(config)? else { return Ok(from_tensors()) };
    match family.task_of(name) {
        Some(task) => Ok(task),
        None if wanted.is_some() => Ok(from_tensors()),
        None => {
            let known: Vec<&str> = family.architectures.iter().map(|(a, _)| *a).collect();
            Err(Error::invalid(format!(
                "config.json: architecture {name:?} is not supported: expected one of {}; if it computes what one of them does, \
                 --family {} reads it as what its tensors say",
                known.join(", "),
                family.model_type
            )))
        }
    }
}

/// Shorthand for the tensor tables.
fn plain(canonical: impl Into<String>, name: impl Into<String>) -> HfTensor {
    HfTensor { canonical: canonical.into(), name: name.into(), layout: Layout::Plain, optional: false }
}
