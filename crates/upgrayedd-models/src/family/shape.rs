//! Where a family's configuration says how many units its layers have.

/// The keys of config.json that say how large the layers are, where all are alike: what a pruned model needs to be a
/// plain model of its family.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How many layers there are; `None` where a layer's place says what it is, so that none can be left out.
    pub layers: Option<&'static str>,
    /// Lists with an entry for each layer.
    pub by_layer: &'static [&'static str],
    /// Which numbers of heads there can be.
    pub heads: Heads,
    /// The MLP's width; `None` where no key says it.
    pub channels: Option<&'static str>,
    /// Whether classes of transformers 4 lose the heads that `pruned_heads` lists.
    pub pruned_heads: bool,
}

/// Which numbers of heads a family's configuration can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// As many as make up the width of the model: `head_dim` is no key.
    Width,
    /// Any number of which the width of the model is a multiple, which transformers checks.
    Divisors,
    /// Any number.
    Any,
    /// Any number in transformers; other programs take the width of a head from their number.
    InTransformers,
}

impl Shape {
    /// Of a configuration that has no keys for other sizes than it was made for.
    pub const NONE: Self =
        Self { layers: None, by_layer: &[], heads: Heads::Width, channels: None, pruned_heads: false };

    /// Of encoders, whose layers end with a norm or differ by their place: a layer that does nothing is not the same as
    /// none.
    pub const ENCODER: Self = Self { channels: Some("intermediate_size"), ..Self::NONE };
}

impl Heads {
    /// Why a model of this width cannot have so many heads, if it cannot.
    pub(crate) fn refuses(self, heads: usize, hidden_size: usize) -> Option<String> {
        match self {
            Self::Width => Some("in this family the width of a head follows from the number of heads: a stock model keeps all of them and loses channels or layers only".to_owned()),
            Self::Divisors if !hidden_size.is_multiple_of(heads) => Some(format!(
                "transformers wants the width of the model, {hidden_size}, to be a multiple of its heads, which are {heads} now"
            )),
            _ => None,
        }
    }
}
