//! Why work was not done.

/// Why an op, or the work around it, was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Whoever started the work has stopped it ([`crate::interrupt`]).
    #[error("interrupted")]
    Interrupted,
}

/// What an op gives.
pub type Result<T> = std::result::Result<T, Error>;
