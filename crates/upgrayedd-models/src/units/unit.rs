//! What a unit is and where.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A kind of unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Site {
    /// A query head.
    #[default]
    #[serde(rename = "heads")]
    Head,
    /// A key/value head with the query heads that read it.
    #[serde(rename = "kv-groups")]
    KvGroup,
    /// A column of the MLP's hidden layer.
    #[serde(rename = "channels")]
    Channel,
    /// A layer's whole attention.
    #[serde(rename = "attention")]
    Attention,
    /// A layer's whole MLP.
    #[serde(rename = "mlp")]
    Mlp,
    /// A layer.
    #[serde(rename = "layers")]
    Layer,
}

impl Site {
    /// Every kind with its name in files and options, finest first.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Head, "heads"),
        (Self::KvGroup, "kv-groups"),
        (Self::Channel, "channels"),
        (Self::Attention, "attention"),
        (Self::Mlp, "mlp"),
        (Self::Layer, "layers"),
    ];

    /// What messages call one of them.
    pub fn one(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::KvGroup => "key/value head",
            Self::Channel => "channel",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Layer => "layer",
        }
    }

    /// The units that leave when such units do, by themselves as weights have them: heads, channels.
    pub const fn leaves(self) -> &'static [Self] {
        match self {
            Self::Head | Self::KvGroup | Self::Attention => &[Self::Head],
            Self::Channel | Self::Mlp => &[Self::Channel],
            Self::Layer => &[Self::Head, Self::Channel],
        }
    }

    /// The kind in which budgets count such units: whole key/value heads are so many query heads.
    pub const fn counted(self) -> Self {
        match self {
            Self::KvGroup => Self::Head,
            site => site,
        }
    }

    /// Whether it is all of a layer's attention, of its MLP, or both.
    pub const fn is_block(self) -> bool {
        matches!(self, Self::Attention | Self::Mlp | Self::Layer)
    }

    /// The name in files and options.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(site, _)| *site == self).map_or("", |(_, name)| name)
    }
}

impl std::str::FromStr for Site {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(site, _)| site);
        found.ok_or_else(|| Error::unknown_name("kind of units", name, &Self::ALL.map(|(_, name)| name)))
    }
}

/// Units of one kind in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerSite {
    /// Layer, from 0.
    pub layer: usize,
    /// Kind.
    pub site: Site,
}

impl LayerSite {
    /// A layer's query heads.
    pub const fn heads(layer: usize) -> Self {
        Self { layer, site: Site::Head }
    }

    /// A layer's channels.
    pub const fn channels(layer: usize) -> Self {
        Self { layer, site: Site::Channel }
    }
}

/// A unit, by its original index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit {
    /// Layer, from 0.
    pub layer: usize,
    /// Kind.
    pub site: Site,
    /// Index in the unpruned layer, from 0.
    pub index: usize,
}

impl Unit {
    /// A query head.
    pub const fn head(layer: usize, index: usize) -> Self {
        Self { layer, site: Site::Head, index }
    }

    /// A key/value head.
    pub const fn kv_group(layer: usize, index: usize) -> Self {
        Self { layer, site: Site::KvGroup, index }
    }

    /// Where it is.
    pub const fn place(self) -> LayerSite {
        LayerSite { layer: self.layer, site: self.site }
    }
}

/// Units by where they are.
pub type Selection = BTreeMap<LayerSite, Vec<usize>>;

/// Heads by layer, as a selection.
pub fn heads_by_layer(heads: BTreeMap<usize, Vec<usize>>) -> Selection {
    heads.into_iter().map(|(layer, heads)| (LayerSite::heads(layer), heads)).collect()
}
