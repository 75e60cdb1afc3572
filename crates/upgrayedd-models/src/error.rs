//! What can go wrong, said so that a user knows where and what to do.

use std::path::{Path, PathBuf};

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the library. The message is complete: what was wrong, where, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter, option or argument has no meaning.
    #[error("{0}")]
    Invalid(String),
    /// A file or model has contents that cannot be used.
    #[error("{path}: {message}", path = path.display())]
    BadFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        message: String,
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
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] upgrayedd_nn::DeviceError),
}

impl From<upgrayedd_nn::Error> for Error {
    fn from(error: upgrayedd_nn::Error) -> Self {
        match error {
            upgrayedd_nn::Error::Interrupted => Self::Interrupted,
            other => Self::invalid(other.to_string()),
        }
    }
}

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }

    /// An [`Error::BadFile`].
    pub fn bad_file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::BadFile { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// Wraps an I/O error with the path and what was tried.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |reason| Self::Io { path, action, reason }
    }

    /// Whether the user's request itself was wrong (exit code 2), rather than its execution.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::Device(_))
    }
}

/// `unknown KIND "x": expected one of a, b, c`, with the nearest name suggested.
pub fn unknown_name(kind: &str, given: &str, known: &[&str]) -> Error {
    let nearest = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(given, k), k))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, k)| format!(" (did you mean {k:?}?)"))
        .unwrap_or_default();
    Error::invalid(format!("unknown {kind} {given:?}: expected one of {}{nearest}", known.join(", ")))
}

/// An enum of names that a user may write: variants, their names, `ALL`, `name()`, and parsing that says what there is.
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
                match text { $($text => Ok(Self::$variant),)+ _ => Err($crate::error::unknown_name($kind, text, Self::ALL)) }
            }
        }
    };
}
