//! The program from outside, each case in a folder of its own.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;
#[cfg(target_os = "linux")]
mod faults;
mod hub;
mod jobs;
#[cfg(target_os = "linux")]
mod memory;
mod reading;
mod refusals;
mod shown;
mod stops;
mod tasks;
