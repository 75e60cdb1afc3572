//! The table of a model's weights: what each is called here and in files, how it lies there, its shape from
//! the units that are there, and whose rows or columns it has. A family lists its weights; loading, saving,
//! surgery, archive and optimiser read the table.

use std::fmt;
use std::str::FromStr;

use upgrayedd_nn::optim::Lanes;

use crate::spec::{DISTANCE_BUCKETS, ModelSpec, Norm, Objective, QkNorm};
use crate::units::{Site, UnitMap};
use crate::{Error, Result};

/// What a weight is for. Matrices are `(out, in)`, unfused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Token embeddings.
    Tokens,
    /// Learned positions.
    Positions,
    /// Token types (segments).
    Types,
    /// What is added to attention scores, by bucket of the distance and by head; one for all layers.
    ScoreBias,
    /// The norm after the embeddings.
    EmbedNorm,
    /// The norm of a layer's attention.
    Norm1,
    /// The norm of each head's queries.
    QNorm,
    /// The norm of each head's keys.
    KNorm,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output projection.
    O,
    /// The norm of a layer's MLP.
    Norm2,
    /// The norm of what attention adds.
    Post1,
    /// The norm of what the MLP adds.
    Post2,
    /// The MLP's gate.
    Gate,
    /// Into the MLP.
    Up,
    /// Out of the MLP.
    Down,
    /// The norm after the last layer.
    FinalNorm,
    /// A classifier's layer over the first token.
    Pooler,
    /// Next-sentence prediction, which nothing learns with.
    NextSentence,
    /// The layer before the output projection.
    HeadTransform,
    /// The norm after it.
    HeadNorm,
    /// The output projection.
    Head,
}

impl Part {
    const ALL: [(Self, &'static str); 24] = [
        (Self::Tokens, "embed.tokens"),
        (Self::Positions, "embed.positions"),
        (Self::Types, "embed.types"),
        (Self::ScoreBias, "score_bias"),
        (Self::EmbedNorm, "embed.norm"),
        (Self::Norm1, "norm1"),
        (Self::QNorm, "attn.q_norm"),
        (Self::KNorm, "attn.k_norm"),
        (Self::Q, "attn.q"),
        (Self::K, "attn.k"),
        (Self::V, "attn.v"),
        (Self::O, "attn.o"),
        (Self::Norm2, "norm2"),
        (Self::Post1, "post1"),
        (Self::Post2, "post2"),
        (Self::Gate, "mlp.gate"),
        (Self::Up, "mlp.up"),
        (Self::Down, "mlp.down"),
        (Self::FinalNorm, "final_norm"),
        (Self::Pooler, "pooler"),
        (Self::NextSentence, "next_sentence"),
        (Self::HeadTransform, "head.transform"),
        (Self::HeadNorm, "head.norm"),
        (Self::Head, "head"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or("", |(_, name)| name)
    }

    /// Whether it is looked up by row.
    pub fn is_embedding(self) -> bool {
        matches!(self, Self::Tokens | Self::Positions | Self::Types | Self::ScoreBias)
    }

    /// Whether it scales what a norm makes.
    pub fn is_norm(self) -> bool {
        use Part::{EmbedNorm, FinalNorm, HeadNorm, KNorm, Norm1, Norm2, Post1, Post2, QNorm};
        matches!(self, EmbedNorm | Norm1 | Norm2 | Post1 | Post2 | QNorm | KNorm | FinalNorm | HeadNorm)
    }

    /// Whether it multiplies a vector by a matrix.
    pub fn is_matrix(self) -> bool {
        !self.is_embedding() && !self.is_norm()
    }
}

/// Which of a part's two parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What is multiplied with.
    Weight,
    /// What is added.
    Bias,
}

/// A part's parameter, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Role {
    /// What it is for.
    pub part: Part,
    /// Which of the two.
    pub kind: Kind,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.part.name())?;
        match self.kind {
            Kind::Weight if self.part.is_embedding() => Ok(()),
            Kind::Weight => f.write_str(".weight"),
            Kind::Bias => f.write_str(".bias"),
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (front, kind) = match name.rsplit_once('.') {
            Some((front, "weight")) => (front, Kind::Weight),
            Some((front, "bias")) => (front, Kind::Bias),
            _ => (name, Kind::Weight),
        };
        let part = Part::ALL.iter().find(|(_, known)| *known == front).map(|(part, _)| *part);
        let role = part.map(|part| Self { part, kind }).filter(|role| role.to_string() == name);
        role.ok_or_else(|| Error::unknown_name("weight", name, &Part::ALL.map(|(_, name)| name)))
    }
}

