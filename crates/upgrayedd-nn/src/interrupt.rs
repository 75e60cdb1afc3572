//! Stopping long work between two ops, or two chunks of the largest one. Whoever starts work may install a question that is asked
//! now and then; a yes unwinds the stack to where it was installed. Parameters change only in the optimiser's step, which is
//! never cut in two.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// The work was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

/// The question is asked at most this often.
const EVERY: Duration = Duration::from_millis(100);

struct Watch {
    ask: Box<dyn FnMut() -> bool>,
    last: Instant,
}

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Runs `work` on this thread and asks `stop` between its ops. Other panics pass through.
pub fn watch<T>(stop: impl FnMut() -> bool + 'static, work: impl FnOnce() -> T) -> Result<T, Interrupted> {
    let watch = Watch { ask: Box::new(stop), last: Instant::now() };
    let outer = WATCH.replace(Some(watch));
    let result = catch_unwind(AssertUnwindSafe(|| catch(work)));
    WATCH.replace(outer);
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs `work`, which may be stopped by a [`watch`] further out, and stops the unwinding here, so that the caller can save what it
/// has. Other panics pass through.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Interrupted> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => Ok(value),
        Err(payload) if payload.is::<Interrupted>() => Err(Interrupted),
        Err(payload) => resume_unwind(payload),
    }
}

/// Asks, if it is time to; unwinds to [`watch`] if the answer is yes.
pub(crate) fn check() {
    let stop = WATCH.with_borrow_mut(|watch| match watch {
        Some(watch) if watch.last.elapsed() >= EVERY => {
            watch.last = Instant::now();
            (watch.ask)()
        }
        _ => false,
    });
    if stop {
        resume_unwind(Box::new(Interrupted));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_soon_after_the_answer_is_yes_and_only_then() {
        let forever = || -> () {
            loop {
                std::thread::sleep(Duration::from_millis(10));
                check();
            }
        };
        let start = Instant::now();
        assert_eq!(watch(|| true, forever), Err(Interrupted));
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(watch(|| false, || 3), Ok(3));
        check();
    }
}
