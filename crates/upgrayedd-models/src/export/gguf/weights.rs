//! Weights under llama.cpp's names, as its architectures have them.

use upgrayedd_nn::ParamId;

use super::arch::{Arch, OutputHead};
use super::file::{BLOCK, Element, Tensor};
use super::layers::Layer;
use crate::files::DType;
use crate::model::Model;
use crate::spec::{Norm, QkNorm, Rope};
use crate::weights::{Kind, Part};

/// A weight as it is written: rows and columns that are taken from one of the model, and what is done to its numbers.
struct Piece {
    id: ParamId,
    /// Rows in their new order, `None` for one of zeros; all as they are if absent.
    rows: Option<Vec<Option<usize>>>,
    /// The same for columns.
    columns: Option<Vec<Option<usize>>>,
    factor: f32,
    plus: f32,
}

impl Piece {
    fn plain(id: ParamId) -> Self {
        Self { id, rows: None, columns: None, factor: 1.0, plus: 0.0 }
    }

    fn shape(&self, model: &Model) -> Vec<usize> {
        let mut shape = model.params.get(self.id).shape().to_vec();
        if let Some(rows) = &self.rows {
            shape[0] = rows.len();
        }
        if let (Some(columns), [_, width]) = (&self.columns, &mut shape[..]) {
            *width = columns.len();
        }
        shape
    }

    fn values(&self, model: &Model) -> Vec<f32> {
        let tensor = model.params.get(self.id).to_host();
        let width = if tensor.shape().len() == 2 { tensor.cols() } else { 1 };
        let data = tensor.data();
        let rows = self.rows.clone().unwrap_or_else(|| (0..tensor.shape()[0]).map(Some).collect());
        let mut values = Vec::new();
        for row in rows {
            let row = row.map(|row| &data[row * width..(row + 1) * width]);
            let at = |column: Option<usize>| match (row, column) {
                (Some(row), Some(column)) => row[column] * self.factor + self.plus,
                _ => 0.0,
            };
            match &self.columns {
                Some(columns) => values.extend(columns.iter().map(|column| at(*column))),
                None => values.extend((0..width).map(|column| at(Some(column)))),
            }
        }
        values
    }
}

/// How weights are written.
pub(super) struct Writing<'m> {
    pub(super) model: &'m Model,
    pub(super) arch: &'static Arch,
    pub(super) layers: &'m [Layer],
    /// For matrices; each as the model has it if absent.
    pub(super) element: Option<Element>,
    /// What queries are multiplied by, since the architecture scales scores otherwise.
    pub(super) query_factor: f32,
}

/// The type of files that has a weight's own numbers.
pub(super) fn element_of(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::F16 => Element::F16,
        DType::BF16 => Element::BF16,
    }
}

