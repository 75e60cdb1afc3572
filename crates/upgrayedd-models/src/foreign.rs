//! Readers of other libraries that panic on files that lie: their panics become errors.

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs a library's reader; returns what it says is wrong, whether in an error or in a panic. Nothing is
/// printed: the process's panic hook is passed over for the time being, on this thread.
pub(crate) fn foreign<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            if !INSIDE.get() {
                print(info);
            }
        }));
    });
    let outer = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(outer);
    match result {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(payload) => {
            let said = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref().copied());
            Err(said.unwrap_or("it cannot be read").to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_are_told_alike() {
        let fail = |how: u32| {
            foreign(move || match how {
                0 => Ok(3),
                1 => Err("too short"),
                2 => panic!("short of {how} bytes"),
                _ => panic!("short"),
            })
        };
        assert_eq!(fail(0), Ok(3));
        assert_eq!(
            [1, 2, 3].map(|how| fail(how).err()),
            ["too short", "short of 2 bytes", "short"].map(|e| Some(e.to_owned()))
        );
        assert!(!INSIDE.get());
    }
}
