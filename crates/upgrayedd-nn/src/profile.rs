//! Where time and memory go, for benchmarks and tests.

use std::panic::Location;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rayon::iter::{IndexedParallelIterator, ParallelIterator};

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

/// Work of the CPU device that was cut into tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// Where it is cut: file and line.
    pub place: &'static Location<'static>,
    /// Seconds that passed before it since the last task of the work before: what is not cut.
    pub serial: f64,
    /// Seconds of each task, in their order.
    pub tasks: Vec<f64>,
}

impl Cut {
    /// Seconds that the tasks would take on so many threads, each of which takes the next task when it is free.
    pub fn on(&self, threads: usize) -> f64 {
        let mut busy = vec![0.0f64; threads.min(self.tasks.len()).max(1)];
        for task in &self.tasks {
            if let Some(first) = busy.iter_mut().min_by(|a, b| a.total_cmp(b)) {
                *first += task;
            }
        }
        busy.into_iter().fold(0.0, f64::max)
    }
}

static CUTTING: AtomicBool = AtomicBool::new(false);
static CUTS: Mutex<(Vec<Cut>, Option<Instant>)> = Mutex::new((Vec::new(), None));

fn cuts() -> std::sync::MutexGuard<'static, (Vec<Cut>, Option<Instant>)> {
    CUTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// As many threads as work is cut for while cuts are recorded.
static CUT_FOR: AtomicUsize = AtomicUsize::new(0);

/// As many threads as work is to be cut for.
pub(crate) fn threads() -> usize {
    match CUT_FOR.load(Relaxed) {
        0 => rayon::current_num_threads(),
        threads => threads,
    }
}

/// Runs `f` and says how its work is cut for so many threads, and how many seconds passed after the last of it. Tasks have to
/// run one after the other: in a pool of one thread.
pub fn record_cuts<R>(threads: usize, f: impl FnOnce() -> R) -> (R, Vec<Cut>, f64) {
    *cuts() = (Vec::new(), Some(Instant::now()));
    CUT_FOR.store(threads, Relaxed);
    CUTTING.store(true, Relaxed);
    let result = f();
    CUTTING.store(false, Relaxed);
    CUT_FOR.store(0, Relaxed);
    let (found, last) = std::mem::take(&mut *cuts());
    (result, found, last.map_or(0.0, |last| last.elapsed().as_secs_f64()))
}

fn begin(place: &'static Location<'static>) {
    let (found, last) = &mut *cuts();
    let serial = last.map_or(0.0, |last| last.elapsed().as_secs_f64());
    found.push(Cut { place, serial, tasks: Vec::new() });
}

fn add_tasks(took: Duration, count: usize) {
    let (found, last) = &mut *cuts();
    if let Some(cut) = found.last_mut() {
        cut.tasks.extend(std::iter::repeat_n(took.as_secs_f64() / count as f64, count));
    }
    *last = Some(Instant::now());
}

/// Parallel work whose tasks are timed while that is asked for.
pub(crate) trait Tasks: IndexedParallelIterator {
    /// Runs a task for each item.
    #[track_caller]
    fn for_each_task(self, f: impl Fn(Self::Item) + Send + Sync) {
        self.for_each(task(f));
    }

    /// What a task makes of each item, in their order.
    #[track_caller]
    fn map_tasks<R: Send>(self, f: impl Fn(Self::Item) -> R + Send + Sync) -> Vec<R> {
        self.map(task(f)).collect()
    }
}

impl<T: IndexedParallelIterator> Tasks for T {}

#[track_caller]
fn task<A, R>(f: impl Fn(A) -> R + Send + Sync) -> impl Fn(A) -> R + Send + Sync {
    let cutting = CUTTING.load(Relaxed);
    if cutting {
        begin(Location::caller());
    }
    move |given| {
        if !cutting {
            return f(given);
        }
        let start = Instant::now();
        let result = f(given);
        add_tasks(start.elapsed(), 1);
        result
    }
}

/// Work that a library cuts into so many tasks.
#[track_caller]
pub(crate) fn cut_elsewhere(count: usize, f: impl FnOnce()) {
    if !CUTTING.load(Relaxed) {
        return f();
    }
    begin(Location::caller());
    let start = Instant::now();
    f();
    add_tasks(start.elapsed(), count.max(1));
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

    #[test]
    fn tasks_take_as_long_as_the_thread_with_most() {
        let cut = |tasks: &[f64]| Cut { place: Location::caller(), serial: 0.0, tasks: tasks.to_vec() };
        assert_eq!(cut(&[1.0; 8]).on(4), 2.0);
        assert_eq!(cut(&[1.0; 9]).on(4), 3.0);
        assert_eq!(cut(&[1.0, 1.0, 4.0]).on(2), 5.0);
        assert_eq!(cut(&[]).on(8), 0.0);
    }
}