impl<'m> Writing<'m> {
    /// All tensors of the file.
    pub(super) fn tensors(&self) -> Vec<Tensor<'m>> {
        let mut all = Vec::new();
        let outside = if self.arch.encodes { ENCODER_OUTSIDE } else { OUTSIDE };
        for (part, name) in outside {
            self.add(&mut all, (None, *part), (*name).to_owned(), |id, part| self.plain(id, part));
        }
        let embedding = self.model.find(None, Part::Tokens, Kind::Weight);
        if let (OutputHead::Own, true, Some(id)) = (&self.arch.head, self.model.spec.tied_head, embedding) {
            all.push(self.tensor("output.weight".to_owned(), vec![Piece::plain(id)], Part::Head));
        }
        if let Some(factors) = self.rope_factors() {
            all.extend(factors);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            self.add_layer(&mut all, layer, &format!("blk.{index}"));
        }
        all
    }

    fn add_layer(&self, all: &mut Vec<Tensor<'m>>, layer: &Layer, block: &str) {
        let at = |part| (Some(layer.source), part);
        let name = |name: &str| format!("{block}.{name}");
        let (dim, has_heads) = (self.model.spec.head_dim, !layer.queries.is_empty());
        let norms = if self.arch.encodes { ENCODER_NORMS } else { NORMS };
        for (part, end) in norms {
            // A layer without attention has no norm before it either.
            if *part != Part::Norm1 || has_heads || self.arch.encodes {
                self.add(all, at(*part), name(end), |id, part| self.plain(id, part));
            }
        }
        if has_heads {
            let queries = self.rows(&layer.queries, true);
            let piece = |id, part| match part {
                Part::Q => {
                    Piece { rows: Some(queries.clone()), factor: self.query_scale(), ..Piece::plain(id) }
                }
                Part::K => Piece { rows: Some(self.rows(&layer.keys, true)), ..Piece::plain(id) },
                _ => Piece { rows: Some(self.rows(&layer.keys, false)), ..Piece::plain(id) },
            };
            if self.arch.fused_attention {
                self.add_stacked(all, layer.source, &[Part::Q, Part::K, Part::V], &name("attn_qkv"), piece);
            } else {
                for (part, end) in [(Part::Q, "attn_q"), (Part::K, "attn_k"), (Part::V, "attn_v")] {
                    self.add(all, at(part), name(end), piece);
                }
            }
            let columns = lanes(&layer.queries, dim, |index| index);
            self.add(all, at(Part::O), name("attn_output"), |id, _| self.across(id, Some(columns.clone())));
        }
        let channels = Some(layer.channels.clone()).filter(|channels| channels.contains(&None));
        let into = |id, _| Piece { rows: channels.clone(), ..Piece::plain(id) };
        if self.arch.fused_mlp {
            self.add_stacked(all, layer.source, &[Part::Gate, Part::Up], &name("ffn_up"), into);
        } else {
            self.add(all, at(Part::Gate), name("ffn_gate"), into);
            self.add(all, at(Part::Up), name("ffn_up"), into);
        }
        self.add(all, at(Part::Down), name("ffn_down"), |id, _| self.across(id, channels.clone()));
    }

    /// A writer's weight with these columns, and its bias as it is.
    fn across(&self, id: ParamId, columns: Option<Vec<Option<usize>>>) -> Piece {
        let is_matrix = self.model.params.get(id).shape().len() == 2;
        Piece { columns: columns.filter(|_| is_matrix), ..Piece::plain(id) }
    }

    /// Weight and bias of a part, those that there are.
    fn add(
        &self,
        all: &mut Vec<Tensor<'m>>,
        (layer, part): (Option<usize>, Part),
        name: String,
        piece: impl Fn(ParamId, Part) -> Piece,
    ) {
        for (kind, end) in [(Kind::Weight, "weight"), (Kind::Bias, "bias")] {
            if let Some(id) = self.model.find(layer, part, kind) {
                all.push(self.tensor(format!("{name}.{end}"), vec![piece(id, part)], part));
            }
        }
    }

    /// Parts that are one tensor, one after the other.
    fn add_stacked(
        &self,
        all: &mut Vec<Tensor<'m>>,
        layer: usize,
        parts: &[Part],
        name: &str,
        piece: impl Fn(ParamId, Part) -> Piece,
    ) {
        for (kind, end) in [(Kind::Weight, "weight"), (Kind::Bias, "bias")] {
            let found =
                parts.iter().filter_map(|part| Some((self.model.find(Some(layer), *part, kind)?, *part)));
            let pieces: Vec<Piece> = found.map(|(id, part)| piece(id, part)).collect();
            if !pieces.is_empty() {
                all.push(self.tensor(format!("{name}.{end}"), pieces, parts[0]));
            }
        }
    }

    fn tensor(&self, name: String, pieces: Vec<Piece>, part: Part) -> Tensor<'m> {
        let model = self.model;
        let mut shape = pieces[0].shape(model);
        shape[0] = pieces.iter().map(|piece| piece.shape(model)[0]).sum();
        let own = element_of(model.dtype_of(pieces[0].id));
        let element = match (&shape[..], self.element.unwrap_or(own)) {
            // Vectors and tables that are added as they are.
            ([_], _) => Element::F32,
            _ if matches!(part, Part::Positions | Part::Types) => Element::F32,
            // Rows that are no whole blocks.
            ([_, width], Element::Q8_0) if !width.is_multiple_of(BLOCK) => Element::F16,
            (_, element) => element,
        };
        let values = Box::new(move || pieces.iter().flat_map(|piece| piece.values(model)).collect());
        Tensor { name, shape, element, values }
    }

    /// What is written as it is, but for norms around one, which are written as they multiply.
    fn plain(&self, id: ParamId, part: Part) -> Piece {
        let around_one = self.model.spec.norm == Norm::RmsAroundOne && part.is_norm();
        let factor = if part == Part::QNorm { self.query_factor } else { 1.0 };
        // (1 + w) · factor.
        let plus = if around_one { factor } else { 0.0 };
        let rows = match (self.model.spec.qk_norm, part) {
            (QkNorm::Heads, Part::QNorm | Part::KNorm) => Some(self.rows(&[Some(0)], true)),
            _ => None,
        };
        Piece { factor, plus, rows, ..Piece::plain(id) }
    }

    /// What queries are multiplied by where no norm comes after, which takes it instead.
    fn query_scale(&self) -> f32 {
        if self.model.spec.qk_norm == QkNorm::None { self.query_factor } else { 1.0 }
    }

    /// Rows of heads, those of queries and keys in the architecture's order of what is rotated.
    fn rows(&self, heads: &[Option<usize>], rotated: bool) -> Vec<Option<usize>> {
        let rope = self.model.spec.ropes.first().filter(|_| rotated && self.arch.side_by_side);
        let pairs = rope.map_or(0, |rope| rope.inv_freq.len());
        // What lies half of the rotated part apart comes side by side.
        let order = |index: usize| if index < 2 * pairs { index / 2 + index % 2 * pairs } else { index };
        lanes(heads, self.model.spec.head_dim, order)
    }

    /// Factors for frequencies that are no powers of a base.
    fn rope_factors(&self) -> Option<Vec<Tensor<'m>>> {
        let rope = self.model.spec.ropes.first()?;
        let of = |name: &str, frequencies: &[f32]| {
            let factors = factors(rope, frequencies);
            Tensor {
                name: format!("{name}.weight"),
                shape: vec![factors.len()],
                element: Element::F32,
                values: Box::new(move || factors.clone()),
            }
        };
        match &rope.long {
            Some((_, long)) => {
                Some(vec![of("rope_factors_long", long), of("rope_factors_short", &rope.inv_freq)])
            }
            None if self.arch.takes_factors && linear_factor(rope) != Some(1.0) => {
                Some(vec![of("rope_freqs", &rope.inv_freq)])
            }
            None => None,
        }
    }
}

