//! What is measured and what came of it, as plain data. Imports nothing but models and devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use upgrayedd_nn::Device;

use crate::model::Cost;

/// The GPU that a run computes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As the option has it: `cuda:0`.
    pub device: String,
    /// What it is called.
    pub card: String,
    /// What it multiplies with: bf16, tf32, f32.
    pub precision: String,
}

impl Gpu {
    /// The one that `device` is; `None` for the CPU.
    pub fn of(device: Device) -> Option<Self> {
        let (card, precision) = (device.card()?, device.precision()?.to_string());
        Some(Self { device: device.to_string(), card, precision })
    }
}

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {})", self.device, self.card, self.precision)
    }
}

/// A measurement of quality, with what it takes to repeat it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Token-weighted mean negative log-likelihood, in nats; for plain encoders the mean squared distance of
    /// the hidden states from the reference's, as a share of the latter's squared length; for regression the
    /// mean squared error.
    pub loss: f64,
    /// exp(loss); of masked tokens for a masked language model. Absent for classifiers and plain encoders.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub perplexity: Option<f64>,
    /// Share of right labels, for classifiers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
    /// F1 over all labels of all sequences (micro), for several labels a sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// Spearman's rank correlation of predicted and true numbers, for regression; absent where either are all
    /// equal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spearman: Option<f64>,
    /// Targets that counted.
    pub tokens: u64,
    /// Sequences measured.
    pub sequences: usize,
    /// "chunks": non-overlapping windows, each token predicted from its window alone; "masked": seeded masked
    /// tokens; "labels"; "numbers"; "hidden states".
    pub protocol: String,
    /// Tokens per window at most.
    pub window: usize,
    /// blake3 of the data files.
    pub data_hash: String,
}

/// Tokens per second, measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens per second of whole sequences (prefill, scoring, evaluation), median.
    pub forward: f64,
    /// Tokens per second when generating one at a time; absent for models that do not generate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decode: Option<f64>,
    /// Sequences per batch of the forward measurement.
    pub batch: usize,
    /// Tokens per sequence.
    pub length: usize,
}

/// A layer as a run found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStart {
    /// Module path of its attention.
    pub attention: String,
    /// Module path of its MLP.
    pub mlp: String,
    /// Query heads that are there, original indices.
    pub heads: Vec<usize>,
    /// Query heads of the unpruned model.
    pub num_heads: usize,
    /// Key/value heads of the unpruned model.
    pub num_kv_heads: usize,
    /// Channels that are there.
    pub channels: usize,
    /// Channels of the unpruned model.
    pub num_channels: usize,
}

/// What came of one layer's writer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerRefit {
    /// λ as a share of the mean square of the inputs; absent if no λ helped.
    pub ridge: Option<f64>,
    /// Share of the held-out squared distance to the parent's stream that is gone.
    pub repaired: f64,
}

/// What a cycle came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CycleRecord {
    /// From 1.
    pub cycle: usize,
    /// Units removed; 0 where numbers ceased to be finite before learning.
    pub pruned: usize,
    /// Units grown back; the same.
    pub grown: usize,
    /// Query heads at the end.
    pub active: usize,
    /// Held-out loss after pruning; `None` where numbers were not finite any more.
    pub loss_pruned: Option<f64>,
    /// Held-out loss after learning; `None` where numbers were not finite any more.
    pub loss_learned: Option<f64>,
    /// Whether the result was kept.
    pub accepted: bool,
}

/// One side of the before → after table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Held-out quality.
    pub evaluation: Evaluation,
    /// Size and arithmetic.
    pub cost: Cost,
    /// Timed on this machine, both sides in turn.
    pub speed: Speed,
    /// Query heads left in each layer, original indices.
    pub heads: Vec<Vec<usize>>,
    /// Channels left in each layer.
    pub channels: Vec<usize>,
}

/// A text, and how the models continue it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What was continued.
    pub prompt: String,
    /// By the model as given.
    pub before: String,
    /// By the result.
    pub after: String,
}

/// The outcome of a run, `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The model as given.
    pub before: Snapshot,
    /// The result as stored.
    pub after: Snapshot,
    /// Query heads of each layer of the unpruned model.
    pub heads_per_layer: Vec<usize>,
    /// Channels of each layer of the unpruned model.
    pub channels_per_layer: Vec<usize>,
    /// Cycle by cycle.
    pub cycles: Vec<CycleRecord>,
    /// The dense model after learning the same way, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Snapshot>,
    /// Targets that the dense model learned from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_tokens_learned: Option<u64>,
    /// Texts that both models continued, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
    /// What the result was computed and timed on; absent for the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// Targets learned from.
    pub tokens_learned: u64,
    /// What loads the result, and what would make it load anywhere, in a sentence.
    pub loads: String,
    /// The run folder.
    pub run: PathBuf,
}
