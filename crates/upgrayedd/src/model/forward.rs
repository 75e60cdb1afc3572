//! The forward pass of every family, as its spec says.

use std::ops::Range;
use std::sync::Arc;

use rand::RngExt;
use upgrayedd_nn::ops::{self, AttentionShape, EntropyProbe, Head, IGNORE, Loss, Teacher};
use upgrayedd_nn::{Tape, Tensor, Var};

use super::{Block, LinearIds, Model, Norm, Objective};
use crate::rng;

/// Sequences of equal (padded) length, ready for the model.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `(batch · len)`.
    pub tokens: Arc<Vec<u32>>,
    /// Sequences.
    pub batch: usize,
    /// Positions per sequence.
    pub len: usize,
    /// `(batch · len)`, 0 marks padding; `None` where there is none.
    pub mask: Option<Vec<u8>>,
    /// What to predict: per position for language models (already shifted), per sequence for classifiers; [`IGNORE`] does not count.
    pub targets: Vec<i64>,
}

impl Batch {
    /// Targets that count, sequence by sequence.
    pub fn counted_per_sequence(&self) -> Vec<u64> {
        let per_sequence = self.targets.len() / self.batch.max(1);
        let sequences = self.targets.chunks(per_sequence.max(1));
        sequences.map(|s| s.iter().filter(|&&t| t != IGNORE).count() as u64).collect()
    }

    /// Targets that count.
    pub fn counted(&self) -> u64 {
        self.targets.iter().filter(|&&t| t != IGNORE).count() as u64
    }
}

/// Keys and values of the tokens so far, for generation (one sequence).
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
}

impl KvCache {
    /// Room for `capacity` positions.
    pub fn new(model: &Model, capacity: usize) -> Self {
        let layer = |l: &crate::heads::LayerHeads| {
            let shape = [capacity, l.kv_active().len() * model.spec.head_dim];
            (Tensor::zeros(&shape), Tensor::zeros(&shape))
        };
        Self { layers: model.heads.layers().iter().map(layer).collect(), len: 0 }
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

/// Looks at a layer's values as they come by.
pub type Look<'a> = dyn FnMut(usize, &Tensor) + 'a;

/// What a caller wants from inside the forward pass.
#[derive(Default)]
pub struct Hooks<'a> {
    /// Per layer: gates of the active heads, overruling the model's own; `(H)` or `(batch, H)`.
    pub gates: Option<&'a [Var]>,
    /// Filled with each layer's attention entropy.
    pub entropy: Option<&'a mut Vec<EntropyProbe>>,
    /// Filled with each layer's queries and keys, positions included: `(batch · len, heads · head_dim)` each.
    pub queries_keys: Option<&'a mut Vec<(Tensor, Tensor)>>,
    /// Per layer: added to attention's output, `(batch · len, d)`.
    pub offsets: Option<&'a [Var]>,
    /// Filled with each layer's input, `(batch · len, d)`.
    pub inputs: Option<&'a mut Vec<Tensor>>,
    /// Called with each layer's attention output after the gates, `(batch · len, heads · head_dim)`.
    pub context: Option<&'a mut Look<'a>>,
    /// Continue from here.
    pub cache: Option<&'a mut KvCache>,
}

impl Hooks<'_> {
    /// Whether they want something from inside a block, which then must run on the caller's own tape, once.
    fn inside_blocks(&self) -> bool {
        let Self { gates, entropy, queries_keys, offsets, inputs: _, context, cache } = self;
        gates.is_some()
            || entropy.is_some()
            || queries_keys.is_some()
            || offsets.is_some()
            || context.is_some()
            || cache.is_some()
    }
}

impl Model {
    fn linear(&self, tape: &mut Tape<'_>, x: &Var, ids: LinearIds) -> Var {
        let weight = tape.param(ids.weight);
        let bias = ids.bias.map(|b| tape.param(b));
        ops::linear(tape, x, &weight, bias.as_ref())
    }