/// The projection through which units reach the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writer {
    /// `attn.o`, which heads write through.
    Attention,
    /// `mlp.down`.
    Mlp,
}

impl Writer {
    /// Both, in the order in which a layer has them.
    pub const ALL: [Self; 2] = [Self::Attention, Self::Mlp];

    /// The one that units of a kind write through, if it is one.
    pub fn of(site: Site) -> Option<Self> {
        match site {
            Site::Head | Site::KvGroup | Site::Attention => Some(Self::Attention),
            Site::Channel | Site::Mlp => Some(Self::Mlp),
            Site::Layer => None,
        }
    }

    /// The kind of the units that leave one by one, of those that write through it.
    pub fn site(self) -> Site {
        match self {
            Self::Attention => Site::Head,
            Self::Mlp => Site::Channel,
        }
    }

    /// Its part in the table.
    pub fn part(self) -> Part {
        match self {
            Self::Attention => Part::O,
            Self::Mlp => Part::Down,
        }
    }
}

/// One axis of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// So many entries, whatever is there.
    Fixed(usize),
    /// So many entries for each unit of the layer.
    PerUnit(Site, usize),
}

/// How a canonical weight lies in a Hugging Face tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As it is.
    Plain,
    /// Transposed: GPT-2's `Conv1D` stores `(in, out)`.
    Transposed,
    /// One of several that follow each other in a tensor, by their outputs: the how manieth.
    Stacked(usize),
    /// The same in a transposed tensor: GPT-2's fused Q, K, V.
    StackedTransposed(usize),
    /// One of several that take turns in a tensor, a head each: GPT-NeoX's fused Q, K, V.
    Interleaved {
        /// The how manieth.
        order: usize,
        /// Outputs of a turn.
        width: usize,
    },
}

impl Layout {
    /// Whether the tensor lies transposed.
    pub fn is_transposed(self) -> bool {
        matches!(self, Self::Transposed | Self::StackedTransposed(_))
    }

    /// Which of several in a tensor it is.
    pub fn order(self) -> usize {
        match self {
            Self::Stacked(order) | Self::StackedTransposed(order) | Self::Interleaved { order, .. } => order,
            Self::Plain | Self::Transposed => 0,
        }
    }
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// The layer that it belongs to, if it is one's.
    pub layer: Option<usize>,
    /// What it is.
    pub role: Role,
    /// `(out, in)`, or one axis.
    pub axes: Vec<Axis>,
    /// The Hugging Face name, with the base prefix.
    pub hf_name: String,
    /// How it is stored there.
    pub layout: Layout,
    /// Whether a checkpoint may lack it.
    pub optional: bool,
}

impl Weight {
    /// The canonical name, as in `layers.3.attn.q.weight`.
    pub fn name(&self) -> String {
        match self.layer {
            Some(layer) => format!("layers.{layer}.{}", self.role),
            None => self.role.to_string(),
        }
    }

    /// Its shape in a model that has these units.
    pub fn shape(&self, units: &UnitMap) -> Vec<usize> {
        let size = |axis: &Axis| match (*axis, self.layer) {
            (Axis::Fixed(size), _) => size,
            (Axis::PerUnit(site, width), layer) => {
                let layer = layer.and_then(|layer| units.layers().get(layer));
                layer.map_or(0, |layer| layer.count(site)) * width
            }
        };
        self.axes.iter().map(size).collect()
    }

