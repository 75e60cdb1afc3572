//! Options of the library as arguments: what is given goes over what a file or the defaults say.

use std::marker::PhantomData;

use clap::builder::Resettable;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;

/// Those options of `T` that were given.
#[derive(Debug, Clone)]
pub struct Given<T> {
    matches: ArgMatches,
    of: PhantomData<T>,
}

impl<T: FromArgMatches + Default> Given<T> {
    /// `base` with what was given.
    pub fn over(&self, mut base: T) -> Result<T, clap::Error> {
        base.update_from_arg_matches(&self.matches)?;
        Ok(base)
    }

    /// The defaults with what was given.
    pub fn over_defaults(&self) -> Result<T, clap::Error> {
        self.over(T::default())
    }

    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.matches.contains_id(name)
    }
}

impl<T> FromArgMatches for Given<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { matches: matches.clone(), of: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.matches = matches.clone();
        Ok(())
    }
}

impl<T: Args + Default + Serialize> Args for Given<T> {
    fn augment_args(command: Command) -> Command {
        let defaults = toml::Table::try_from(T::default()).unwrap_or_default();
        let own = T::augment_args_for_update(Command::new("own"));
        let is_own = |arg: &Arg| own.get_arguments().any(|other| other.get_id() == arg.get_id());
        let explain = |arg: Arg| if is_own(&arg) { explained(arg, &defaults) } else { arg };
        T::augment_args_for_update(command).mut_args(explain)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// An argument whose help names its choices and its default. A number below zero is a value, which is refused
/// by name.
fn explained(arg: Arg, defaults: &toml::Table) -> Arg {
    let Some(help) = arg.get_help().map(ToString::to_string) else { return arg };
    let choices = match arg.get_id().as_str() {
        "family" => format!(": {}", listed(&upgrayedd::family::names())),
        "strategy" => format!(": {}", listed(&upgrayedd::strategy::ALL.map(|strategy| strategy.name))),
        _ => String::new(),
    };
    let default = match defaults.get(arg.get_id().as_str()) {
        Some(toml::Value::String(text)) => format!(" [default: {text}]"),
        Some(toml::Value::Array(_) | toml::Value::Table(_)) | None => String::new(),
        Some(value) => format!(" [default: {value}]"),
    };
    let takes_value = arg.get_action().takes_values();
    // The long help has the default in Rust.
    arg.help(format!("{help}{choices}{default}"))
        .long_help(Resettable::Reset)
        .allow_negative_numbers(takes_value)
}

/// `a, b or c`.
pub fn listed(names: &[&str]) -> String {
    match names {
        [front @ .., last] if !front.is_empty() => format!("{} or {last}", front.join(", ")),
        names => names.concat(),
    }
}
