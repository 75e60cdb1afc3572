//! The whole job: [`Pipeline::new`] reads and checks everything, [`Pipeline::run`] does it in a new run folder, and
//! [`Pipeline::resume`] goes on with one that was interrupted. [`Pipeline::with`] takes a model, data or a strategy
//! that the caller has made itself.

// state.rs has what a run consists of, start.rs reads and checks it with the help of parts.rs, run.rs is the cycle
// itself, learn.rs its learning and saving, resume.rs how a run goes on, card.rs the result's model card, select.rs
// which heads go, forecast.rs a look ahead, control.rs the dense
// model learning the same way, samples.rs texts to read.
mod card;
mod control;
mod finish;
mod forecast;
mod learn;
mod parts;
mod regrow;
mod resume;
mod run;
mod samples;
mod select;
mod start;
mod state;

pub use forecast::Forecast;
pub use parts::CALIBRATION;
pub use state::{Given, Pipeline};

pub use crate::run_dir::{GivenParts, RUN_FORMAT, RunRecord, parse_run, read_run, read_set_aside};
