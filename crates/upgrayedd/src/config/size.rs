//! Amounts of memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes, as people write them: `8GB`, `512MiB`.
///
/// ```
/// use upgrayedd::config::Size;
///
/// assert_eq!("1.5GB".parse::<Size>()?.bytes(), 1_500_000_000);
/// assert_eq!("2GiB".parse::<Size>()?.to_string(), "2147483648B");
/// assert_eq!("6 gb".parse::<Size>()?.to_string(), "6GB");
/// assert!("6".parse::<Size>().is_err() && "0.4B".parse::<Size>().is_err());
/// # Ok::<(), upgrayedd::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

/// Those that are written, the largest first, and those that are read too.
const DECIMAL: [(&str, u64); 5] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000), ("B", 1)];
const BINARY: [(&str, u64); 4] = [("KIB", 1 << 10), ("MIB", 1 << 20), ("GIB", 1 << 30), ("TIB", 1 << 40)];

impl Size {
    /// How many.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let upper = text.trim().to_ascii_uppercase();
        let with_unit =
            BINARY.iter().chain(&DECIMAL).find_map(|(unit, bytes)| Some((upper.strip_suffix(unit)?, *bytes)));
        let bytes =
            with_unit.and_then(|(digits, unit)| Some(digits.trim().parse::<f64>().ok()? * unit as f64));
        match bytes {
            Some(bytes) if (1.0..=1e18).contains(&bytes) => Ok(Self(bytes as u64)),
            _ => Err(Error::malformed(format!(
                "memory {text:?}: expected an amount with its unit, as in 8GB or 512MiB"
            ))),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = DECIMAL.iter().find(|(_, unit)| self.0.is_multiple_of(*unit));
        let (name, unit) = whole.copied().unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl TryFrom<String> for Size {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}