/// What each frequency that follows from the base is divided by.
fn factors(rope: &Rope, frequencies: &[f32]) -> Vec<f32> {
    let columns = 2.0 * frequencies.len() as f64;
    let of = |(index, frequency): (usize, &f32)| {
        (rope.base.powf(-2.0 * index as f64 / columns) / f64::from(*frequency)) as f32
    };
    frequencies.iter().enumerate().map(of).collect()
}

/// The one factor of all frequencies, if they have the same.
pub(super) fn linear_factor(rope: &Rope) -> Option<f32> {
    let factors = factors(rope, &rope.inv_freq);
    let first = factors.first().copied()?;
    let same = factors.iter().all(|factor| (factor / first - 1.0).abs() < 1e-5);
    same.then(|| if (first - 1.0).abs() < 1e-5 { 1.0 } else { first })
}

/// The rows or columns of heads of this width, each head's in an order.
fn lanes(heads: &[Option<usize>], dim: usize, order: impl Fn(usize) -> usize) -> Vec<Option<usize>> {
    let order = &order;
    let of = |head: &Option<usize>| {
        let head = *head;
        (0..dim).map(move |index| head.map(|head| head * dim + order(index)))
    };
    heads.iter().flat_map(of).collect()
}

const OUTSIDE: &[(Part, &str)] = &[
    (Part::Tokens, "token_embd"),
    (Part::Positions, "position_embd"),
    (Part::FinalNorm, "output_norm"),
    (Part::Head, "output"),
];

const NORMS: &[(Part, &str)] = &[
    (Part::Norm1, "attn_norm"),
    (Part::QNorm, "attn_q_norm"),
    (Part::KNorm, "attn_k_norm"),
    (Part::Post1, "post_attention_norm"),
    (Part::Norm2, "ffn_norm"),
    (Part::Post2, "post_ffw_norm"),
];

const ENCODER_OUTSIDE: &[(Part, &str)] = &[
    (Part::Tokens, "token_embd"),
    (Part::Positions, "position_embd"),
    (Part::Types, "token_types"),
    (Part::EmbedNorm, "token_embd_norm"),
];

const ENCODER_NORMS: &[(Part, &str)] =
    &[(Part::Norm1, "attn_output_norm"), (Part::Norm2, "layer_output_norm")];
