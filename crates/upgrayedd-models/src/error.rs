//! What can go wrong, said so that a user knows where and what to do.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the library. The message is complete: what was wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing of this name.
    #[error("unknown {kind} {given:?}{}", alternatives(given, known))]
    UnknownName {
        /// What it should be the name of: "strategy", "score".
        kind: String,
        /// The name that was given.
        given: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A value that an option, a parameter or a key of a file cannot have.
    #[error("{name} is {value}: expected {expected}")]
    OutOfRange {
        /// Of what it is the value.
        name: String,
        /// The value as it was given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Things that are right by themselves, and do not go together: options with each other, or with this
    /// model.
    #[error("{0}")]
    DoesNotFit(String),
    /// Something that exists and that this program does not do.
    #[error("{0}")]
    Unsupported(String),
    /// Texts, tables or batches that cannot be learned from or measured on.
    #[error("{0}")]
    Data(String),
    /// Contents of a file, or of what stands for one, that contradict themselves or the format.
    #[error("{0}")]
    Malformed(String),
    /// A file or folder that cannot be used.
    #[error("{path}: {problem}", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        problem: Box<Error>,
    },
    /// The system refused to read or write.
    #[error("{path}: cannot {action}: {reason}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb: "read", "write".
        action: &'static str,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The Hugging Face Hub could not provide a file.
    #[error("{0}")]
    Hub(String),
    /// Training or evaluation produced a number that is not finite.
    #[error("{0}")]
    NotFinite(String),
    /// The caller's own code (a strategy, a loader) failed with an error of its own.
    #[error("{0}")]
    Caller(Box<dyn std::error::Error + Send + Sync>),
    /// The user asked to stop; what was reached has been saved.
    #[error("interrupted")]
    Interrupted,
    /// The device failed while it computed: it is out of memory, say.
    #[error("{0}")]
    DeviceFailed(String),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] upgrayedd_nn::DeviceError),
}

impl From<upgrayedd_nn::Error> for Error {
    fn from(error: upgrayedd_nn::Error) -> Self {
        match error {
            upgrayedd_nn::Error::Interrupted => Self::Interrupted,
            failed => Self::DeviceFailed(failed.to_string()),
        }
    }
}

impl Error {
    /// An [`Error::UnknownName`].
    pub fn unknown_name(kind: &str, given: &str, known: &[&str]) -> Self {
        let known = known.iter().map(|name| (*name).to_owned()).collect();
        Self::UnknownName { kind: kind.to_owned(), given: given.to_owned(), known }
    }

    /// An [`Error::OutOfRange`].
    pub fn out_of_range(name: impl Display, value: impl Display, expected: impl Display) -> Self {
        Self::OutOfRange { name: name.to_string(), value: value.to_string(), expected: expected.to_string() }
    }

    /// An [`Error::DoesNotFit`].
    pub fn does_not_fit(message: impl Into<String>) -> Self {
        Self::DoesNotFit(message.into())
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// An [`Error::Data`].
    pub fn data(message: impl Into<String>) -> Self {
        Self::Data(message.into())
    }

    /// An [`Error::Malformed`].
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::Malformed(message.into())
    }

    /// An [`Error::File`] whose contents are [`Error::Malformed`], or that is not what it should be.
    pub fn bad_file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Malformed(message.into()).of_file(path)
    }

    /// The same error as that of a file, unless it says already where it comes from or has no place.
    pub fn of_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::UnknownName { .. }
            | Self::OutOfRange { .. }
            | Self::DoesNotFit(_)
            | Self::Unsupported(_)
            | Self::Data(_)
            | Self::Malformed(_) => Self::File { path: path.as_ref().to_owned(), problem: Box::new(self) },
            other => other,
        }
    }

    /// Wraps an I/O error with the path and what was tried.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |reason| Self::Io { path, action, reason }
    }

    /// Whether the user's request itself was wrong (exit code 2), rather than its execution.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::UnknownName { .. }
                | Self::OutOfRange { .. }
                | Self::DoesNotFit(_)
                | Self::Unsupported(_)
                | Self::Data(_)
                | Self::Malformed(_)
                | Self::Device(_)
        )
    }
}

/// What there is instead: the names with the nearest of them, or that one alone where there are too many to read.
fn alternatives(given: &str, known: &[String]) -> String {
    const READABLE: usize = 20;
    let distances = known.iter().map(|name| (strsim::damerau_levenshtein(given, name), name));
    let near = distances.min().filter(|(distance, _)| *distance <= 3);
    let near = near.map(|(_, name)| format!(" (did you mean {name:?}?)"));
    match near {
        Some(near) if known.len() > READABLE => near,
        near => format!(": expected one of {}{}", known.join(", "), near.unwrap_or_default()),
    }
}

/// An enum of names that a user may write: variants, their names, `ALL`, `name()`, and parsing that says what
/// there is.
#[macro_export]
macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident, $kind:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, Default)]
        #[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] #[cfg_attr(feature = "cli", value(name = $text))] $variant),+ }

        impl $name {
            /// Every choice, in the order in which messages name them.
            pub const ALL: &'static [&'static str] = &[$($text),+];

            /// The name on the command line and in files.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err($crate::Error::unknown_name($kind, text, Self::ALL)) }
            }
        }
    };
}
