//! The forward pass of an encoder as a graph.

use upgrayedd_nn::ops::Activation;

use super::graph::{Axis, Graph, float, int, ints};
use crate::files::DType;
use crate::model::Model;
use crate::spec::{Block, Objective, Pooling, Positions, distance_bucket};
use crate::units::Site;
use crate::weights::{Kind, Part};

/// Far below every score: what is hidden has no part in a softmax.
const HIDDEN: f32 = -1e30;

/// Beyond so many tokens, what is added by distance does not change any more.
const FARTHEST: i64 = 127;

const BATCH: &str = "batch_size";
const LENGTH: &str = "sequence_length";

pub(super) struct Encoder<'m> {
    model: &'m Model,
    graph: Graph,
    /// The type of numbers in the file, where it is not each weight's own.
    dtype: Option<DType>,
    ids: String,
    mask: String,
    /// How many tokens a sequence has: one number.
    length: String,
    /// The table of tokens, once it is there.
    tokens: Option<String>,
}

/// The graph of a model.
pub(super) fn encode(model: &Model, dtype: Option<DType>) -> super::proto::Model {
    let mut graph = Graph::default();
    let axes = || [Axis::Named(BATCH), Axis::Named(LENGTH)];
    let ids = graph.input("input_ids", &axes());
    let mask = graph.input("attention_mask", &axes());
    let types = model
        .find(None, Part::Types, Kind::Weight)
        .filter(|_| model.spec.type_vocab_size > 1)
        .map(|_| graph.input("token_type_ids", &axes()));
    let shape = graph.op("Shape", &[&ids]);
    let one = graph.int(1);
    let length = graph.op("Gather", &[&shape, &one]);
    let mut encoder = Encoder { model, graph, dtype, ids, mask, length, tokens: None };
    let hidden = encoder.hidden(types);
    encoder.finish(hidden)
}

