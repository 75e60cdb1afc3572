//! Devices that are open.

use std::sync::{Mutex, PoisonError};

use super::driver::{Card, Driver};
use super::gpu::{Gpu, Traffic};
use super::launch::Kind;
use crate::Result;
use crate::kernels::Precision;

/// An open device.
pub(crate) struct Cuda {
    pub(super) gpu: &'static Gpu,
    /// `None`: the emulator.
    index: Option<usize>,
}

/// Devices that are open: they stay so.
static OPEN: Mutex<Vec<&'static Cuda>> = Mutex::new(Vec::new());

impl Cuda {
    /// How many GPUs the driver finds.
    pub(crate) fn count() -> usize {
        Card::count().unwrap_or(0)
    }

    /// Opens a GPU, or finds it open.
    pub(crate) fn open(index: usize, precision: Precision) -> std::result::Result<&'static Self, String> {
        Self::open_by(Some(index), precision, || Ok(Box::new(Card::open(index)?)))
    }

    /// Opens the emulated device.
    #[cfg(feature = "emulator")]
    pub(crate) fn emulated(precision: Precision) -> std::result::Result<&'static Self, String> {
        Self::open_by(None, precision, || Ok(Box::new(super::emulated::Emulator::new())))
    }

    fn open_by(
        index: Option<usize>,
        precision: Precision,
        driver: impl FnOnce() -> std::result::Result<Box<dyn Driver>, String>,
    ) -> std::result::Result<&'static Self, String> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |cuda: &&&Self| cuda.index == index && cuda.gpu.precision == precision;
        if let Some(cuda) = open.iter().find(is_it) {
            return Ok(cuda);
        }
        let gpu: &'static Gpu = Box::leak(Box::new(Gpu::new(driver()?, precision)));
        let cuda: &'static Self = Box::leak(Box::new(Self { gpu, index }));
        open.push(cuda);
        Ok(cuda)
    }

    /// As the command line has it.
    pub(crate) fn id(&self) -> String {
        self.index.map_or_else(|| "emulated".to_owned(), |index| format!("cuda:{index}"))
    }

    /// The card's name.
    pub(crate) fn name(&self) -> String {
        self.gpu.name()
    }

    pub(crate) fn precision(&self) -> Precision {
        self.gpu.precision
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.gpu.traffic()
    }

    pub(crate) fn times(&self) -> Vec<(String, u64, f64)> {
        self.gpu.times()
    }

    pub(crate) fn settle(&self) -> Result<()> {
        self.gpu.settle();
        self.gpu.check()
    }

    /// The type of activations.
    pub(super) fn small(&self) -> Kind {
        if self.gpu.precision == Precision::Bf16 { Kind::Bf16 } else { Kind::F32 }
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id())
    }
}
