//! Where tensors live and kernels run. A device is one implementation of `Kernels`.

pub(crate) mod cpu;

use std::str::FromStr;

use crate::kernels::Kernels;

/// A place to compute, chosen at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's processor, in `f32`, on the current rayon pool.
    Cpu,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not one of the known forms.
    #[error("unknown device {0:?}: expected one of auto, cpu, cuda, cuda:N")]
    Unknown(String),
    /// The program has no support for the device.
    #[error("device {0:?} is not available: this build of upgrayedd computes on the CPU only; use --device cpu or auto")]
    Unavailable(String),
}

impl Device {
    /// The host's processor.
    pub fn cpu() -> Self {
        Self::Cpu
    }

    pub(crate) fn kernels(self) -> &'static dyn Kernels {
        match self {
            Self::Cpu => &cpu::Cpu,
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let is_cuda = name == "cuda" || name.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
        match name {
            "auto" | "cpu" => Ok(Self::Cpu),
            _ if is_cuda => Err(DeviceError::Unavailable(name.to_owned())),
            _ => Err(DeviceError::Unknown(name.to_owned())),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
        })
    }
}
