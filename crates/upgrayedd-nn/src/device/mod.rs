//! Where tensors live and kernels run. A device is one implementation of `Kernels`.

pub(crate) mod cpu;
#[cfg(feature = "fake-device")]
pub mod fake;

use std::str::FromStr;

use crate::Tensor;
use crate::kernels::{Kernels, Number};

/// A place to compute, chosen at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The host's processor, in `f32`, on the current rayon pool.
    Cpu,
    /// Memory of its own in front of the host's processor, for tests: whatever crosses over is counted.
    #[cfg(feature = "fake-device")]
    Fake,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not one of the known forms.
    #[error("unknown device {0:?}: expected one of auto, cpu, cuda, cuda:N")]
    Unknown(String),
    /// The program has no support for the device.
    #[error(
        "device {0:?} is not available: this build of upgrayedd computes on the CPU only; use cpu or auto"
    )]
    Unavailable(String),
}

impl Device {
    /// The host's processor.
    pub fn cpu() -> Self {
        Self::Cpu
    }

    /// A tensor as this device's kernels read it.
    pub fn upload(self, tensor: Tensor) -> Tensor {
        self.kernels().upload(tensor)
    }

    /// Reads numbers, all at once: whoever asks waits for the device.
    pub fn read<const N: usize>(self, numbers: [&Number; N]) -> [f64; N] {
        let values = self.kernels().read(&numbers);
        std::array::from_fn(|i| values[i])
    }

    pub(crate) fn kernels(self) -> &'static dyn Kernels {
        match self {
            Self::Cpu => &cpu::Cpu,
            #[cfg(feature = "fake-device")]
            Self::Fake => &fake::Fake,
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let is_cuda =
            name == "cuda" || name.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
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
            #[cfg(feature = "fake-device")]
            Self::Fake => "fake",
        })
    }
}
