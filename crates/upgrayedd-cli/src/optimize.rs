//! The main job: options from a file and from the command line → a run.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use serde_json::json;
use upgrayedd::config::OPEN_ENDED;
use upgrayedd::event::named_units;
use upgrayedd::run_dir::{GivenParts, parse_run};
use upgrayedd::{Error, OptimizeConfig, Pipeline, Summary};

use crate::args::{OptimizeArgs, ResumeArgs};
use crate::progress::{Console, say};
use crate::{print_json, report, set_threads};

pub fn run(args: Box<OptimizeArgs>) -> Result<()> {
    let config = configuration(&args)?;
    config.check()?;
    set_threads(config.threads)?;
    let out = args.out.clone().unwrap_or_else(|| default_out(&config));
    upgrayedd::files::check_new(&out)?;
    let mut pipeline = Pipeline::new(config)?;
    if args.dry_run {
        return dry_run(&mut pipeline, args.json);
    }
    let mut console = Console::new(true);
    let result = pipeline.run(&out, &mut console);
    console.finish();
    finish(result, &out, args.json)
}

pub fn resume(args: ResumeArgs) -> Result<()> {
    let recorded = Pipeline::recorded_config(&args.run)?;
    if recorded.num_cycles == OPEN_ENDED {
        return Err(Error::bad_file(&args.run, "has no number of cycles: continue it from Python, with run_continuous").into());
    }
    set_threads(args.threads.or(recorded.threads))?;
    let mut console = Console::new(true);
    let result = Pipeline::resume(&args.run, &mut console);
    console.finish();
    finish(result, &args.run, args.json)
}

fn finish(result: upgrayedd::Result<Summary>, out: &Path, json: bool) -> Result<()> {
    match result {
        Ok(summary) if json => print_json(&summary),
        Ok(summary) => {
            report::print(&report::summary(&summary));
            Ok(())
        }
        Err(Error::Interrupted) => {
            if out.is_dir() {
                say(&format!("stopped; what has been learned is saved, continue with: upgrayedd resume {}", out.display()));
            }
            Err(Error::Interrupted.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn dry_run(pipeline: &mut Pipeline, json: bool) -> Result<()> {
    crate::note(pipeline.notices());
    let heads = pipeline.preview()?;
    let units = named_units(pipeline.model(), &heads);
    let mut console = Console::new(false);
    let forecast = pipeline.forecast(&mut console);
    console.finish();
    let (before, forecast) = forecast?;
    let (split, budget) = (pipeline.split(), pipeline.budget().name());
    if json {
        let steps = pipeline.steps_per_cycle();
        return print_json(&json!({
            "prune": units, "split": split, "steps_per_cycle": steps, "budget": budget, "loss": before, "forecast": forecast
        }));
    }
    let mut text = format!(
        "Everything is in order; no run was started.\n\
         Sequences: {} to learn from, {} to score on, {} to measure on; {} steps per cycle.\nThe first cycle would prune:\n",
        split.train.len(),
        split.calibration.len(),
        split.held_out.len(),
        pipeline.steps_per_cycle()
    );
    for (site, layers) in &units {
        for (layer, units) in layers.as_object().into_iter().flatten() {
            text.push_str(&format!("  {layer}: {site} {units}\n"));
        }
    }
    text.push_str(&report::forecast(budget, before, &forecast));
    report::print(&text);
    Ok(())
}

/// The file's options, overruled by those of the command line.
fn configuration(args: &OptimizeArgs) -> upgrayedd::Result<OptimizeConfig> {
    let mut config = match &args.config {
        Some(path) => read_config(path)?,
        None => OptimizeConfig::default(),
    };
    macro_rules! take {
        ($($field:ident),+) => { $(if let Some(value) = &args.$field { config.$field = value.clone(); })+ };
    }
    macro_rules! take_optional {
        ($($field:ident),+) => { $(if let Some(value) = &args.$field { config.$field = Some(value.clone()); })+ };
    }
    macro_rules! take_named {
        ($($field:ident),+) => { $(if let Some(value) = &args.$field { config.$field = FromStr::from_str(value)?; })+ };
    }
    take!(strategy, pruning_ratio, growth_ratio, min_heads, num_cycles, epochs_per_cycle, warmup_steps);
    take!(distill_temperature, patience, refit_samples);
    take!(batch_size, gradient_accumulation, seed, device, label_field);
    take_optional!(
        model,
        eval_data,
        text_field,
        text_pair_field,
        delimiter,
        columns,
        family,
        max_steps_per_cycle,
        steps_per_cycle,
        distill,
        teacher,
        eval_every,
        checkpoint_every,
        sequence_length,
        max_eval_windows,
        max_loss_increase,
        threads,
        learning_rate
    );
    take_named!(budget, units, schedule, lr_schedule, documents);
    if let Some(scope) = &args.scope {
        config.scope = Some(scope.parse()?);
    }
    config.refit &= !args.no_refit;
    config.gradient_checkpointing |= args.gradient_checkpointing;
    if let Some(dtype) = &args.dtype {
        config.dtype = Some(dtype.parse()?);
    }
    if !args.data.is_empty() {
        config.data = args.data.clone();
    }
    for option in &args.strategy_option {
        let (name, value) =
            option.split_once('=').ok_or_else(|| Error::invalid(format!("--strategy-option {option:?}: expected NAME=VALUE")))?;
        // A value is TOML where it can be, else a string.
        let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
        config.strategy_options.insert(name.to_owned(), parsed.unwrap_or_else(|| value.into()));
    }
    crate::refuse_idle("--patience", args.patience.is_some() && config.eval_every.is_none(), "--eval-every")?;
    let distils = config.distill.map_or(config.teacher.is_some(), |share| share > 0.0);
    crate::refuse_idle("--distill-temperature", args.distill_temperature.is_some() && !distils, "--distill or --teacher")?;
    Ok(config)
}

fn read_config(path: &Path) -> upgrayedd::Result<OptimizeConfig> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let not_toml =
        |e: toml::de::Error| Error::invalid(format!("{}: {}", path.display(), e.to_string().trim_end().replace('\n', " ")));
    // A run's record has the configuration among other things.
    if toml::from_str::<toml::Table>(&text).map_err(not_toml)?.contains_key("format_version") {
        let record = parse_run(path, &text)?;
        let GivenParts { model, data, strategy, .. } = record.given;
        if model || data || strategy {
            return Err(Error::bad_file(
                path,
                "is of a run with parts that a program made: only that program can start it again",
            ));
        }
        return Ok(record.config);
    }
    toml::from_str(&text).map_err(not_toml)
}

/// `runs/MODEL-STRATEGY-N` with the first free number.
fn default_out(config: &OptimizeConfig) -> PathBuf {
    let model = config.model.as_deref().unwrap_or("builtin");
    let name = Path::new(model).file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let folder = |n: u32| PathBuf::from("runs").join(format!("{name}-{}-{n}", config.strategy));
    (1..).map(folder).find(|p| !p.exists()).unwrap_or_else(|| folder(0))
}
