//! Upgrayedd: smaller, faster Hugging Face transformers by *neural plasticity cycles*: score the attention heads,
//! prune the least useful, measure, grow heads back where capacity is missed, learn, measure again.
//!
//! The whole job, on the model and text that are built in:
//!
//! ```no_run
//! use upgrayedd::event::Silent;
//! use upgrayedd::{OptimizeConfig, Pipeline};
//!
//! let config = OptimizeConfig::from_toml("strategy = \"entropy\"\nnum_cycles = 2")?;
//! let summary = Pipeline::new(config)?.run("runs/first".as_ref(), &mut Silent)?;
//! println!("{} → {} parameters", summary.before.cost.parameters, summary.after.cost.parameters);
//! # Ok::<(), upgrayedd::Error>(())
//! ```
//!
//! Or by hand:
//!
//! ```
//! use upgrayedd::units::{LayerSite, Selection};
//! use upgrayedd::{builtin, surgery};
//!
//! let mut model = builtin::model()?;
//! let weights = model.num_parameters();
//! let heads = Selection::from([(LayerSite::heads(0), vec![1, 3]), (LayerSite::heads(2), vec![0])]);
//! surgery::remove(&mut model, None, &heads, 0, None)?;
//! assert!(model.num_parameters() < weights);
//! assert_eq!(model.units().layers()[0].active(), [0, 2, 4, 5, 6, 7]);
//!
//! surgery::restore(&mut model, None, &heads, 1.0)?;
//! assert_eq!(model.num_parameters(), weights);
//! # Ok::<(), upgrayedd::Error>(())
//! ```

pub mod budget;
pub mod builtin;
mod checkpoint;
pub mod config;
pub mod eval;
pub mod event;
pub mod grow;
mod hub;
pub mod learner;
mod linalg;
mod open;
pub mod pipeline;
pub mod price;
pub mod record;
pub mod reduce;
pub mod refit;
mod run_dir;
pub mod score;
pub mod strategy;
pub mod train;

pub use config::OptimizeConfig;
pub use open::open;
pub use pipeline::Pipeline;
pub use record::Summary;
pub use upgrayedd_models::{Error, Model, Result, Tokenizer};
pub use upgrayedd_models::{archive, data, export, family, files, load, model, spec, surgery, tokenizer, units, weights};
pub use upgrayedd_nn as nn;

use upgrayedd_models::{named_enum, options, rng};