impl Encoder<'_> {
    /// The last hidden states.
    fn hidden(&mut self, types: Option<String>) -> String {
        let mut x = self.embed(types);
        let padding = self.padding();
        let biased = self.distances();
        for layer in 0..self.model.spec.num_layers() {
            self.graph.place = format!("layer_{layer}/");
            x = self.layer(layer, x, &padding, biased.as_deref());
        }
        self.graph.place.clear();
        self.norm(x, None, Part::FinalNorm)
    }

    fn layer(&mut self, layer: usize, x: String, padding: &str, biased: Option<&str>) -> String {
        let pre = self.model.spec.layers[layer].block == Block::PreNorm;
        let at = Some(layer);
        let read = if pre { self.norm(x.clone(), at, Part::Norm1) } else { x.clone() };
        let context = self.attention(layer, &read, padding, biased);
        let written = self.written(layer, Part::O, context, &x);
        let mut x = self.graph.op("Add", &[&x, &written]);
        if !pre {
            x = self.norm(x, at, Part::Norm1);
        }
        let read = if pre { self.norm(x.clone(), at, Part::Norm2) } else { x.clone() };
        let hidden = self.mlp(layer, &read);
        let written = self.written(layer, Part::Down, hidden, &x);
        let x = self.graph.op("Add", &[&x, &written]);
        if pre { x } else { self.norm(x, at, Part::Norm2) }
    }

    /// What a writer makes; of attention or an MLP that has gone whole its bias is left.
    fn written(&mut self, layer: usize, part: Part, inputs: Option<String>, x: &str) -> String {
        match inputs {
            Some(inputs) => self.linear(&inputs, Some(layer), part),
            None => {
                let zero = self.graph.float(0.0);
                let nothing = self.graph.op("Mul", &[x, &zero]);
                match self.vector(Some(layer), part, Kind::Bias) {
                    Some(bias) => self.graph.op("Add", &[&nothing, &bias]),
                    None => nothing,
                }
            }
        }
    }

    fn attention(&mut self, layer: usize, read: &str, padding: &str, biased: Option<&str>) -> Option<String> {
        let units = &self.model.units.layers()[layer];
        let heads = units.count(Site::Head);
        if heads == 0 {
            return None;
        }
        let spec = &self.model.spec;
        let (of, dim, at) = (units.kv_positions(), spec.head_dim, spec.layers[layer]);
        let active: Vec<i64> = units.active().iter().map(|head| *head as i64).collect();
        let groups = units.count(Site::KvGroup);
        let split = |this: &mut Self, part: Part, heads: usize, order: &[i64]| {
            let x = this.linear(read, Some(layer), part);
            let sizes = this.graph.ints(&[0, 0, heads as i64, dim as i64]);
            let x = this.graph.op("Reshape", &[&x, &sizes]);
            this.graph.node("Transpose", &[&x], vec![ints("perm", order)])
        };
        let mut q = split(self, Part::Q, heads, &[0, 2, 1, 3]);
        let mut k = split(self, Part::K, groups, &[0, 2, 1, 3]);
        let mut v = split(self, Part::V, groups, &[0, 2, 1, 3]);
        if let Some(rope) = at.rope {
            let turns = self.rotation(rope);
            (q, k) = (self.rotated(&q, &turns, dim), self.rotated(&k, &turns, dim));
        }
        if !of.iter().copied().eq(0..groups) {
            let of: Vec<i64> = of.iter().map(|group| *group as i64).collect();
            let of = self.graph.ints(&of);
            k = self.graph.node("Gather", &[&k, &of], vec![int("axis", 1)]);
            v = self.graph.node("Gather", &[&v, &of], vec![int("axis", 1)]);
        }
        let k = self.graph.node("Transpose", &[&k], vec![ints("perm", &[0, 1, 3, 2])]);
        let scale = self.graph.float(self.model.spec.attention_scale());
        let scores = self.graph.op("MatMul", &[&q, &k]);
        let mut scores = self.graph.op("Mul", &[&scores, &scale]);
        if let Some(biased) = biased {
            let active = self.graph.ints(&active);
            let own = self.graph.node("Gather", &[biased, &active], vec![int("axis", 0)]);
            scores = self.graph.op("Add", &[&scores, &own]);
        }
        scores = self.graph.op("Add", &[&scores, padding]);
        if let Some(window) = at.window {
            let hidden = self.window(window);
            scores = self.graph.op("Add", &[&scores, &hidden]);
        }
        let shares = self.graph.node("Softmax", &[&scores], vec![int("axis", -1)]);
        let context = self.graph.op("MatMul", &[&shares, &v]);
        let context = self.graph.node("Transpose", &[&context], vec![ints("perm", &[0, 2, 1, 3])]);
        let sizes = self.graph.ints(&[0, 0, (heads * dim) as i64]);
        Some(self.graph.op("Reshape", &[&context, &sizes]))
    }

    fn mlp(&mut self, layer: usize, read: &str) -> Option<String> {
        if self.model.units.layers()[layer].count(Site::Channel) == 0 {
            return None;
        }
        let at = Some(layer);
        let up = self.linear(read, at, Part::Up);
        let activation = self.model.spec.activation;
        if !self.model.spec.gated_mlp {
            return Some(self.activation(activation, &up));
        }
        let gate = self.linear(read, at, Part::Gate);
        let gate = self.activation(activation, &gate);
        Some(self.graph.op("Mul", &[&gate, &up]))
    }

    fn embed(&mut self, types: Option<String>) -> String {
        let tokens = self.table(Part::Tokens).unwrap_or_default();
        let ids = self.ids.clone();
        let mut x = self.graph.op("Gather", &[&tokens, &ids]);
        if let Some(table) = self.table(Part::Positions) {
            let places = self.places();
            let rows = self.graph.op("Gather", &[&table, &places]);
            x = self.graph.op("Add", &[&x, &rows]);
        }
        if let Some(table) = self.table(Part::Types) {
            // Without a choice there is one row for all.
            let which = types.unwrap_or_else(|| self.graph.int(0));
            let rows = self.graph.op("Gather", &[&table, &which]);
            x = self.graph.op("Add", &[&x, &rows]);
        }
        self.norm(x, None, Part::EmbedNorm)
    }

    /// Rows of the table of positions.
    fn places(&mut self) -> String {
        let first = self.model.spec.first_position as i64;
        match self.model.spec.positions {
            Positions::WithoutToken(padding) => {
                let (ids, padding, axis) =
                    (self.ids.clone(), self.graph.int(i64::from(padding)), self.graph.int(1));
                let same = self.graph.op("Equal", &[&ids, &padding]);
                let other = self.graph.op("Not", &[&same]);
                let other =
                    self.graph.node("Cast", &[&other], vec![int("to", i64::from(super::proto::INT64))]);
                let number = self.graph.op("CumSum", &[&other, &axis]);
                let number = self.graph.op("Mul", &[&number, &other]);
                let before = self.graph.int(first - 1);
                self.graph.op("Add", &[&number, &before])
            }
            Positions::FromStart | Positions::Unmasked => {
                let (first, one, length) = (self.graph.int(first), self.graph.int(1), self.length.clone());
                let end = self.graph.op("Add", &[&length, &first]);
                self.graph.op("Range", &[&first, &end, &one])
            }
        }
    }

    /// What hides padding: added to scores.
    fn padding(&mut self) -> String {
        let (mask, axes, zero) = (self.mask.clone(), self.graph.ints(&[1, 2]), self.graph.int(0));
        let hidden = self.graph.op("Equal", &[&mask, &zero]);
        let hidden = self.graph.op("Unsqueeze", &[&hidden, &axes]);
        let (low, none) = (self.graph.float(HIDDEN), self.graph.float(0.0));
        self.graph.op("Where", &[&hidden, &low, &none])
    }

    /// How far each key is from each query, `(queries, keys)`.
    fn offsets(&mut self) -> String {
        let (none, one, length) = (self.graph.int(0), self.graph.int(1), self.length.clone());
        let places = self.graph.op("Range", &[&none, &length, &one]);
        let (rows, columns) = (self.graph.ints(&[0]), self.graph.ints(&[1]));
        let keys = self.graph.op("Unsqueeze", &[&places, &rows]);
        let queries = self.graph.op("Unsqueeze", &[&places, &columns]);
        self.graph.op("Sub", &[&keys, &queries])
    }

    /// What hides keys that are as far away as that.
    fn window(&mut self, window: usize) -> String {
        let offsets = self.offsets();
        let far = self.graph.op("Abs", &[&offsets]);
        let limit = self.graph.int(window as i64);
        let seen = self.graph.op("Less", &[&far, &limit]);
        let (low, none) = (self.graph.float(HIDDEN), self.graph.float(0.0));
        self.graph.op("Where", &[&seen, &none, &low])
    }

    /// What is added to scores by distance, `(heads, queries, keys)` for all heads there ever were.
    fn distances(&mut self) -> Option<String> {
        let id = self.model.find(None, Part::ScoreBias, Kind::Weight)?;
        let table = self.model.params.get(id).to_host();
        let heads = table.cols();
        let row = |distance: i64| {
            let bucket = distance_bucket(distance) as usize;
            &table.data()[bucket * heads..(bucket + 1) * heads]
        };
        let rows: Vec<f32> = (-FARTHEST..=FARTHEST).flat_map(row).copied().collect();
        let table = self.graph.weight("score_bias", &[rows.len() / heads, heads], &rows, false);
        let offsets = self.offsets();
        let (low, high) = (self.graph.int(-FARTHEST), self.graph.int(FARTHEST));
        let near = self.graph.op("Clip", &[&offsets, &low, &high]);
        let at = self.graph.op("Add", &[&near, &high]);
        let rows = self.graph.op("Gather", &[&table, &at]);
        Some(self.graph.node("Transpose", &[&rows], vec![ints("perm", &[2, 0, 1])]))
    }

    /// Cosines and sines by position, each `(length, columns)`.
    fn rotation(&mut self, rope: usize) -> (String, String) {
        let rope = &self.model.spec.ropes[rope];
        let frequencies = self.graph.weight(
            &format!("{}frequencies", self.graph.place),
            &[1, rope.inv_freq.len()],
            &rope.inv_freq,
            false,
        );
        let (none, one, length) = (self.graph.int(0), self.graph.int(1), self.length.clone());
        let places = self.graph.op("Range", &[&none, &length, &one]);
        let places = self.graph.node("Cast", &[&places], vec![int("to", i64::from(super::proto::FLOAT))]);
        let column = self.graph.ints(&[1]);
        let places = self.graph.op("Unsqueeze", &[&places, &column]);
        let angles = self.graph.op("Mul", &[&places, &frequencies]);
        let angles = self.graph.node("Concat", &[&angles, &angles], vec![int("axis", -1)]);
        let scale = self.graph.float(rope.scale);
        let scaled = |graph: &mut Graph, op: &str| {
            let value = graph.op(op, &[&angles]);
            graph.op("Mul", &[&value, &scale])
        };
        (scaled(&mut self.graph, "Cos"), scaled(&mut self.graph, "Sin"))
    }

    /// Heads under a rotation, of which all columns turn.
    fn rotated(&mut self, x: &str, (cos, sin): &(String, String), dim: usize) -> String {
        let half = (dim / 2) as i64;
        let bounds = [0, half, 2 * half].map(|at| self.graph.ints(&[at]));
        let axis = self.graph.ints(&[-1]);
        let first = self.graph.op("Slice", &[x, &bounds[0], &bounds[1], &axis]);
        let second = self.graph.op("Slice", &[x, &bounds[1], &bounds[2], &axis]);
        let second = self.graph.op("Neg", &[&second]);
        let turned = self.graph.node("Concat", &[&second, &first], vec![int("axis", -1)]);
        let (along, across) = (self.graph.op("Mul", &[x, cos]), self.graph.op("Mul", &[&turned, sin]));
        self.graph.op("Add", &[&along, &across])
    }

    /// What a caller asks for: hidden states, or logits.
    fn finish(mut self, hidden: String) -> super::proto::Model {
        let spec = &self.model.spec;
        let (width, vocabulary) = (spec.hidden_size, spec.vocab_size);
        let (batch, length) = (Axis::Named(BATCH), Axis::Named(LENGTH));
        if spec.objective == Objective::Encoder {
            let output = self.graph.named("Identity", &[&hidden], Vec::new(), "last_hidden_state".to_owned());
            return self.graph.finish(&output, &[batch, length, Axis::Fixed(width)]);
        }
        let outputs = spec.objective.outputs();
        let mut x = if outputs.is_some() { self.pooled(&hidden) } else { hidden };
        let (head, pooler) = (self.model.spec.head_activation, self.model.spec.pooler_activation);
        if self.has(Part::HeadTransform) {
            x = self.linear(&x, None, Part::HeadTransform);
            x = self.activation(head, &x);
        }
        x = self.norm(x, None, Part::HeadNorm);
        if outputs.is_some() && self.has(Part::Pooler) {
            x = self.linear(&x, None, Part::Pooler);
            x = self.activation(pooler, &x);
        }
        let logits = if self.has(Part::Head) {
            self.linear(&x, None, Part::Head)
        } else {
            let tokens = self.table(Part::Tokens).unwrap_or_default();
            let tokens = self.graph.node("Transpose", &[&tokens], vec![ints("perm", &[1, 0])]);
            let product = self.graph.op("MatMul", &[&x, &tokens]);
            match self.vector(None, Part::Head, Kind::Bias) {
                Some(bias) => self.graph.op("Add", &[&product, &bias]),
                None => product,
            }
        };
        let output = self.graph.named("Identity", &[&logits], Vec::new(), "logits".to_owned());
        match outputs {
            Some(outputs) => self.graph.finish(&output, &[batch, Axis::Fixed(outputs)]),
            None => self.graph.finish(&output, &[batch, length, Axis::Fixed(vocabulary)]),
        }
    }

    /// What a classifier looks at of each sequence.
    fn pooled(&mut self, hidden: &str) -> String {
        match self.model.spec.pooling {
            Pooling::First => {
                let first = self.graph.int(0);
                self.graph.node("Gather", &[hidden, &first], vec![int("axis", 1)])
            }
            Pooling::Mean => {
                let (mask, last, axis) = (self.mask.clone(), self.graph.ints(&[-1]), self.graph.ints(&[1]));
                let mask = self.graph.node("Cast", &[&mask], vec![int("to", i64::from(super::proto::FLOAT))]);
                let mask = self.graph.op("Unsqueeze", &[&mask, &last]);
                let counted = self.graph.op("Mul", &[hidden, &mask]);
                let sum = self.graph.node("ReduceSum", &[&counted, &axis], vec![int("keepdims", 0)]);
                let count = self.graph.node("ReduceSum", &[&mask, &axis], vec![int("keepdims", 0)]);
                self.graph.op("Div", &[&sum, &count])
            }
        }
    }

    fn has(&self, part: Part) -> bool {
        self.model.find(None, part, Kind::Weight).is_some()
    }

    fn activation(&mut self, activation: Activation, x: &str) -> String {
        match activation {
            Activation::Relu => self.graph.op("Relu", &[x]),
            Activation::Tanh => self.graph.op("Tanh", &[x]),
            Activation::Silu => {
                let gate = self.graph.op("Sigmoid", &[x]);
                self.graph.op("Mul", &[x, &gate])
            }
            Activation::Gelu => {
                let root = self.graph.float(std::f32::consts::SQRT_2);
                let scaled = self.graph.op("Div", &[x, &root]);
                let erf = self.graph.op("Erf", &[&scaled]);
                self.half_of(x, &erf)
            }
            Activation::GeluTanh => {
                let (cube, factor) = (self.graph.float(3.0), self.graph.float(0.044_715));
                let slope = self.graph.float((2.0 / std::f32::consts::PI).sqrt());
                let cubed = self.graph.op("Pow", &[x, &cube]);
                let cubed = self.graph.op("Mul", &[&cubed, &factor]);
                let inner = self.graph.op("Add", &[x, &cubed]);
                let inner = self.graph.op("Mul", &[&inner, &slope]);
                let tanh = self.graph.op("Tanh", &[&inner]);
                self.half_of(x, &tanh)
            }
        }
    }

    /// x · (1 + y) / 2.
    fn half_of(&mut self, x: &str, y: &str) -> String {
        let (one, half) = (self.graph.float(1.0), self.graph.float(0.5));
        let sum = self.graph.op("Add", &[y, &one]);
        let product = self.graph.op("Mul", &[x, &sum]);
        self.graph.op("Mul", &[&product, &half])
    }

    /// `x` under a LayerNorm, if there is one.
    fn norm(&mut self, x: String, layer: Option<usize>, part: Part) -> String {
        let Some(weight) = self.vector(layer, part, Kind::Weight) else { return x };
        let bias = self.vector(layer, part, Kind::Bias);
        let inputs: Vec<&str> = [&x, &weight].into_iter().chain(&bias).map(String::as_str).collect();
        let attributes = vec![int("axis", -1), float("epsilon", self.model.spec.norm_eps)];
        self.graph.node("LayerNormalization", &inputs, attributes)
    }

    /// x Wᵀ + b.
    fn linear(&mut self, x: &str, layer: Option<usize>, part: Part) -> String {
        let weight = self.matrix(layer, part).unwrap_or_default();
        let product = self.graph.op("MatMul", &[x, &weight]);
        match self.vector(layer, part, Kind::Bias) {
            Some(bias) => self.graph.op("Add", &[&product, &bias]),
            None => product,
        }
    }

    fn is_half(&self, id: upgrayedd_nn::ParamId) -> bool {
        self.dtype.unwrap_or(self.model.dtype_of(id)) == DType::F16
    }

    /// A weight as `(in, out)`.
    fn matrix(&mut self, layer: Option<usize>, part: Part) -> Option<String> {
        let id = self.model.find(layer, part, Kind::Weight)?;
        let tensor = self.model.params.get(id).to_host().transposed();
        let name = self.model.params.name(id).to_owned();
        Some(self.graph.weight(&name, tensor.shape(), tensor.data(), self.is_half(id)))
    }

    /// A table that is looked up by row.
    fn table(&mut self, part: Part) -> Option<String> {
        let id = self.model.find(None, part, Kind::Weight)?;
        let name = self.model.params.name(id).to_owned();
        // It may be asked for twice: as embedding and as output projection.
        if part == Part::Tokens
            && let Some(made) = &self.tokens
        {
            return Some(made.clone());
        }
        let tensor = self.model.params.get(id).to_host();
        let made = self.graph.weight(&name, tensor.shape(), tensor.data(), self.is_half(id));
        if part == Part::Tokens {
            self.tokens = Some(made.clone());
        }
        Some(made)
    }

    /// A bias, or what a norm multiplies by.
    fn vector(&mut self, layer: Option<usize>, part: Part, kind: Kind) -> Option<String> {
        let id = self.model.find(layer, part, kind)?;
        let tensor = self.model.params.get(id).to_host();
        let name = self.model.params.name(id).to_owned();
        Some(self.graph.weight(&name, tensor.shape(), tensor.data(), self.is_half(id)))
    }
}
