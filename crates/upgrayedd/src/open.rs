//! What a model's name may mean: a model folder, a run folder, a checkpoint of a run, an id on the Hub, or
//! the model that is built in.

use std::path::Path;

use crate::archive::ARCHIVE_FILE;
use crate::config::OptimizeConfig;
use crate::export::{HISTORY_FILE, with_history};
use crate::hub::{self, Fetched};
use crate::load::{LoadOptions, is_model_folder, refuse_adapter};
use crate::model::{Companions, Model};
use crate::run_dir::{GivenParts, read_run};
use crate::{Error, Result, builtin, checkpoint, export, family, surgery};

/// Loads what `name` says: a model folder, a run folder (its result), a checkpoint of a run, a Hub id, or
/// `builtin`.
///
/// # Errors
/// Returns [`Error::File`] if the folder or a file in it cannot be used, [`Error::Io`] if the system cannot
/// read it, [`Error::Malformed`] if `name` is neither a folder nor an id, [`Error::Hub`] if the Hub cannot
/// provide the model, [`Error::UnknownName`] if there is no family `options.family`, and
/// [`Error::Interrupted`] if the work is stopped.
pub fn open(name: &str, options: &LoadOptions) -> Result<Model> {
    if let Some(family) = &options.family {
        family::named(family)?;
    }
    if name == "builtin" && !Path::new(name).exists() {
        return builtin::model();
    }
    if let Some(run) = checkpoint::run_of(Path::new(name)) {
        let record = read_run(&run)?;
        return checkpoint::load_model(
            Path::new(name),
            &base_of(&run.join("base"), &record.config, record.given)?,
        );
    }
    let Fetched { dir, origin } = resolve(name)?;
    let mut model = Model::load(&dir, options)?;
    model.origin = origin;
    // The result of a run brings the units it lost.
    let dir = dir.canonicalize().unwrap_or(dir);
    let run = dir.parent().filter(|_| dir.file_name().is_some_and(|name| name == "model"));
    let beside = |name: &str| run.map(|run| run.join(name)).filter(|path| path.is_file());
    if let Some(history) = beside(HISTORY_FILE) {
        model = with_history(model, &history)?;
    }
    if let Some(archive) = beside(ARCHIVE_FILE) {
        model.set_archive(surgery::load_archive(&archive, &model)?);
    }
    Ok(model)
}

/// The model that a configuration names; the built-in one if it names none.
pub(crate) fn configured(config: &OptimizeConfig) -> Result<Model> {
    match &config.run.model {
        Some(name) => open(name, &LoadOptions { family: config.run.family.clone() }),
        None => builtin::model(),
    }
}

/// The model that a run started from.
pub(crate) fn base_of(base: &Path, config: &OptimizeConfig, given: GivenParts) -> Result<Model> {
    if !given.model {
        return configured(config);
    }
    let mut model = Model::load(base, &LoadOptions::default())?;
    model.set_dtypes(&export::own_dtypes(base)?);
    let archive = base.join(ARCHIVE_FILE);
    if archive.is_file() {
        model.set_archive(surgery::load_archive(&archive, &model)?);
    }
    if !export::has_companions(base) {
        model.companions = Companions::None;
    }
    Ok(model)
}

/// Finds what `--model` names: a model folder, a run folder (its result), or a Hub id; with the commit that
/// the Hub gave.
fn resolve(name: &str) -> Result<Fetched> {
    let path = Path::new(name);
    if path.is_dir() {
        refuse_adapter(path)?;
        let result = path.join("model");
        return match (is_model_folder(path), is_model_folder(&result)) {
            (true, _) => Ok(Fetched { dir: path.to_owned(), origin: None }),
            (false, true) => Ok(Fetched { dir: result, origin: None }),
            (false, false) if path.join("run.toml").is_file() => {
                Err(Error::bad_file(path, "is a run folder without a result yet: resume it first"))
            }
            _ => Err(Error::bad_file(path, "is not a model folder: it has no config.json")),
        };
    }
    if path.exists() {
        return Err(Error::bad_file(
            path,
            "is a file: expected a model folder (with config.json and model.safetensors) or a Hub id",
        ));
    }
    hub::fetch_model(name)
}
