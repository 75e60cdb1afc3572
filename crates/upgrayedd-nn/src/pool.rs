//! Reuse of CPU buffers: a training step allocates the same sizes over and over, and fresh pages cost more
//! than kernels.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Buffers above this many elements are returned to the system: weights, not activations.
const LARGEST: usize = 16 << 20;
/// The most elements that may lie idle in the pool (1 GiB).
const CAPACITY: usize = 256 << 20;

struct Pool {
    idle: BTreeMap<usize, Vec<Vec<f32>>>,
    elements: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: BTreeMap::new(), elements: 0 });

/// Buffers that came from the system.
static FRESH: AtomicU64 = AtomicU64::new(0);

fn lock() -> std::sync::MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Capacity used for `len` elements: four classes to each power of two, so that ragged batches reuse buffers
/// too.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 8).max(16);
    len.div_ceil(step) * step
}

/// A buffer of `len` elements with unspecified (but initialised) contents.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let class = size_class(len);
    let reused = {
        let mut pool = lock();
        let found = pool.idle.get_mut(&class).and_then(Vec::pop);
        if found.is_some() {
            pool.elements -= class;
        }
        found
    };
    if let Some(mut buffer) = reused {
        buffer.resize(len, 0.0);
        return buffer;
    }
    FRESH.fetch_add(1, Ordering::Relaxed);
    // Zeroed pages come lazily from the system; the exact class keeps the buffer reusable.
    let mut buffer = vec![0.0; if len <= LARGEST { class } else { len }];
    buffer.truncate(len);
    buffer
}

/// How many buffers have been asked of the system since the process started: in a steady state, none any
/// more.
pub fn fresh_buffers() -> u64 {
    FRESH.load(Ordering::Relaxed)
}

/// Takes `buffer` back for a later [`take`].
pub(crate) fn give_back(buffer: Vec<f32>) {
    let class = buffer.capacity();
    if class == 0 || class > LARGEST || class != size_class(class) {
        return;
    }
    let mut pool = lock();
    if pool.elements + class <= CAPACITY {
        pool.elements += class;
        pool.idle.entry(class).or_default().push(buffer);
    }
}

/// Returns all idle buffers to the system; called between phases whose shapes differ.
pub fn trim() {
    let idle = {
        let mut pool = lock();
        pool.elements = 0;
        std::mem::take(&mut pool.idle)
    };
    drop(idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_are_stable_and_large_enough() {
        for len in [1, 15, 16, 17, 100, 1000, 4097, 1 << 20, (1 << 20) + 1] {
            let class = size_class(len);
            assert!(class >= len && class <= len + len / 4 + 16, "{len} → {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
