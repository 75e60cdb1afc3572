//! Where time and memory go, for benchmarks and tests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

pub use crate::pool::fresh_buffers;

static ON: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);
static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Matrix products of the CPU device, of all threads together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Products {
    /// Seconds that threads have spent in them; with two threads, two a second.
    pub thread_seconds: f64,
    /// Floating-point operations, two for each multiplication with its addition.
    pub flops: f64,
}

/// Runs `f` and counts the matrix products meanwhile, whoever asked for them. One count at a time.
pub fn count_products<R>(f: impl FnOnce() -> R) -> (R, Products) {
    NANOSECONDS.store(0, Relaxed);
    FLOPS.store(0, Relaxed);
    ON.store(true, Relaxed);
    let result = f();
    ON.store(false, Relaxed);
    (
        result,
        Products {
            thread_seconds: NANOSECONDS.load(Relaxed) as f64 * 1e-9,
            flops: FLOPS.load(Relaxed) as f64,
        },
    )
}

/// Runs a product on `threads` threads.
pub(crate) fn product((m, n, k): (usize, usize, usize), threads: usize, f: impl FnOnce()) {
    if !ON.load(Relaxed) {
        return f();
    }
    let start = Instant::now();
    f();
    NANOSECONDS.fetch_add(start.elapsed().as_nanos() as u64 * threads as u64, Relaxed);
    FLOPS.fetch_add(2 * (m * n * k) as u64, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ParamSet, Tape, Tensor, ops};

    #[test]
    fn products_are_counted_while_asked_for() {
        let params = ParamSet::default();
        let multiply = || {
            let mut tape = Tape::inference(Device::cpu(), &params);
            let [x, w] = [[30, 40], [300, 40]].map(|shape| tape.constant(Tensor::full(&shape, 1.0)));
            ops::linear(&mut tape, &x, &w, None).expect("not stopped").tensor().data()[0]
        };
        let (value, products) = count_products(multiply);
        // Tests run side by side, so there may be more.
        assert!(
            value == 40.0 && products.flops >= f64::from(2 * 30 * 40 * 300) && products.thread_seconds > 0.0
        );
    }
}
