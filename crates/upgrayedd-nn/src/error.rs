//! Why work was not done.

use std::sync::Arc;

/// Why an op, or the work around it, was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Whoever started the work has stopped it ([`crate::interrupt`]).
    #[error("interrupted")]
    Interrupted,
    /// The device could not do it: it is out of memory, say.
    #[error("the device failed: {0}")]
    Device(Arc<str>),
}

/// What an op gives.
pub type Result<T> = std::result::Result<T, Error>;
