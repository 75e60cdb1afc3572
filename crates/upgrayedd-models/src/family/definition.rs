//! A family as data, with the table of its weights.

use serde_json::Value;

use super::config::Config;
use super::modeling::Modeling;
use super::shape::Shape;
use super::task::Task;
use crate::Result;
use crate::keys::{Fate, Keys, fate_of};
use crate::spec::ModelSpec;
use crate::units::Paths;
use crate::weights::{Kind, Part, Role, Weight};

/// A model family, as data.
pub struct Family {
    /// The value of `model_type`.
    pub model_type: &'static str,
    /// Classes of transformers' that can be read; the first of a task is the one that is written.
    pub architectures: &'static [Architecture],
    /// The modeling file that a pruned model of the family brings along: a class for each of `architectures`,
    /// and `UpgrayeddModel` without any head.
    pub modeling: Modeling,
    /// Prefix of the base model's tensors.
    pub base_prefix: &'static str,
    /// A base tensor (without prefix) that tells the family.
    pub marker: &'static str,
    /// A tensor that tells that the checkpoint has a task head, and which.
    pub task_markers: &'static [(&'static str, Task)],
    /// Other names of configuration keys: `(other, own)`.
    pub config_aliases: &'static [(&'static str, &'static str)],
    /// What becomes of the keys of its configuration, beside those that all families have.
    pub keys: &'static [Keys],
    /// The output projection that may be the embedding.
    pub output_head: Option<&'static str>,
    /// Other names of tensors, which go first where both are there: `(own, other)`.
    pub other_names: &'static [(&'static str, &'static str)],
    /// What tensors were called in older files: `(own, old)`.
    pub old_names: &'static [(&'static str, &'static str)],
    /// The tokenizer class that transformers takes for the family.
    pub tokenizer: TokenizerClass,
    /// Whether transformers adds token types to the tokens through the token embedding.
    pub types_are_tokens: bool,
    /// How names of tensors end that are computed anew and not read.
    pub buffers: &'static [&'static str],
    /// The keys of its configuration that say how large layers are.
    pub shape: Shape,
    /// config.json → shape.
    pub parse: fn(&Config<'_>, Task) -> Result<ModelSpec>,
    /// All weights of a model of this shape, in the order in which it keeps them.
    pub weights: fn(&ModelSpec) -> Vec<Weight>,
    /// The module path of a layer's attention, the layer's name in files and in Python.
    pub module: fn(usize) -> String,
}

impl Family {
    /// Module paths of where the layers' units belong: channels to the module that has the projection into them.
    pub fn paths(&self, spec: &ModelSpec) -> Paths {
        let table = (self.weights)(spec);
        let up = table.iter().filter(|w| w.role == Role { part: Part::Up, kind: Kind::Weight });
        let parent = |weight: &Weight| {
            let path = weight.hf_name.rsplitn(3, '.').nth(2);
            path.unwrap_or_default().to_owned()
        };
        Paths::new((0..spec.num_layers()).map(self.module).collect(), up.map(parent).collect())
    }
}

/// Which tokenizer class transformers takes for a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerClass {
    /// The one that the files name; tokenizer.json as it is if they name none.
    Named,
    /// The one that the files name; this one if they name none.
    Usually(&'static str),
    /// This one, whatever the files name.
    Always(&'static str),
}

/// A class of transformers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// Its name.
    pub class: &'static str,
    /// What its head is for.
    pub task: Task,
    /// The automatic class that makes it.
    pub auto: &'static str,
    /// The class of the family's modeling file that stands for it where heads are missing.
    pub pruned: &'static str,
}

impl Architecture {
    /// A causal language model.
    pub const fn causal_lm(class: &'static str) -> Self {
        Self { class, task: Task::CausalLm, auto: "AutoModelForCausalLM", pruned: "UpgrayeddForCausalLM" }
    }

    /// A masked language model.
    pub const fn masked_lm(class: &'static str) -> Self {
        Self { class, task: Task::MaskedLm, auto: "AutoModelForMaskedLM", pruned: "UpgrayeddForMaskedLM" }
    }

    /// A classifier of sequences, or a regression.
    pub const fn classifier(class: &'static str) -> Self {
        let (auto, pruned) = ("AutoModelForSequenceClassification", "UpgrayeddForSequenceClassification");
        Self { class, task: Task::Classifier, auto, pruned }
    }

    /// A plain encoder.
    pub const fn encoder(class: &'static str) -> Self {
        Self { class, task: Task::Encoder, auto: "AutoModel", pruned: "UpgrayeddModel" }
    }
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.model_type)
    }
}

impl Family {
    /// What an architecture learns, the classes of pruned models included.
    pub(super) fn task_of(&self, class: &str) -> Option<Task> {
        self.architectures.iter().find(|a| a.class == class || a.pruned == class).map(|a| a.task)
    }

    /// The shape that a configuration says.
    ///
    /// # Errors
    /// Returns [`crate::Error::OutOfRange`] or [`crate::Error::UnknownName`] for a value that a key cannot have,
    /// [`crate::Error::Unsupported`] for one that this program does not do, and [`crate::Error::Malformed`] if
    /// the configuration contradicts itself.
    pub fn spec(&self, config: &Value, task: Task) -> Result<ModelSpec> {
        let spec = (self.parse)(&Config::new(config, self.config_aliases), task)?;
        spec.check()?;
        Ok(spec)
    }

    /// Whether a key of the configuration counts.
    pub(crate) fn obeys(&self, key: &str) -> bool {
        matches!(fate_of(self.keys, key), Some(Fate::Used))
    }

    /// The class of transformers' for a task.
    pub fn architecture_of(&self, task: Task) -> Option<&'static Architecture> {
        self.architectures.iter().find(|a| a.task == task)
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
            name.strip_suffix(end)
                .is_some_and(|front| front.is_empty() || end.starts_with('.') || front.ends_with('.'))
        })
    }
}
