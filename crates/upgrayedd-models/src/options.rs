//! Options that have one definition for the command line, TOML files and programs.

/// Defines a struct of options. Each has what it means, the name of its value in help texts, its type and its
/// default.
///
/// In files an option has the name of its field. With the feature `cli`, `--field-name` is an argument; it
/// has no default there, so that an argument which is not given leaves the option as it was
/// (`clap::FromArgMatches::update_from_arg_matches`).
#[macro_export]
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$meta:meta])* $field:ident($value:literal): $type:ty = $default:expr;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[cfg_attr(feature = "cli", derive(clap::Args))]
        pub struct $name {
            $(
                $(#[$meta])*
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`.")]
                #[cfg_attr(feature = "cli", arg(long, value_name = $value))]
                pub $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }

        impl $name {
            /// The names of the options.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
        }
    };
}
