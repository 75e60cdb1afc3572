//! Upgrayedd makes trained Hugging Face transformers smaller and faster by *neural plasticity cycles*: it
//! scores attention heads, prunes the least useful, measures, grows heads back where capacity is missed,
//! learns, and measures again.
//!
//! # A whole run
//!
//! [`OptimizeConfig`] says what is wanted, [`Pipeline`] does it, and [`Summary`] says what came of it:
//!
//! ```no_run
//! use upgrayedd::event::Silent;
//! use upgrayedd::{OptimizeConfig, Pipeline};
//!
//! let mut config = OptimizeConfig::default();
//! config.run.model = Some("HuggingFaceTB/SmolLM2-135M".into());
//! config.data.data = vec!["my-text.txt".into()];
//! config.prune.pruning_ratio = 0.2;
//! let summary = Pipeline::new(config)?.run("runs/first".as_ref(), &mut Silent)?;
//! println!("{} → {} parameters", summary.before.cost.parameters, summary.after.cost.parameters);
//! // The result is a Hugging Face folder.
//! let model = upgrayedd::open("runs/first", &Default::default())?;
//! # Ok::<(), upgrayedd::Error>(())
//! ```
//!
//! `Pipeline::new(OptimizeConfig::default())` optimises a small model that is built in, on built-in text.
//!
//! # By hand
//!
//! The steps of a cycle are functions: score, choose, prune, repair, write.
//!
//! ```
//! use upgrayedd::budget::{self, Budget, Scope};
//! use upgrayedd::data::{DataOptions, Dataset};
//! use upgrayedd::reduce::Alone;
//! use upgrayedd::score::{self, ScoreContext};
//! use upgrayedd::units::Site;
//! use upgrayedd::{builtin, export, refit, surgery};
//!
//! let mut model = builtin::model()?; // or upgrayedd::open("folder, run or Hub id", &Default::default())?
//! let options = DataOptions { sequence_length: 64, ..DataOptions::default() };
//! let data = Dataset::from_documents(builtin::stories(1, 40), &model, &model.tokenizer()?, &options)?;
//!
//! let context = ScoreContext::new(&model, &data, &(0..16));
//! let scores = score::named("fisher")?.compute(&context)?;
//! let budget = Budget::of(Site::Head, 8, Scope::Global, 1);
//! let heads = budget::choose(model.units(), &scores, &budget);
//!
//! let parent = model.clone();
//! surgery::remove(&mut model, None, &heads, 1, Some(&scores))?;
//! refit::refit(&mut model, &parent, refit::batches(&data, &[0, 1, 2, 3, 4, 5, 6, 7], 4), &Alone)?;
//! assert_eq!((parent.units().num_active(), model.units().num_active()), (32, 24));
//! let out = std::env::temp_dir().join(format!("smaller-{}", std::process::id()));
//! export::export(&model, &export::HF, None, &out)?;
//! # std::fs::remove_dir_all(&out).expect("it is there");
//! # Ok::<(), upgrayedd::Error>(())
//! ```
//!
//! # Where things are
//!
//! | to | see |
//! |---|---|
//! | read, run and write models | [`open()`], [`Model`], [`Tokenizer`], [`export`], [`load`] |
//! | read text, tables and batches | [`data`] |
//! | say what a run is to do, and run it | [`config`], [`pipeline`], [`event`], [`record`] |
//! | look at a run | [`report`] |
//! | score heads, choose and remove them | [`score`], [`strategy`], [`budget`], [`price`], [`units`], [`surgery`], [`archive`] |
//! | repair, regrow and teach | [`refit`], [`grow`], [`learner`], [`train`], [`eval`] |
//! | share a step among processes | [`reduce`] |
//! | stay within an amount of memory | [`memory`] |
//! | add a family, a format, a strategy | [`family::register`] (`crates/upgrayedd-models/examples/own_family`), [`export::register`], [`strategy::Strategy`] (`examples/own_strategy.rs`) |
//! | compute | [`nn`], the engine |

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
pub mod memory;
mod open;
pub mod pipeline;
pub mod price;
pub mod record;
pub mod reduce;
pub mod refit;
pub mod report;
mod run_dir;
pub mod score;
pub mod strategy;
pub mod timings;
pub mod train;
pub mod uniform;

pub use config::OptimizeConfig;
pub use open::open;
pub use pipeline::Pipeline;
pub use record::Summary;
pub use upgrayedd_models::{Error, Model, Result, Tokenizer};
pub use upgrayedd_models::{
    archive, data, export, family, files, load, model, spec, surgery, tokenizer, units, weights,
};
pub use upgrayedd_nn as nn;

use upgrayedd_models::{named_enum, options, rng};
