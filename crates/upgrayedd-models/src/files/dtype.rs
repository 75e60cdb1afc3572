//! Element types of weights.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::unknown_name;
use crate::{Error, Result};

/// Element type in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit float.
    #[serde(rename = "float32")]
    F32,
    /// 16-bit float.
    #[serde(rename = "float16")]
    F16,
    /// Brain float.
    #[serde(rename = "bfloat16")]
    BF16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// torch's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// The nearest value that the type can hold.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::BF16 => half::bf16::from_f32(value).to_f32(),
        }
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::F32, Self::F16, Self::BF16];
        all.into_iter().find(|d| d.name() == name).ok_or_else(|| unknown_name("dtype", name, &all.map(Self::name)))
    }
}
