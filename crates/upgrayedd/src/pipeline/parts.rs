//! What a run is made of, read and checked before it starts.

use std::path::PathBuf;

use upgrayedd_nn::interrupt;

use crate::budget::{self, Budget, Scope};
use crate::config::OptimizeConfig;
use crate::data::{Dataset, Part, RunData};
use crate::load::LoadOptions;
use crate::model::Model;
use crate::open::open;
use crate::price::{Currency, Prices};
use crate::reduce::Alone;
use crate::score::ScoreContext;
use crate::tokenizer::Tokenizer;
use crate::units::{LayerUnits, Scores, Site};
use crate::{Error, Result, builtin};

/// Calibration sequences set aside where the strategy does not say how many it wants.
pub const CALIBRATION: usize = 128;

/// The model to learn from, which must read and predict the same tokens as `model`, in sequences of up to `longest`.
pub(super) fn load_teacher(name: &str, config: &OptimizeConfig, model: &Model, longest: usize) -> Result<Model> {
    let mut teacher = open(name, &LoadOptions { family: config.family.clone() })?;
    teacher.move_to(model.device);
    if let Err(reason) = model.check_same_tokens(&teacher) {
        return Err(Error::invalid(format!("{name} cannot teach this model: {reason}")));
    }
    if longest > teacher.spec.max_positions {
        let most = teacher.spec.max_positions;
        return Err(Error::invalid(format!("{name} cannot teach sequences of {longest}: it takes {most} tokens at most")));
    }
    Ok(teacher)
}

pub(super) fn read_data(
    config: &OptimizeConfig,
    model: &Model,
    tokenizer: &Tokenizer,
    samples: Option<usize>,
) -> Result<RunData> {
    let options = config.data_options(config.sequence_length.unwrap_or_default());
    let read = |files: &[PathBuf]| Dataset::open(files, model, tokenizer, &options);
    let data = if config.data.is_empty() { builtin::training_data(model, tokenizer, &options)? } else { read(&config.data)? };
    let eval = config.eval_data.as_ref().map(|f| read(std::slice::from_ref(f))).transpose()?;
    RunData::split(data, eval, samples.unwrap_or(CALIBRATION), config.batch_size, config.seed)
}

pub(super) fn check_heads(config: &OptimizeConfig, model: &Model) -> Result<()> {
    for (layer, heads) in model.units.layers().iter().enumerate() {
        if config.min_heads > heads.active().len() {
            return Err(Error::invalid(format!(
                "min_heads is {}, but layer {layer} has {} heads: expected at most that",
                config.min_heads,
                heads.active().len()
            )));
        }
    }
    let group = |layer: &LayerUnits| layer.total() / layer.kv_total();
    let alike = model.units.layers().windows(2).all(|pair| group(&pair[0]) == group(&pair[1]));
    if config.units == Site::KvGroup && !alike {
        return Err(Error::invalid("units kv-groups needs layers whose key/value heads have as many readers each: use heads"));
    }
    if config.schedule == budget::Schedule::Target {
        let goal = budget::portion(config.pruning_ratio, model.units.total());
        let most = model.units.num_pruned() + budget::prunable(&model.units, config.units, config.min_heads);
        if goal > most {
            return Err(Error::invalid(format!(
                "pruning_ratio {} asks for {goal} of {} heads, but min_heads {} lets only {most} go",
                config.pruning_ratio,
                model.units.total(),
                config.min_heads
            )));
        }
    }
    Ok(())
}

/// Prices in the currency of the budget, for the heads that `model` has now.
pub(super) fn prices<'m>(config: &OptimizeConfig, model: &'m Model) -> Result<Prices<'m>> {
    Prices::new(model, config.budget, config.sequence_length.unwrap_or_default(), config.timings.as_ref())
}

/// Refuses a share of the model that all the heads together are not.
pub(super) fn check_reachable(config: &OptimizeConfig, model: &Model) -> Result<()> {
    if config.budget == Currency::Heads {
        return Ok(());
    }
    let prices = prices(config, model)?;
    let all = Scores::zeros(&model.units, Site::Head);
    let most = budget::prunable(&model.units, config.units, config.min_heads);
    let budget = Budget { heads: most, scope: Scope::Global, units: config.units, min_heads: config.min_heads };
    let mut least = model.units.clone();
    least.remove(&budget::choose(&model.units, &all, budget), 1)?;
    let possible = 1.0 - prices.total(&least) / prices.total(&model.units);
    if config.pruning_ratio > possible {
        return Err(Error::invalid(format!(
            "pruning_ratio {} of the model's {} is more than its heads are: without all but min_heads {} a layer it would be {possible:.3} less",
            config.pruning_ratio,
            config.budget.name(),
            config.min_heads
        )));
    }
    Ok(())
}

pub(super) fn hash_model(model: &Model, tokenizer: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(model.config.to_string().as_bytes()).update(tokenizer.as_bytes());
    for id in model.params.ids() {
        interrupt::check()?;
        hasher.update(model.params.name(id).as_bytes());
        hasher.update(bytemuck::cast_slice(model.params.get(id).to_host().data()));
    }
    Ok(hasher.finalize().to_hex().to_string())
}

pub(super) fn score_context<'a>(model: &'a Model, data: &'a RunData, config: &OptimizeConfig, seed: u64) -> ScoreContext<'a> {
    let Part { data, range } = &data.calibration;
    let OptimizeConfig { batch_size, gradient_checkpointing, .. } = *config;
    ScoreContext {
        model,
        data: Some((data, range)),
        batch_size,
        samples: range.len(),
        seed,
        gradient_checkpointing,
        reduce: &Alone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::UnitMap;

    #[test]
    fn groups_of_different_sizes_are_not_pruned_as_units() {
        let mut model = builtin::model().expect("it is there");
        let config = OptimizeConfig { units: Site::KvGroup, ..OptimizeConfig::default() };
        assert!(check_heads(&config, &model).is_ok());
        model.units = UnitMap::new([(8, 8, 0), (8, 4, 0), (8, 8, 0), (8, 8, 0)]);
        let refused = check_heads(&config, &model).expect_err("one layer has larger groups").to_string();
        assert!(refused.contains("kv-groups"), "{refused}");
        assert!(check_heads(&OptimizeConfig::default(), &model).is_ok());
    }
}
