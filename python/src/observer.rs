//! Watches a run for Python: events as dictionaries, progress, and the signals that only the interpreter
//! sees.

use pyo3::prelude::*;
use upgrayedd::event::{Control, Event, Observer, Progress};

/// Hands everything to `upgrayedd._events.Dispatcher`.
pub struct PyObserver {
    handler: Option<Py<PyAny>>,
    finish: bool,
    /// What Python raised; the run ends, and this is raised again.
    pub raised: Option<PyErr>,
}

impl PyObserver {
    pub fn new(handler: Option<Py<PyAny>>) -> Self {
        Self { handler, finish: false, raised: None }
    }

    fn tell(&mut self, call: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<bool>) {
        let Some(handler) = self.handler.as_ref().filter(|_| self.raised.is_none()) else { return };
        match Python::attach(|py| call(handler.bind(py))) {
            Ok(finish) => self.finish |= finish,
            Err(error) => self.raised = Some(error),
        }
    }
}

impl Observer for PyObserver {
    fn on_event(&mut self, event: &Event) {
        let Ok(text) = serde_json::to_string(event) else { return };
        self.tell(|handler| handler.call_method1("event", (text,))?.extract());
    }

    fn on_progress(&mut self, progress: Progress<'_>) {
        let Progress { task, done, total } = progress;
        self.tell(|handler| handler.call_method1("progress", (task, done, total))?.extract());
    }

    fn control(&mut self) -> Control {
        if self.raised.is_none() {
            self.raised = Python::attach(|py| py.check_signals()).err();
        }
        match (&self.raised, self.finish) {
            (Some(_), _) => Control::Interrupt,
            (None, true) => Control::Finish,
            (None, false) => Control::Continue,
        }
    }
}