    /// Whose rows or columns it has, and how many each unit has.
    pub fn owner(&self) -> Option<(Site, usize)> {
        self.axes.iter().find_map(|axis| match axis {
            Axis::PerUnit(site, width) => Some((*site, *width)),
            Axis::Fixed(_) => None,
        })
    }

    /// How it splits into its owner's lanes; a bias is one row.
    pub fn lanes(&self) -> Lanes {
        match &self.axes[..] {
            [Axis::PerUnit(..), _] => Lanes::Rows,
            [Axis::PerUnit(..)] | [_, Axis::PerUnit(..)] => Lanes::Cols,
            _ => Lanes::Whole,
        }
    }
}

/// The axes of a part's parameter in a model of this shape; `None` where there is no such parameter.
fn axes(spec: &ModelSpec, Role { part, kind }: Role) -> Option<Vec<Axis>> {
    let d = Axis::Fixed(spec.hidden_size);
    let channels = Axis::PerUnit(Site::Channel, 1);
    let heads = Axis::PerUnit(Site::Head, spec.head_dim);
    let groups = Axis::PerUnit(Site::KvGroup, spec.head_dim);
    let tokens = Axis::Fixed(spec.vocab_size);
    let norm_bias = spec.norm == Norm::Layer && spec.norm_bias;
    let (has_weight, out, input, has_bias) = match part {
        Part::Tokens => (true, tokens, Some(d), false),
        Part::Positions => (true, Axis::Fixed(spec.first_position + spec.max_positions), Some(d), false),
        Part::Types => (true, Axis::Fixed(spec.type_vocab_size), Some(d), false),
        Part::ScoreBias => {
            let heads = spec.layers.first().map_or(0, |layer| layer.num_heads);
            (spec.score_bias, Axis::Fixed(DISTANCE_BUCKETS), Some(Axis::Fixed(heads)), false)
        }
        Part::EmbedNorm | Part::Norm1 | Part::Norm2 | Part::FinalNorm | Part::HeadNorm => {
            (true, d, None, norm_bias)
        }
        Part::Post1 | Part::Post2 => (true, d, None, norm_bias),
        Part::QNorm | Part::KNorm => match (spec.qk_norm, part) {
            (QkNorm::All, Part::QNorm) => (true, heads, None, false),
            (QkNorm::All, _) => (true, groups, None, false),
            (kind, _) => (kind == QkNorm::Heads, Axis::Fixed(spec.head_dim), None, false),
        },
        Part::Q => (true, heads, Some(d), spec.qkv_bias),
        Part::K | Part::V => (true, groups, Some(d), spec.qkv_bias),
        Part::O => (true, d, Some(heads), spec.out_bias),
        Part::Gate => (spec.gated_mlp, channels, Some(d), spec.mlp_bias),
        Part::Up => (true, channels, Some(d), spec.mlp_bias),
        Part::Down => (true, d, Some(channels), spec.mlp_bias),
        Part::Pooler => (true, d, Some(d), true),
        Part::HeadTransform => (true, d, Some(d), spec.transform_bias),
        Part::NextSentence => (true, Axis::Fixed(2), Some(d), true),
        Part::Head => match spec.objective {
            Objective::Classifier { labels } | Objective::MultiLabel { labels } => {
                (true, Axis::Fixed(labels), Some(d), true)
            }
            Objective::MaskedLm => (!spec.tied_head, tokens, Some(d), spec.head_bias),
            Objective::CausalLm => (!spec.tied_head, tokens, Some(d), false),
            Objective::Encoder => (false, tokens, Some(d), false),
        },
    };
    match kind {
        Kind::Weight if has_weight => Some(std::iter::once(out).chain(input).collect()),
        Kind::Bias if has_bias => Some(vec![out]),
        _ => None,
    }
}