    fn norm(&self, tape: &mut Tape<'_>, x: &Var, ids: LinearIds) -> Var {
        let weight = tape.param(ids.weight);
        match (self.spec.norm, ids.bias.map(|b| tape.param(b))) {
            (Norm::Layer, Some(bias)) => ops::layer_norm(tape, x, &weight, &bias, self.spec.norm_eps),
            _ => ops::rms_norm(tape, x, &weight, self.spec.norm_eps),
        }
    }

    fn named(&self, name: &str) -> Option<LinearIds> {
        let weight = self.params.find(&format!("{name}.weight"))?;
        Some(LinearIds { weight, bias: self.params.find(&format!("{name}.bias")) })
    }

    /// The last hidden states, `(batch · len, d)`, after the final norm.
    pub fn hidden<'p>(&'p self, tape: &mut Tape<'p>, batch: &Batch, hooks: &mut Hooks<'_>) -> Var {
        let past = hooks.cache.as_ref().map_or(0, |c| c.len);
        let positions = self.positions_for(batch.batch, batch.len, past);
        let x = self.embed(tape, batch, &positions);
        let x = self.run_layers(tape, 0..self.layers.len(), x, batch, &positions, hooks);
        if let Some(cache) = &mut hooks.cache {
            cache.len += batch.len;
        }
        self.final_norm(tape, x)
    }

    /// Runs as far as the last layer's attention, for hooks that see nothing beyond it.
    pub(crate) fn attend(&self, batch: &Batch, hooks: &mut Hooks<'_>) {
        let mut tape = Tape::inference(self.device, &self.params);
        let positions = self.positions_for(batch.batch, batch.len, 0);
        let x = self.embed(&mut tape, batch, &positions);
        let Some(last) = self.layers.len().checked_sub(1) else { return };
        let x = self.run_layers(&mut tape, 0..last, x, batch, &positions, hooks);
        self.attention_context(&mut tape, last, &x, batch, &positions, hooks);
    }

    /// Some of the layers.
    fn run_layers<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        layers: Range<usize>,
        mut x: Var,
        batch: &Batch,
        positions: &Arc<Vec<u32>>,
        hooks: &mut Hooks<'_>,
    ) -> Var {
        let apart = (tape.has_segments() && !hooks.inside_blocks()).then(|| Arc::new(batch.clone()));
        for layer in layers {
            if let Some(inputs) = hooks.inputs.as_deref_mut() {
                inputs.push(x.tensor().clone());
            }
            x = match apart.clone() {
                None => self.layer(tape, layer, x, batch, positions, hooks),
                Some(batch) => {
                    let positions = positions.clone();
                    tape.segment(x, move |tape, x| self.layer(tape, layer, x, &batch, &positions, &mut Hooks::default()))
                }
            };
        }
        x
    }

    fn final_norm(&self, tape: &mut Tape<'_>, x: Var) -> Var {
        match self.named("final_norm") {
            Some(ids) => self.norm(tape, &x, ids),
            None => x,
        }
    }

    pub(crate) fn embed(&self, tape: &mut Tape<'_>, batch: &Batch, positions: &Arc<Vec<u32>>) -> Var {
        let mut sum: Option<Var> = None;
        let zeros = || Arc::new(vec![0; batch.tokens.len()]);
        for (name, ids) in
            [("embed.tokens", batch.tokens.clone()), ("embed.positions", positions.clone()), ("embed.types", zeros())]
        {
            let Some(id) = self.params.find(name) else { continue };
            let table = tape.param(id);
            let part = ops::embedding(tape, &table, &ids);
            sum = Some(match sum {
                Some(sum) => ops::add(tape, &sum, &part),
                None => part,
            });
        }
        let Some(sum) = sum else { unreachable!("every family has token embeddings") };
        match self.named("embed.norm") {
            Some(ids) => self.norm(tape, &sum, ids),
            None => sum,
        }
    }

    fn layer(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        x: Var,
        batch: &Batch,
        positions: &Arc<Vec<u32>>,
        hooks: &mut Hooks<'_>,
    ) -> Var {
        let context = self.attention_context(tape, index, &x, batch, positions, hooks);
        let x = match hooks.offsets {
            Some(offsets) => ops::add(tape, &x, &offsets[index]),
            None => x,
        };
        let x = self.after_attention(tape, index, x, context);
        let hidden = self.mlp_hidden(tape, index, &x);
        self.after_mlp(tape, index, x, hidden)
    }

    /// What the output projection of attention reads, `(batch · len, heads · head_dim)`.
    pub(crate) fn attention_context(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        x: &Var,
        batch: &Batch,
        positions: &Arc<Vec<u32>>,
        hooks: &mut Hooks<'_>,
    ) -> Var {
        let ids = &self.layers[index];
        let x = match self.spec.block {
            Block::PreNorm => self.norm(tape, x, ids.norm1),
            Block::PostNorm => x.clone(),
        };
        let [mut q, mut k, mut v] = [ids.q, ids.k, ids.v].map(|ids| self.linear(tape, &x, ids));
        drop(x);
        if let Some(table) = &self.rope {
            q = ops::rope(tape, &q, table, positions);
            k = ops::rope(tape, &k, table, positions);
        }
        if let Some(captured) = hooks.queries_keys.as_deref_mut() {
            captured.push((q.tensor().clone(), k.tensor().clone()));
        }
        let mut keys = batch.len;
        if let Some(cache) = hooks.cache.as_deref_mut() {
            keys += cache.len;
            (k, v) = cache.extend(tape, index, k.tensor(), v.tensor());
        }
        let heads = &self.heads.layers()[index];
        let shape = Arc::new(AttentionShape {
            batch: batch.batch,
            queries: batch.len,
            keys,
            head_dim: self.spec.head_dim,
            kv_of: heads.kv_positions(),
            kv_heads: heads.kv_active().len(),
            scale: self.spec.attention_scale(),
            causal: self.spec.causal,
            window: None,
            key_mask: batch.mask.clone(),
        });
        let own = self.gates[index].as_ref().map(|g| tape.constant(g.clone()));
        let gates = hooks.gates.map(|g| &g[index]).or(own.as_ref());
        let context = match &mut hooks.entropy {
            Some(probes) => {
                let (context, probe) = ops::attention_with_entropy(tape, &q, &k, &v, gates, &shape);
                probes.push(probe);
                context
            }
            None => ops::attention(tape, &q, &k, &v, gates, &shape),
        };
        if let Some(look) = &mut hooks.context {
            look(index, context.tensor());
        }
        context
    }

    /// The residual stream with attention's output added, before the norm that a post-norm block has there.
    pub(crate) fn add_attention(&self, tape: &mut Tape<'_>, index: usize, x: &Var, context: Var) -> Var {
        let a = self.linear(tape, &context, self.layers[index].o);
        drop(context);
        ops::add(tape, x, &a)
    }

    /// The residual stream after attention.
    pub(crate) fn after_attention(&self, tape: &mut Tape<'_>, index: usize, x: Var, context: Var) -> Var {
        let x = self.add_attention(tape, index, &x, context);
        match self.spec.block {
            Block::PreNorm => x,
            Block::PostNorm => self.norm(tape, &x, self.layers[index].norm1),
        }
    }

    /// What the MLP's down projection reads, `(batch · len, intermediate)`.
    pub(crate) fn mlp_hidden(&self, tape: &mut Tape<'_>, index: usize, x: &Var) -> Var {
        let ids = &self.layers[index];
        let x = match self.spec.block {
            Block::PreNorm => self.norm(tape, x, ids.norm2),
            Block::PostNorm => x.clone(),
        };
        let up = self.linear(tape, &x, ids.up);
        match ids.gate {
            Some(gate) => {
                let gate = self.linear(tape, &x, gate);
                ops::gated_activation(tape, self.spec.activation, &gate, &up)
            }
            None => ops::activation(tape, self.spec.activation, &up),
        }
    }

    /// The residual stream after the MLP.
    pub(crate) fn after_mlp(&self, tape: &mut Tape<'_>, index: usize, x: Var, hidden: Var) -> Var {
        let ids = &self.layers[index];
        let m = self.linear(tape, &hidden, ids.down);
        drop(hidden);
        let x = ops::add(tape, &x, &m);
        match self.spec.block {
            Block::PreNorm => x,
            Block::PostNorm => self.norm(tape, &x, ids.norm2),
        }
    }

    /// The objective's loss over the batch; each counted target's gradient is multiplied by `weight`.
    pub fn loss<'p>(&'p self, tape: &mut Tape<'p>, batch: &Batch, weight: f32, hooks: &mut Hooks<'_>) -> Loss {
        self.loss_from(tape, None, batch, weight, hooks)
    }

    /// The same from the input of a layer on, if one is given.
    pub(crate) fn loss_from<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        start: Option<(usize, Var)>,
        batch: &Batch,
        weight: f32,
        hooks: &mut Hooks<'_>,
    ) -> Loss {
        let hidden = match start {
            None => self.hidden(tape, batch, hooks),
            Some((layer, x)) => {
                let positions = self.positions_for(batch.batch, batch.len, 0);
                let x = self.run_layers(tape, layer..self.layers.len(), x, batch, &positions, hooks);
                self.final_norm(tape, x)
            }
        };
        if self.spec.objective == Objective::Encoder {
            let rows = self.predicted_rows(tape, hidden, batch, true).0;
            return ops::relative_distance(tape, &rows, &self.reference_rows(batch), weight);
        }
        let (rows, targets) = self.predicted_rows(tape, hidden, batch, false);
        let (rows, weights) = self.before_logits(tape, rows);
        let weights = (tape.param(weights.weight), weights.bias.map(|b| tape.param(b)));
        let head = Head { weight: &weights.0, bias: weights.1.as_ref() };
        ops::cross_entropy(tape, &rows, head, &targets, weight)
    }

    /// The hidden states that a plain encoder's are to agree with: those of its reference, or its own with no gates but its own.
    fn reference_rows(&self, batch: &Batch) -> Tensor {
        let reference = self.reference().map_or(self, |r| r);
        let mut tape = Tape::inference(reference.device, &reference.params);
        let hidden = reference.hidden(&mut tape, batch, &mut Hooks::default());
        reference.predicted_rows(&mut tape, hidden, batch, true).0.tensor().clone()
    }

    /// What a backward pass starts from for curvature where the loss is a distance, which is zero and flat in the reference:
    /// random signs over the length of each hidden state. The expected square of a gradient along them is the Gauss-Newton
    /// curvature of half the relative distance (Hutchinson 1990).
    pub(crate) fn random_signs<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        batch: &Batch,
        stream: &mut rng::Stream,
        hooks: &mut Hooks<'_>,
    ) -> Vec<(Var, Tensor)> {
        let hidden = self.hidden(tape, batch, hooks);
        let rows = self.predicted_rows(tape, hidden, batch, true).0;
        let mut signs = rows.tensor().clone();
        for row in signs.data_mut().chunks_exact_mut(self.spec.hidden_size) {
            let length = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            let size = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
            row.iter_mut().for_each(|v| *v = if stream.random::<bool>() { size } else { -size });
        }
        vec![(rows, signs)]
    }

    /// The objective's loss mixed with the divergence from the teacher's predictions (Hinton et al. 2015).
    pub fn distillation_loss<'p>(&'p self, tape: &mut Tape<'p>, batch: &Batch, weight: f32, distill: &Distill<'_>) -> Loss {
        let Distill { teacher, temperature, share } = *distill;
        let mut theirs = Tape::inference(teacher.device, &teacher.params);
        let x = teacher.hidden(&mut theirs, batch, &mut Hooks::default());
        let x = teacher.predicted_rows(&mut theirs, x, batch, true).0;
        let (x, ids) = teacher.before_logits(&mut theirs, x);
        let bias = ids.bias.map(|b| teacher.params.get(b));
        let knows = Teacher { x: x.tensor(), weight: teacher.params.get(ids.weight), bias, temperature, share };

        let hidden = self.hidden(tape, batch, &mut Hooks::default());
        let (rows, targets) = self.predicted_rows(tape, hidden, batch, true);
        let (rows, weights) = self.before_logits(tape, rows);
        let weights = (tape.param(weights.weight), weights.bias.map(|b| tape.param(b)));
        let head = Head { weight: &weights.0, bias: weights.1.as_ref() };
        ops::distillation(tape, &rows, head, &targets, &knows, weight)
    }

    /// The rows that predict something, and their targets: logits of other rows are hardly ever computed, or never if `exact`.
    fn predicted_rows(&self, tape: &mut Tape<'_>, hidden: Var, batch: &Batch, exact: bool) -> (Var, Vec<i64>) {
        let per_sequence = matches!(self.spec.objective, Objective::Classifier { .. });
        let step = if per_sequence { batch.len as u32 } else { 1 };
        let counted: Vec<u32> = (0u32..).zip(&batch.targets).filter(|(_, t)| **t != IGNORE).map(|(i, _)| i).collect();
        // Dropping the last position of each causal sequence alone is not worth a copy.
        if !exact && counted.len() * 16 > batch.targets.len() * 15 {
            if !per_sequence {
                return (hidden, batch.targets.clone());
            }
            let first = Arc::new((0..batch.batch as u32).map(|b| b * step).collect());
            return (ops::select_rows(tape, &hidden, &first), batch.targets.clone());
        }
        let targets = counted.iter().map(|&i| batch.targets[i as usize]).collect();
        let rows = Arc::new(counted.iter().map(|i| i * step).collect());
        (ops::select_rows(tape, &hidden, &rows), targets)
    }

    /// What stands between hidden states and the output projection, and the projection itself.
    fn before_logits(&self, tape: &mut Tape<'_>, mut x: Var) -> (Var, LinearIds) {
        if let Some(ids) = self.named("head.transform") {
            x = self.linear(tape, &x, ids);
            x = ops::activation(tape, self.spec.activation, &x);
        }
        if let Some(ids) = self.named("head.norm") {
            x = self.norm(tape, &x, ids);
        }
        if let (Objective::Classifier { .. }, Some(ids)) = (self.spec.objective, self.named("pooler")) {
            x = self.linear(tape, &x, ids);
            x = ops::activation(tape, ops::Activation::Tanh, &x);
        }
        let tied = self.params.find("head.weight").or_else(|| self.params.find("embed.tokens"));
        let Some(weight) = tied else { unreachable!("every family has token embeddings") };
        (x, LinearIds { weight, bias: self.params.find("head.bias") })
    }

    /// Logits of every position `(batch · len, V)`, or of every sequence `(batch, labels)` for a classifier.
    pub fn logits(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Tensor {
        let mut tape = Tape::inference(self.device, &self.params);
        let mut hidden = self.hidden(&mut tape, batch, hooks);
        if let Objective::Classifier { .. } = self.spec.objective {
            let first = Arc::new((0..batch.batch as u32).map(|b| b * batch.len as u32).collect());
            hidden = ops::select_rows(&mut tape, &hidden, &first);
        }
        self.project(&mut tape, hidden)
    }

    /// Logits of the batch's last position only, `(batch, V)`.
    pub fn last_logits(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Tensor {
        let mut tape = Tape::inference(self.device, &self.params);
        let hidden = self.hidden(&mut tape, batch, hooks);
        let last = Arc::new((1..=batch.batch).map(|b| (b * batch.len - 1) as u32).collect());
        let hidden = ops::select_rows(&mut tape, &hidden, &last);
        self.project(&mut tape, hidden)
    }

    fn project(&self, tape: &mut Tape<'_>, hidden: Var) -> Tensor {
        let (x, ids) = self.before_logits(tape, hidden);
        self.linear(tape, &x, ids).tensor().clone()
    }
}

impl KvCache {
    /// Adds new keys and values and returns the whole buffers; rows beyond the filled ones are not read.
    fn extend(&mut self, tape: &Tape<'_>, layer: usize, k: &Tensor, v: &Tensor) -> (Var, Var) {
        let at = self.len * k.cols();
        let (keys, values) = &mut self.layers[layer];
        keys.data_mut()[at..at + k.len()].copy_from_slice(k.data());
        values.data_mut()[at..at + v.len()].copy_from_slice(v.data());
        (tape.constant(keys.clone()), tape.constant(values.clone()))
    }
}
