//! Where tensors live and kernels run. A device is one implementation of `Kernels`.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "fake-device")]
pub mod fake;

use std::str::FromStr;

pub use cpu::LOGITS;

pub use crate::kernels::Precision;
use crate::kernels::{Kernels, Number};
use crate::{Result, Tensor};

/// A place to compute, chosen at run time.
#[derive(Debug, Clone, Copy)]
pub struct Device(Place);

#[derive(Debug, Clone, Copy)]
enum Place {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(&'static cuda::Cuda),
    #[cfg(feature = "fake-device")]
    Fake,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not one of the known forms.
    #[error("unknown device {0:?}: expected one of auto, cpu, cuda, cuda:N")]
    Unknown(String),
    /// There is no such precision.
    #[error("unknown precision {0:?}: expected one of bf16, tf32, f32")]
    UnknownPrecision(String),
    /// The device cannot be opened.
    #[error("device {name:?} is not available: {reason}; use cpu or auto")]
    Unavailable {
        /// The device, as it was asked for.
        name: String,
        /// What is missing.
        reason: String,
    },
}

/// A device by its name.
enum Name {
    Auto,
    Cpu,
    Cuda(usize),
    #[cfg(feature = "emulator")]
    Emulated,
}

fn parse(name: &str) -> std::result::Result<Name, DeviceError> {
    match name {
        "auto" => Ok(Name::Auto),
        "cpu" => Ok(Name::Cpu),
        #[cfg(feature = "emulator")]
        "emulated" => Ok(Name::Emulated),
        // The same command line, rehearsed without a card.
        #[cfg(feature = "emulator")]
        _ if name.starts_with("cuda")
            && std::env::var_os("UPGRAYEDD_DEVICE").is_some_and(|d| d == "emulated") =>
        {
            Ok(Name::Emulated)
        }
        "cuda" => Ok(Name::Cuda(0)),
        _ => name
            .strip_prefix("cuda:")
            .and_then(|index| index.parse().ok())
            .map(Name::Cuda)
            .ok_or_else(|| DeviceError::Unknown(name.to_owned())),
    }
}

impl Device {
    /// The host's processor.
    pub fn cpu() -> Self {
        Self(Place::Cpu)
    }

    /// Memory of its own in front of the host's processor, for tests: whatever crosses over is counted.
    #[cfg(feature = "fake-device")]
    pub fn fake() -> Self {
        Self(Place::Fake)
    }

    /// Opens the device called `name`: `auto` (the first GPU that can be used, or the CPU), `cpu`, `cuda` (the
    /// first GPU) or `cuda:N`. A GPU computes with `precision`.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] if there is no such name, and [`DeviceError::Unavailable`] if that device cannot
    /// be used.
    pub fn open(name: &str, precision: Precision) -> std::result::Result<Self, DeviceError> {
        let parsed = parse(name)?;
        let unavailable = |reason| DeviceError::Unavailable { name: name.to_owned(), reason };
        match parsed {
            Name::Cpu => Ok(Self::cpu()),
            #[cfg(feature = "cuda")]
            Name::Auto => {
                let first = (0..cuda::Cuda::count()).find_map(|i| cuda::Cuda::open(i, precision).ok());
                Ok(first.map_or(Self::cpu(), |cuda| Self(Place::Cuda(cuda))))
            }
            #[cfg(feature = "cuda")]
            Name::Cuda(index) => {
                cuda::Cuda::open(index, precision).map(|cuda| Self(Place::Cuda(cuda))).map_err(unavailable)
            }
            #[cfg(feature = "emulator")]
            Name::Emulated => {
                cuda::Cuda::emulated(precision).map(|cuda| Self(Place::Cuda(cuda))).map_err(unavailable)
            }
            #[cfg(not(feature = "cuda"))]
            Name::Auto => Ok(Self::cpu()),
            #[cfg(not(feature = "cuda"))]
            Name::Cuda(index) => {
                let _ = (index, precision);
                Err(unavailable("this build of upgrayedd computes on the CPU only".to_owned()))
            }
        }
    }

