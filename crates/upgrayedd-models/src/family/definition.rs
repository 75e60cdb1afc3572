//! A family as data, with the table of its weights.

use super::config::Config;
use crate::Result;
use crate::keys::Keys;
use crate::spec::{ModelSpec, Objective};
use crate::weights::Weight;

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
    /// What becomes of the keys of its configuration, beside [`COMMON`](crate::keys::COMMON).
    pub keys: Keys,
    /// The output projection that may be the embedding.
    pub output_head: Option<&'static str>,
    /// Other names of tensors, which go first where both are there: `(own, other)`.
    pub other_names: &'static [(&'static str, &'static str)],
    /// Whether transformers adds token types to the tokens through the token embedding.
    pub types_are_tokens: bool,
    /// How names of tensors end that are computed anew and not read.
    pub buffers: &'static [&'static str],
    pub(super) parse: fn(&Config<'_>, Task) -> Result<ModelSpec>,
    pub(super) weights: fn(&ModelSpec) -> Vec<Weight>,
    pub(super) module: fn(usize) -> String,
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

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.model_type)
    }
}

impl Family {
    /// The module path of a layer's attention, the layer's name in files and in Python.
    pub fn attention_module(&self, layer: usize) -> String {
        (self.module)(layer)
    }

    /// What an architecture learns, the classes of pruned models included.
    pub(super) fn task_of(&self, architecture: &str) -> Option<Task> {
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
    pub fn weights(&self, spec: &ModelSpec) -> Vec<Weight> {
        (self.weights)(spec)
    }
}
