//! Model families: config.json → [`ModelSpec`], Hugging Face tensor names ↔ canonical weights. One file a family.

mod bert;
mod gpt2;
mod llama;

use serde_json::Value;

use crate::error::unknown_name;
use crate::model::{ModelSpec, Objective};
use crate::{Error, Result};

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

    /// Whether a tensor's name is that of a weight inside a layer; buffers that old checkpoints hold are not.
    pub(crate) fn is_layer_weight(&self, name: &str) -> bool {
        const BUFFERS: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
        let base = name.strip_prefix(self.base_prefix).unwrap_or(name);
        let layers = self.marker.split("0.").next().unwrap_or_default();
        base.starts_with(layers) && !BUFFERS.iter().any(|b| base.ends_with(b))
    }

    /// All weights of a model of this family.
    pub fn tensors(&self, spec: &ModelSpec) -> Vec<HfTensor> {
        (self.tensors)(spec)
    }
}

/// Finds the family of a checkpoint and reads its config. `wanted` is the user's word where config.json has none.
pub fn recognise(config: &Value, tensor_names: &[String], wanted: Option<&str>) -> Result<ModelSpec> {
    let architecture = config["architectures"][0].as_str();
    let by_architecture = || ALL.into_iter().find(|f| f.architectures.iter().any(|(a, _)| Some(*a) == architecture));
    let has =
        |family: &Family, name: &str| tensor_names.iter().any(|t| t == name || t.strip_prefix(family.base_prefix) == Some(name));
    let supported = ALL.map(|f| f.model_type).join(", ");
    let family = match (wanted, config["model_type"].as_str()) {
        (Some(name), Some(said)) if name != said => {
            return Err(Error::invalid(format!("config.json says model_type {said:?}, so --family {name} cannot be right")));
        }
        (Some(name), _) => Family::named(name)?,
        (None, Some(name)) => ALL
            .into_iter()
            .find(|f| f.model_type == name)
            .ok_or_else(|| Error::invalid(format!("model_type {name:?} is not supported: expected one of {supported}")))?,
        (None, None) => by_architecture().or_else(|| ALL.into_iter().find(|f| has(f, f.marker))).ok_or_else(|| {
            Error::invalid(format!(
                "config.json has no model_type and neither its architectures nor the tensor names tell the family: \
                 say which with --family ({supported})"
            ))
        })?,
    };
    let from_tensors = || family.task_markers.iter().find(|(name, _)| has(family, name)).map(|(_, task)| *task);
    let task = match architecture {
        Some(architecture) => match family.task_of(architecture) {
            // The files overrule a base-model label: sentence encoders are often saved from a larger class, and the reverse.
            Some(Task::Encoder) | None if wanted.is_some() => from_tensors().unwrap_or(family.architectures[0].1),
            Some(task) => task,
            None => {
                let known: Vec<&str> = family.architectures.iter().map(|(a, _)| *a).collect();
                return Err(Error::invalid(format!(
                    "architecture {architecture:?} is not supported: expected one of {}",
                    known.join(", ")
                )));
            }
        },
        None => from_tensors().unwrap_or(family.architectures[0].1),
    };
    let spec = (family.parse)(&Config(config), task)?;
    spec.check()?;
    Ok(spec)
}

/// Typed access to config.json with errors that name the key.
pub(crate) struct Config<'a>(pub(crate) &'a Value);

impl Config<'_> {
    /// A positive integer of sane size; `default` stands in for a missing or null key.
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        const LARGEST: u64 = 1 << 24;
        match (&self.0[key], default) {
            (Value::Null, Some(default)) => Ok(default),
            (value, _) => match value.as_u64() {
                Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
                _ => Err(Error::invalid(format!("config.json: {key} is {value}: expected a whole number from 1 to {LARGEST}"))),
            },
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        match &self.0[key] {
            Value::Null => Ok(default),
            value => value
                .as_f64()
                .filter(|v| v.is_finite() && *v > 0.0)
                .ok_or_else(|| Error::invalid(format!("config.json: {key} is {value}: expected a positive number"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match &self.0[key] {
            Value::Null => Ok(default),
            Value::Bool(value) => Ok(*value),
            value => Err(Error::invalid(format!("config.json: {key} is {value}: expected true or false"))),
        }
    }

    fn activation(&self, key: &str, default: &str) -> Result<upgrayedd_nn::ops::Activation> {
        use upgrayedd_nn::ops::Activation::{Gelu, GeluTanh, Relu, Silu};
        match self.0[key].as_str().unwrap_or(default) {
            "gelu" => Ok(Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(GeluTanh),
            "silu" | "swish" => Ok(Silu),
            "relu" => Ok(Relu),
            other => Err(unknown_name(
                &format!("{key} in config.json"),
                other,
                &["gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "relu"],
            )),
        }
    }

    fn objective(&self, task: Task) -> Result<Objective> {
        Ok(match task {
            Task::CausalLm => Objective::CausalLm,
            Task::MaskedLm => Objective::MaskedLm,
            Task::Encoder => Objective::Encoder,
            Task::Classifier => {
                let from_names = self.0["id2label"].as_object().map(serde_json::Map::len).filter(|n| *n > 0);
                let labels = self.size("num_labels", Some(from_names.unwrap_or(2)))?;
                let kind = if labels == 1 { "regression" } else { "single_label_classification" };
                if let Some(other) = self.0["problem_type"].as_str().filter(|k| *k != kind) {
                    return Err(Error::invalid(format!(
                        "config.json: problem_type {other:?} with {labels} labels is not supported: expected {kind:?}"
                    )));
                }
                Objective::Classifier { labels }
            }
        })
    }
}

/// Shorthand for the tensor tables.
fn plain(canonical: impl Into<String>, name: impl Into<String>) -> HfTensor {
    HfTensor { canonical: canonical.into(), name: name.into(), layout: Layout::Plain, optional: false }
}
