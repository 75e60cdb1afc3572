//! What can be removed from a model, what of it is there, and a number for each. Indices are the original
//! ones for the whole life of a model. Imports nothing but errors.

mod map;
mod paths;
mod scores;
mod sites;
mod unit;

pub use map::{LayerUnits, UnitMap, listed};
pub use paths::Paths;
pub use scores::{Scores, rank_correlation};
pub use sites::Sites;
pub use unit::{LayerSite, Selection, Site, Unit, heads_by_layer};

/// The key in config.json under which an optimised model keeps its units.
pub const CONFIG_KEY: &str = "upgrayedd";
/// Version of what stands there.
pub const FORMAT: u64 = 2;