/// Where a weight's outputs lie in its tensor, one after the other, and how many outputs all that share the
/// tensor have.
pub(crate) fn rows_in_tensor(table: &[Weight], weight: &Weight, units: &UnitMap) -> (Vec<usize>, usize) {
    let outputs = |weight: &Weight| weight.shape(units).first().copied().unwrap_or(0);
    let sharing = || table.iter().filter(|other| other.hf_name == weight.hf_name);
    let (own, all) = (outputs(weight), sharing().map(outputs).sum());
    let rows = match weight.layout {
        Layout::Interleaved { order, width } => {
            let parts = sharing().count();
            (0..own).map(|row| (row / width * parts + order) * width + row % width).collect()
        }
        layout => {
            let before = sharing().filter(|other| other.layout.order() < layout.order());
            let first: usize = before.map(outputs).sum();
            (first..first + own).collect()
        }
    };
    (rows, all)
}

/// A table in the making. Parameters that a model of this shape does not have are left out.
#[derive(Debug)]
pub struct Table<'s> {
    spec: &'s ModelSpec,
    weights: Vec<Weight>,
}

impl<'s> Table<'s> {
    /// An empty table for models of this shape.
    pub fn new(spec: &'s ModelSpec) -> Self {
        Self { spec, weights: Vec::new() }
    }

    /// The shape of the model.
    pub fn spec(&self) -> &'s ModelSpec {
        self.spec
    }

    /// A part outside the layers: its weight and its bias under `module`.
    pub fn add(&mut self, part: Part, module: &str) -> &mut Self {
        self.part(None, part, module, |_| Layout::Plain)
    }

    /// A part of a layer.
    pub fn add_to(&mut self, layer: usize, part: Part, module: &str) -> &mut Self {
        self.part(Some(layer), part, module, |_| Layout::Plain)
    }

    /// A part of a layer that lies in its file in ways of its own.
    pub fn add_laid(
        &mut self,
        layer: usize,
        part: Part,
        module: &str,
        layout: impl Fn(Kind) -> Layout,
    ) -> &mut Self {
        self.part(Some(layer), part, module, layout)
    }

    fn part(
        &mut self,
        layer: Option<usize>,
        part: Part,
        module: &str,
        layout: impl Fn(Kind) -> Layout,
    ) -> &mut Self {
        for (kind, end) in [(Kind::Weight, "weight"), (Kind::Bias, "bias")] {
            self.one(layer, Role { part, kind }, format!("{module}.{end}"), layout(kind), false);
        }
        self
    }

    /// A part outside the layers that a checkpoint may lack.
    pub fn add_optional(&mut self, part: Part, module: &str) -> &mut Self {
        for (kind, end) in [(Kind::Weight, "weight"), (Kind::Bias, "bias")] {
            self.one(None, Role { part, kind }, format!("{module}.{end}"), Layout::Plain, true);
        }
        self
    }

    /// A single parameter outside the layers, under its full name.
    pub fn add_one(&mut self, part: Part, kind: Kind, name: &str) -> &mut Self {
        self.one(None, Role { part, kind }, name.to_owned(), Layout::Plain, false);
        self
    }

    fn one(&mut self, layer: Option<usize>, role: Role, hf_name: String, layout: Layout, optional: bool) {
        if let Some(axes) = axes(self.spec, role) {
            self.weights.push(Weight { layer, role, axes, hf_name, layout, optional });
        }
    }

    /// The table.
    pub fn finish(&mut self) -> Vec<Weight> {
        std::mem::take(&mut self.weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_name_of_its_own() {
        for (part, _) in Part::ALL {
            for kind in [Kind::Weight, Kind::Bias] {
                let role = Role { part, kind };
                assert_eq!(role.to_string().parse::<Role>().expect("its own name"), role);
            }
        }
        for name in ["attn.q", "embed.tokens.weight", "attn.x.weight", ""] {
            assert!(name.parse::<Role>().is_err(), "{name}");
        }
    }
}
