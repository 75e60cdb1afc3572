//! Kinds of units that go together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::unit::Site;
use crate::{Error, Result};

/// Kinds of units that are pruned in one run, finest first. As text, their names with commas between them; `all`
/// stands for the finest of every part of a layer.
///
/// ```
/// use upgrayedd_models::units::{Site, Sites};
///
/// let all: Sites = "all".parse()?;
/// assert_eq!(all.to_string(), "heads,channels");
/// assert!(all.contains(Site::Channel) && "heads,kv-groups".parse::<Sites>().is_err());
/// # Ok::<(), upgrayedd_models::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sites {
    /// For each of [`Site::ALL`].
    wanted: [bool; Site::ALL.len()],
}

/// What stands for all of them.
const ALL: &str = "all";

impl Sites {
    /// Heads and channels: all that leaves by itself.
    pub const FINEST: Self = Self::of(Site::Head).and(Site::Channel);

    /// Of one kind.
    pub const fn of(site: Site) -> Self {
        Self { wanted: [false; Site::ALL.len()] }.and(site)
    }

    /// With one kind more.
    #[must_use]
    pub const fn and(mut self, site: Site) -> Self {
        self.wanted[site as usize] = true;
        self
    }

    /// With all kinds of another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        other.iter().fold(self, Self::and)
    }

    /// The kinds in which budgets count these: whole key/value heads are so many query heads.
    #[must_use]
    pub fn counted(self) -> Self {
        let none = Self { wanted: [false; Site::ALL.len()] };
        self.iter().fold(none, |all, site| all.and(site.counted()))
    }

    /// The kinds, finest first.
    pub fn iter(self) -> impl Iterator<Item = Site> {
        Site::ALL.into_iter().map(|(site, _)| site).filter(move |site| self.contains(*site))
    }

    /// Whether a kind is among them.
    pub fn contains(self, site: Site) -> bool {
        self.wanted[site as usize]
    }

    /// What leaves when units of these kinds do: heads, channels.
    #[must_use]
    pub fn leaves(self) -> Self {
        let none = Self { wanted: [false; Site::ALL.len()] };
        self.iter().flat_map(|site| site.leaves()).fold(none, |all, site| all.and(*site))
    }

    /// Those that are all of a layer's attention, of its MLP, or both.
    pub fn blocks(self) -> impl Iterator<Item = Site> {
        self.iter().filter(|site| site.is_block())
    }

    /// Whether units of different kinds compete.
    pub fn is_mixed(self) -> bool {
        self.iter().count() > 1
    }

    /// Names of what can be asked for.
    pub fn names() -> Vec<&'static str> {
        Site::ALL.iter().map(|(_, name)| *name).chain([ALL]).collect()
    }
}

impl Default for Sites {
    fn default() -> Self {
        Self::of(Site::Head)
    }
}

impl fmt::Display for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Site::name).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for Sites {
    type Err = Error;

    fn from_str(names: &str) -> Result<Self> {
        if names.trim() == ALL {
            return Ok(Self::FINEST);
        }
        let mut sites: Option<Self> = None;
        for name in names.split(',').map(str::trim) {
            let site = Site::ALL.iter().find(|(_, known)| *known == name).map(|(site, _)| *site);
            let site = site.ok_or_else(|| Error::unknown_name("units", name, &Self::names()))?;
            if sites.is_some_and(|sites| sites.contains(site)) {
                return Err(Error::malformed(format!("units names {name} twice")));
            }
            sites = Some(sites.map_or(Self::of(site), |sites| sites.and(site)));
        }
        let sites = sites.unwrap_or_default();
        if sites.contains(Site::Head) && sites.contains(Site::KvGroup) {
            return Err(Error::malformed(
                "units names heads and kv-groups, which are made of heads: expected one of them",
            ));
        }
        Ok(sites)
    }
}

impl TryFrom<String> for Sites {
    type Error = Error;

    fn try_from(names: String) -> Result<Self> {
        names.parse()
    }
}

impl From<Sites> for String {
    fn from(sites: Sites) -> Self {
        sites.to_string()
    }
}