    /// Why `auto` has taken the CPU although there is a GPU.
    pub fn passed_over(self) -> Option<String> {
        match self.0 {
            #[cfg(feature = "cuda")]
            Place::Cpu if cuda::Cuda::count() > 0 => cuda::Cuda::open(0, Precision::default())
                .err()
                .map(|reason| format!("the GPU is not used: {reason}")),
            _ => None,
        }
    }

    /// Whether `name` is that of a device, which may or may not be there.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] if it is not.
    pub fn check_name(name: &str) -> std::result::Result<(), DeviceError> {
        parse(name).map(|_| ())
    }

    /// A tensor as this device's kernels read it.
    pub fn upload(self, tensor: Tensor) -> Tensor {
        self.kernels().upload(tensor)
    }

    /// Reads numbers, all at once: whoever asks waits for the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device has failed.
    pub fn read<const N: usize>(self, numbers: [&Number; N]) -> Result<[f64; N]> {
        let values = self.kernels().read(&numbers);
        self.kernels().check()?;
        Ok(std::array::from_fn(|i| values[i]))
    }

    /// Says what has gone wrong until now, without waiting.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device has failed.
    pub fn check(self) -> Result<()> {
        self.kernels().check()
    }

    /// Waits for all work that was asked for: what has been downloaded before is what was computed.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device has failed.
    pub fn settle(self) -> Result<()> {
        match self.0 {
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => cuda.settle(),
            _ => Ok(()),
        }
    }

    /// The precision of a GPU; `None` for a device that has but one.
    pub fn precision(self) -> Option<Precision> {
        match self.0 {
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => Some(cuda.precision()),
            _ => None,
        }
    }

    /// The card's name; `None` for a device that is none.
    pub fn card(self) -> Option<String> {
        match self.0 {
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => Some(cuda.name()),
            _ => None,
        }
    }

    /// What has crossed over to a GPU and back since it was opened.
    #[cfg(feature = "cuda")]
    pub fn traffic(self) -> cuda::Traffic {
        match self.0 {
            Place::Cuda(cuda) => cuda.traffic(),
            _ => cuda::Traffic::default(),
        }
    }

    /// By kernel how often it ran since the last time that this was asked and milliseconds in all, the longest first; empty unless
    /// `UPGRAYEDD_CUDA_TIMES` was set when the device was opened, which makes everything wait for everything.
    #[cfg(feature = "cuda")]
    pub fn kernel_times(self) -> Vec<(String, u64, f64)> {
        match self.0 {
            Place::Cuda(cuda) => cuda.times(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn kernels(self) -> &'static dyn Kernels {
        match self.0 {
            Place::Cpu => &cpu::Cpu,
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => cuda,
            #[cfg(feature = "fake-device")]
            Place::Fake => &fake::Fake,
        }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self.0, other.0) {
            #[cfg(feature = "cuda")]
            (Place::Cuda(a), Place::Cuda(b)) => std::ptr::eq(a, b),
            (a, b) => std::mem::discriminant(&a) == std::mem::discriminant(&b),
        }
    }
}

impl Eq for Device {}

impl FromStr for Precision {
    type Err = DeviceError;

    fn from_str(name: &str) -> std::result::Result<Self, DeviceError> {
        match name {
            "bf16" => Ok(Self::Bf16),
            "tf32" => Ok(Self::Tf32),
            "f32" => Ok(Self::F32),
            _ => Err(DeviceError::UnknownPrecision(name.to_owned())),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
            Self::F32 => "f32",
        })
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Place::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Place::Cuda(cuda) => f.write_str(&cuda.id()),
            #[cfg(feature = "fake-device")]
            Place::Fake => f.write_str("fake"),
        }
    }
}
