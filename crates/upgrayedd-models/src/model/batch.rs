//! What goes into a forward pass, and what is wanted from inside it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use upgrayedd_nn::ops::{EntropyProbe, IGNORE};
use upgrayedd_nn::{Tensor, Var};

use super::state::Model;
use crate::units::LayerSite;
use crate::weights::Writer;

/// Sequences of equal (padded) length, ready for the model.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `(batch · len)`.
    pub tokens: Arc<Vec<u32>>,
    /// Sequences.
    pub batch: usize,
    /// Positions per sequence.
    pub len: usize,
    /// `(batch · len)`, 0 marks padding; `None` where there is none.
    pub mask: Option<Vec<u8>>,
    /// Token types (segments), `(batch · len)`; `None` where all are 0.
    pub types: Option<Arc<Vec<u32>>>,
    /// What to predict: per position for language models (already shifted), per sequence for classifiers;
    /// [`IGNORE`] does not count.
    pub targets: Vec<i64>,
    /// For regression and for several labels: what to predict, per sequence as many numbers as the model has
    /// outputs.
    pub values: Vec<f32>,
}

impl Batch {
    /// Targets that count, sequence by sequence.
    pub fn counted_per_sequence(&self) -> Vec<u64> {
        let per_sequence = self.targets.len() / self.batch.max(1);
        let sequences = self.targets.chunks(per_sequence.max(1));
        sequences.map(|s| s.iter().filter(|&&t| t != IGNORE).count() as u64).collect()
    }

    /// Some of its sequences.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        fn part<T: Clone>(values: &[T], batch: usize, rows: &Range<usize>) -> Vec<T> {
            let each = values.len() / batch.max(1);
            values[rows.start * each..rows.end * each].to_vec()
        }
        Self {
            tokens: Arc::new(part(&self.tokens, self.batch, &rows)),
            batch: rows.len(),
            len: self.len,
            mask: self.mask.as_ref().map(|mask| part(mask, self.batch, &rows)),
            types: self.types.as_ref().map(|types| Arc::new(part(types, self.batch, &rows))),
            targets: part(&self.targets, self.batch, &rows),
            values: part(&self.values, self.batch, &rows),
        }
    }

    /// Targets that count.
    pub fn counted(&self) -> u64 {
        self.targets.iter().filter(|&&t| t != IGNORE).count() as u64
    }
}

/// Keys and values of the tokens so far, for generation (one sequence).
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) layers: Vec<(Tensor, Tensor)>,
    pub(super) len: usize,
}

impl KvCache {
    /// Room for `capacity` positions.
    pub fn new(model: &Model, capacity: usize) -> Self {
        let layer = |l: &crate::units::LayerUnits| {
            let shape = [capacity, l.kv_active().len() * model.spec.head_dim];
            let zeros = || model.device.upload(Tensor::zeros(&shape));
            (zeros(), zeros())
        };
        Self { layers: model.units.layers().iter().map(layer).collect(), len: 0 }
    }

    /// Positions filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A model to learn from beside the targets.
#[derive(Debug, Clone, Copy)]
pub struct Distill<'a> {
    /// The model as it was before pruning, or another that reads the same tokens.
    pub teacher: &'a Model,
    /// Divides both sides' logits.
    pub temperature: f32,
    /// Share of the loss that the teacher's predictions have, 0 to 1.
    pub share: f32,
}

/// Looks at what a layer's writer reads as it comes by.
pub type Look<'a> = dyn FnMut((usize, Writer), &Tensor) -> upgrayedd_nn::Result<()> + 'a;

/// What a caller wants from inside the forward pass.
#[derive(Default)]
pub struct Hooks<'a> {
    /// Gates by place, overruling the model's own there; `(U)` or `(batch, U)` for U units; of
    /// channels also a row for each of as many equal parts of every sequence.
    pub gates: Option<&'a BTreeMap<LayerSite, Var>>,
    /// Filled with each layer's attention entropy.
    pub entropy: Option<&'a mut Vec<EntropyProbe>>,
    /// Filled with each layer's attention probabilities, `(batch, heads, queries, keys)`.
    pub maps: Option<&'a mut Vec<Tensor>>,
    /// By layer and writer: added to what the writer makes, `(batch · len, d)`.
    pub offsets: Option<&'a BTreeMap<(usize, Writer), Var>>,
    /// Filled with each layer's input, `(batch · len, d)`.
    pub inputs: Option<&'a mut Vec<Tensor>>,
    /// Called with what each writer reads after the gates, `(batch · len, in)`.
    pub read: Option<&'a mut Look<'a>>,
    /// For plain encoders: [`Model::wanted_rows`] of the batch, for whoever measures it more than once.
    pub wanted: Option<&'a Tensor>,
    /// Continue from here.
    pub cache: Option<&'a mut KvCache>,
}

impl Hooks<'_> {
    /// What is given for a layer.
    pub(super) fn at(&self, layer: usize) -> LayerVars {
        let gates = |writer: Writer| self.gates?.get(&LayerSite { layer, site: writer.site() }).cloned();
        let offset = |writer| self.offsets?.get(&(layer, writer)).cloned();
        LayerVars { gates: Writer::ALL.map(gates), offsets: Writer::ALL.map(offset) }
    }
}

/// Values of a caller's own that take part in a layer, by writer.
#[derive(Debug, Clone, Default)]
pub struct LayerVars {
    gates: [Option<Var>; 2],
    offsets: [Option<Var>; 2],
}

impl LayerVars {
    /// Gates of the units that write through a writer.
    pub(super) fn gates(&self, writer: Writer) -> Option<&Var> {
        self.gates[writer as usize].as_ref()
    }

    /// What is added to what a writer makes.
    pub(super) fn offset(&self, writer: Writer) -> Option<&Var> {
        self.offsets[writer as usize].as_ref()
    }

    /// All of them in a fixed order.
    pub(super) fn vars(&self) -> impl Iterator<Item = &Var> {
        self.gates.iter().chain(&self.offsets).flatten()
    }

    /// The same with other values, in the order of [`Self::vars`].
    pub(super) fn with(&self, vars: &[Var]) -> Self {
        let mut vars = vars.iter().cloned();
        let mut next = |var: &Option<Var>| var.as_ref().and_then(|_| vars.next());
        Self { gates: self.gates.each_ref().map(&mut next), offsets: self.offsets.each_ref().map(&mut next) }
    }
}
