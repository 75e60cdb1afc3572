//! Core errors → Python exceptions. A panic of ours becomes one as well and never shows as such.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use upgrayedd::Error;
use upgrayedd::nn::interrupt::watch;

/// An exception of the package's own, by its name in `upgrayedd.errors`.
fn exception(name: &str, message: String) -> PyErr {
    Python::attach(|py| {
        match py.import("upgrayedd.errors").and_then(|m| m.getattr(name)?.call1((message.as_str(),))) {
            Ok(value) => PyErr::from_value(value),
            Err(_) => PyRuntimeError::new_err(message),
        }
    })
}

/// The Python exception for a core error; a caller's own comes back as it was raised.
pub fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Caller(inner) => match inner.downcast::<PyErr>() {
            Ok(own) => *own,
            Err(_) => exception("UpgrayeddError", message),
        },
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::File { .. } | Error::Io { .. } | Error::Hub(_) => exception("FileError", message),
        error if error.is_usage() => exception("InvalidValueError", message),
        _ => exception("UpgrayeddError", message),
    }
}

/// A Python exception on its way through the core.
pub fn from_py(error: PyErr) -> Error {
    Error::Caller(Box::new(error))
}

/// Says in Python's warnings what was passed over or taken otherwise than files say.
pub fn warn(notices: &[String]) -> upgrayedd::Result<()> {
    let all = |py: Python<'_>| {
        let category = py.import("upgrayedd.errors")?.getattr("UpgrayeddWarning")?;
        let warnings = py.import("warnings")?;
        notices.iter().try_for_each(|notice| warnings.call_method1("warn", (notice, &category)).map(drop))
    };
    if notices.is_empty() { Ok(()) } else { Python::attach(all).map_err(from_py) }
}

/// Runs core work with the interpreter released.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> upgrayedd::Result<T> + Send) -> PyResult<T> {
    let raised = Arc::new(Mutex::new(None));
    let seen = raised.clone();
    // Only the interpreter knows of Ctrl-C; it is asked between ops.
    let signalled = move || {
        let error = Python::attach(|py| py.check_signals()).err();
        let stop = error.is_some();
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = error;
        stop
    };
    let result = py.detach(|| catch_unwind(AssertUnwindSafe(|| watch(signalled, work))));
    match result {
        // Stopped, and perhaps saved on the way out.
        Ok(Err(Error::Interrupted)) => {
            let raised = raised.lock().unwrap_or_else(PoisonError::into_inner).take();
            Err(raised.unwrap_or_else(|| to_py(Error::Interrupted)))
        }
        Ok(result) => result.map_err(to_py),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(exception("UpgrayeddError", format!("internal error, please report it: {text}")))
        }
    }
}
