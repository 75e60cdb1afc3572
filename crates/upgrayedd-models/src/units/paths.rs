//! What files and messages call a layer's units.

use super::unit::Site;

/// Module paths, layer by layer: of what heads belong to, and of what channels do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    attention: Vec<String>,
    mlp: Vec<String>,
}

impl Paths {
    /// Of as many layers as there are of both.
    pub fn new(attention: Vec<String>, mlp: Vec<String>) -> Self {
        Self { attention, mlp }
    }

    /// The layers' paths where units of a kind belong.
    pub fn of(&self, site: Site) -> &[String] {
        match site {
            Site::Channel | Site::Mlp => &self.mlp,
            Site::Head | Site::KvGroup | Site::Attention | Site::Layer => &self.attention,
        }
    }

    /// The layer that is called so where units of a kind belong.
    pub fn find(&self, site: Site, path: &str) -> Option<usize> {
        self.of(site).iter().position(|known| known == path)
    }
}
