//! A driver, what has gone wrong with it, blocks of memory that are used again, lists that came from the host.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::Driver;
use super::gemm::Gemm;
use super::launch::Launch;
use crate::kernels::Precision;
use crate::{Error, Result};

/// What has crossed over, and what was asked of the driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Copies from the host.
    pub uploads: usize,
    /// Bytes of these.
    pub uploaded: usize,
    /// Copies to the host, each of which waits for the device.
    pub downloads: usize,
    /// Bytes of these.
    pub downloaded: usize,
    /// Blocks of memory that were asked of the driver.
    pub allocations: usize,
    /// Bytes of those that have not been given back.
    pub reserved: usize,
}

/// Bytes, and where they are on the device.
type List = (Box<[u8]>, Arc<Block>);

/// A device and all that lives as long as it is open.
pub(super) struct Gpu {
    driver: Box<dyn Driver>,
    pub(super) precision: Precision,
    /// Blocks that nobody uses, by their size.
    idle: Mutex<BTreeMap<usize, Vec<u64>>>,
    /// Lists that came from the host, the last used first.
    lists: Mutex<VecDeque<List>>,
    traffic: Mutex<Traffic>,
    has_failed: AtomicBool,
    /// What went wrong since the last [`Gpu::check`]; nothing is done until then.
    failure: Mutex<Option<String>>,
}

/// Lists that are kept: those of a step, and those that never change.
const LISTS: usize = 96;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sizes are rounded up to a sixteenth of a power of two, so that blocks fit again.
fn rounded(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(256);
    bytes.max(1).next_multiple_of(step)
}

impl Gpu {
    pub(super) fn new(driver: Box<dyn Driver>, precision: Precision) -> Self {
        Self {
            driver,
            precision,
            idle: Mutex::default(),
            lists: Mutex::default(),
            traffic: Mutex::default(),
            has_failed: AtomicBool::new(false),
            failure: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> String {
        self.driver.name()
    }

    pub(super) fn times(&self) -> Vec<(String, u64, f64)> {
        self.driver.times()
    }

    pub(super) fn traffic(&self) -> Traffic {
        *lock(&self.traffic)
    }

    /// What went wrong since the last time.
    pub(super) fn check(&self) -> Result<()> {
        if !self.has_failed() {
            return Ok(());
        }
        let failure = lock(&self.failure).take();
        self.has_failed.store(false, Ordering::Release);
        failure.map_or(Ok(()), |text| Err(Error::Device(text.into())))
    }

    /// Whether nothing is done until somebody asks [`Gpu::check`]: what was to be written until then was not.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub(super) fn fail(&self, text: String) {
        lock(&self.failure).get_or_insert(text);
        self.has_failed.store(true, Ordering::Release);
    }

    /// Does it, unless something has failed before.
    fn ask<T>(&self, f: impl FnOnce(&dyn Driver) -> std::result::Result<T, String>) -> Option<T> {
        if self.has_failed() {
            return None;
        }
        f(self.driver.as_ref()).map_err(|text| self.fail(text)).ok()
    }

    pub(super) fn launch(&self, launch: &Launch) {
        if launch.grid.iter().all(|extent| *extent > 0) {
            self.ask(|driver| driver.launch(launch));
        }
    }

    pub(super) fn multiply(&self, gemm: &Gemm) {
        self.ask(|driver| driver.gemm(gemm));
    }

    fn allocate(&self, size: usize) -> Option<u64> {
        if let Some(at) = lock(&self.idle).get_mut(&size).and_then(Vec::pop) {
            return Some(at);
        }
        let alloc = |driver: &dyn Driver| {
            lock(&self.traffic).allocations += 1;
            driver.alloc(size)
        };
        let mut at = self.ask(alloc)?;
        if at.is_none() {
            self.trim();
            at = self.ask(alloc)?;
        }
        lock(&self.traffic).reserved += if at.is_some() { size } else { 0 };
        if at.is_none() {
            let mib = |bytes: usize| bytes.div_ceil(1 << 20);
            let (free, total) = self.driver.memory();
            self.fail(format!(
                "{} is out of memory: {} MiB were asked for, {} of {} MiB are free: take smaller batches, or fewer \
                 tokens a window, or recompute activations",
                self.name(),
                mib(size),
                mib(free),
                mib(total)
            ));
        }
        at
    }

    /// Gives back what nobody uses.
    fn trim(&self) {
        lock(&self.lists).clear();
        for (size, blocks) in std::mem::take(&mut *lock(&self.idle)) {
            lock(&self.traffic).reserved -= size * blocks.len();
            blocks.into_iter().for_each(|at| self.driver.free(at));
        }
    }

    pub(super) fn block(&'static self, bytes: usize) -> Block {
        let size = rounded(bytes);
        Block { gpu: self, at: self.allocate(size).unwrap_or(0), size }
    }

    pub(super) fn upload(&self, to: &Block, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut traffic = lock(&self.traffic);
        traffic.uploads += 1;
        traffic.uploaded += bytes.len();
        drop(traffic);
        self.ask(|driver| driver.upload(to.at, bytes));
    }

    /// Waits for the device. NaN, which all ones are in every type, if something has failed.
    pub(super) fn download(&self, from: u64, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut traffic = lock(&self.traffic);
        traffic.downloads += 1;
        traffic.downloaded += bytes.len();
        drop(traffic);
        if self.ask(|driver| driver.download(from, bytes)).is_none() {
            bytes.fill(0xff);
        }
    }

    /// Waits for the device.
    pub(super) fn settle(&self) {
        self.ask(|driver| driver.settle());
    }

    pub(super) fn copy(&self, from: u64, to: u64, bytes: usize) {
        self.ask(|driver| driver.copy(from, to, bytes));
    }

    pub(super) fn zero(&self, block: &Block) {
        self.ask(|driver| driver.zero(block.at, block.size));
    }

    /// A list where kernels read it; the same list is sent once.
    pub(super) fn list(&'static self, bytes: &[u8]) -> Arc<Block> {
        if let Some(block) = self.known(bytes) {
            return block;
        }
        // Whoever runs out of memory forgets all lists: they are not held meanwhile.
        let block = Arc::new(self.block(bytes.len()));
        self.upload(&block, bytes);
        if !self.has_failed() {
            let mut lists = lock(&self.lists);
            lists.truncate(LISTS - 1);
            lists.push_front((bytes.into(), Arc::clone(&block)));
        }
        block
    }

    fn known(&self, bytes: &[u8]) -> Option<Arc<Block>> {
        let mut lists = lock(&self.lists);
        let at = lists.iter().position(|(list, _)| **list == *bytes)?;
        let entry = lists.remove(at)?;
        lists.push_front(entry);
        lists.front().map(|(_, block)| Arc::clone(block))
    }
}

/// Memory that goes back to its device when nobody uses it. What was asked of it is done before whatever is
/// asked of its next owner.
pub(super) struct Block {
    pub(super) gpu: &'static Gpu,
    pub(super) at: u64,
    size: usize,
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.at != 0 {
            self.gpu.driver.forget(self.at, self.size);
            lock(&self.gpu.idle).entry(self.size).or_default().push(self.at);
        }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes at {:#x}", self.size, self.at)
    }
}
