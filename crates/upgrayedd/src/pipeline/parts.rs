//! What a run is made of, read and checked before it starts.

use std::path::PathBuf;

use upgrayedd_nn::interrupt;

use crate::config::{Plan, SourceOptions};
use crate::data::{Dataset, RunData};
use crate::load::LoadOptions;
use crate::model::Model;
use crate::open::open;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, builtin};

/// Calibration sequences set aside where the strategy does not say how many it wants.
pub const CALIBRATION: usize = 128;

/// The model to learn from, which must read and predict the same tokens as `model`, in sequences of up to
/// `longest`.
pub(super) fn load_teacher(name: &str, plan: &Plan, model: &Model, longest: usize) -> Result<Model> {
    let mut teacher = open(name, &LoadOptions { family: plan.config.run.family.clone() })?;
    teacher.move_to(model.device());
    if let Err(reason) = model.check_same_tokens(&teacher) {
        return Err(Error::does_not_fit(format!("{name} cannot teach this model: {reason}")));
    }
    if longest > teacher.spec().max_positions {
        let most = teacher.spec().max_positions;
        return Err(Error::does_not_fit(format!(
            "{name} cannot teach sequences of {longest}: it takes {most} tokens at most"
        )));
    }
    Ok(teacher)
}

/// The files of the configuration, or the built-in text, as data for a run; `samples` of its sequences are to
/// be scored on.
pub(super) fn read_data(
    plan: &Plan,
    model: &Model,
    tokenizer: &Tokenizer,
    samples: Option<usize>,
) -> Result<RunData> {
    let options = plan.data_options();
    let SourceOptions { data: files, eval_data, .. } = &plan.config.data;
    let read = |files: &[PathBuf]| Dataset::open(files, model, tokenizer, &options);
    let data =
        if files.is_empty() { builtin::training_data(model, tokenizer, &options)? } else { read(files)? };
    let eval = eval_data.as_ref().map(|file| read(std::slice::from_ref(file))).transpose()?;
    RunData::split(
        data,
        eval,
        samples.unwrap_or(CALIBRATION),
        plan.config.learn.batch_size,
        plan.config.run.seed,
    )
}

pub(super) fn hash_model(model: &Model, tokenizer: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(model.config.to_string().as_bytes()).update(tokenizer.as_bytes());
    for id in model.params().ids() {
        interrupt::check()?;
        hasher.update(model.params().name(id).as_bytes());
        let tensor = model.params().get(id);
        hasher.update(bytemuck::cast_slice(tensor.to_host().data()));
        tensor.let_go();
    }
    Ok(hasher.finalize().to_hex().to_string())
}
