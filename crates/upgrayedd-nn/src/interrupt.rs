//! Stopping long work. Whoever starts it may install a question on its thread, which the work asks now and
//! then, between two ops or two chunks of something long; a yes comes back as [`Error::Interrupted`], and
//! every later question has the same answer. The question is the thread's and not an argument: from
//! tokenising to the ops, everything that takes long may ask it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// The question is asked at most this often.
const EVERY: Duration = Duration::from_millis(100);

struct Watch {
    ask: Box<dyn FnMut() -> bool>,
    last: Instant,
    stopped: bool,
}

thread_local! {
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Puts the question of further out back, however the work ends.
struct Restore(Option<Watch>);

impl Drop for Restore {
    fn drop(&mut self) {
        WATCH.replace(self.0.take());
    }
}

/// Runs `work` on this thread, which is to stop when `stop` says yes.
pub fn watch<T>(stop: impl FnMut() -> bool + 'static, work: impl FnOnce() -> T) -> T {
    let watch = Watch { ask: Box::new(stop), last: Instant::now(), stopped: false };
    let _outer = Restore(WATCH.replace(Some(watch)));
    work()
}

/// Runs `work`, which is to be finished whatever the answer is: saving what has been learned, say.
pub fn unstoppable<T>(work: impl FnOnce() -> T) -> T {
    let _outer = Restore(WATCH.replace(None));
    work()
}

/// Asks, if it is time to.
///
/// # Errors
/// Returns [`Error::Interrupted`] if the answer is yes, or was before.
pub fn check() -> Result<()> {
    let is_due = |watch: &Watch| watch.stopped || watch.last.elapsed() >= EVERY;
    if !WATCH.with_borrow(|watch| watch.as_ref().is_some_and(is_due)) {
        return Ok(());
    }
    // Out of its place while it is asked: whoever answers may start work of its own.
    let Some(mut watch) = WATCH.take() else { return Ok(()) };
    watch.stopped = watch.stopped || (watch.ask)();
    watch.last = Instant::now();
    let stopped = watch.stopped;
    WATCH.replace(Some(watch));
    if stopped { Err(Error::Interrupted) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_ends_soon_after_the_answer_is_yes_and_only_then() {
        let forever = || -> Result<()> {
            loop {
                std::thread::sleep(Duration::from_millis(10));
                check()?;
            }
        };
        let start = Instant::now();
        assert_eq!(watch(|| true, forever), Err(Error::Interrupted));
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(watch(|| false, || 3), 3);
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn whoever_is_asked_may_work_and_be_asked() {
        let stopped = || {
            std::thread::sleep(EVERY);
            check()
        };
        let inner = move || watch(|| true, stopped).is_ok();
        watch(inner, || {
            std::thread::sleep(EVERY);
            assert_eq!(check(), Ok(()));
            std::thread::sleep(EVERY);
            assert_eq!(check(), Ok(()));
        });
    }

    #[test]
    fn a_yes_stays_one_and_what_must_be_finished_is() {
        let mut asked = 0;
        let once = move || {
            asked += 1;
            asked == 1
        };
        watch(once, || {
            std::thread::sleep(EVERY);
            assert_eq!(check(), Err(Error::Interrupted));
            assert_eq!(unstoppable(check), Ok(()));
            assert_eq!(check(), Err(Error::Interrupted));
        });
    }
}
