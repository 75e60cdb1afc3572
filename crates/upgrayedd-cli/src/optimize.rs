//! The main job: options from a file and from the command line → a run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use upgrayedd::config::OPEN_ENDED;
use upgrayedd::event::named_units;
use upgrayedd::pipeline::{Given, GivenParts, parse_run};
use upgrayedd::units::Site;
use upgrayedd::{Error, OptimizeConfig, Pipeline, Summary};

use crate::args::{OptimizeArgs, ResumeArgs};
use crate::progress::{Console, say};
use crate::{print_json, set_threads, text};

pub fn run(args: Box<OptimizeArgs>) -> Result<()> {
    let config = configuration(&args)?;
    config.check()?;
    set_threads(config.run.threads)?;
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
    let mut recorded = Pipeline::recorded_config(&args.run)?;
    if recorded.run.num_cycles == OPEN_ENDED {
        return Err(Error::bad_file(
            &args.run,
            "has no number of cycles: continue it from Python, with run_continuous",
        )
        .into());
    }
    set_threads(args.threads.or(recorded.run.threads))?;
    let mut console = Console::new(true);
    if let Some(device) = args.device {
        recorded.run.device = device;
    }
    if let Some(precision) = args.precision {
        recorded.run.precision = precision;
    }
    let given = Given { device: Some(recorded.open_device()?), ..Given::default() };
    let result = Pipeline::resume_with(&args.run, given, &mut console);
    console.finish();
    finish(result, &args.run, args.json)
}

fn finish(result: upgrayedd::Result<Summary>, out: &Path, json: bool) -> Result<()> {
    match result {
        Ok(summary) if json => print_json(&summary),
        Ok(summary) => {
            text::print(&text::summary(&summary));
            Ok(())
        }
        Err(Error::Interrupted) => {
            if out.is_dir() {
                say(&format!(
                    "stopped; what has been learned is saved, continue with: upgrayedd resume {}",
                    out.display()
                ));
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
         Sequences: {} to learn from, {} to score on, {} to measure on; {} optimiser steps per cycle.\nThe first cycle would prune:\n",
        split.train.len(),
        split.calibration.len(),
        split.held_out.len(),
        pipeline.steps_per_cycle()
    );
    for (site, layers) in &units {
        for (layer, units) in layers.as_object().into_iter().flatten() {
            // Heads by name, as there are few.
            let what = if site == Site::Channel.name() {
                format!("{} {site}", units.as_array().map_or(0, Vec::len))
            } else {
                format!("{site} {units}")
            };
            text.push_str(&format!("  {layer}: {what}\n"));
        }
    }
    text.push_str(&text::forecast(budget, before, &forecast));
    text::print(&text);
    Ok(())
}

/// The file's options, overruled by those of the command line.
fn configuration(args: &OptimizeArgs) -> Result<OptimizeConfig> {
    let base = match &args.config {
        Some(path) => read_config(path)?,
        None => OptimizeConfig::default(),
    };
    let config = args.options.over(base)?;
    let OptimizeConfig { learn, measure, .. } = &config;
    crate::refuse_idle(
        "--patience",
        args.options.has("patience") && measure.eval_every.is_none(),
        "--eval-every",
    )?;
    let distils = learn.distill.map_or(learn.teacher.is_some(), |share| share > 0.0);
    let idle = args.options.has("distill_temperature") && !distils;
    crate::refuse_idle("--distill-temperature", idle, "--distill or --teacher")?;
    Ok(config)
}

fn read_config(path: &Path) -> upgrayedd::Result<OptimizeConfig> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    // A run's record has the configuration among other things.
    if toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.contains_key("format_version")) {
        let record = parse_run(path, &text)?;
        let GivenParts { model, data, strategy } = record.given;
        if model || data || strategy {
            return Err(Error::bad_file(
                path,
                "is of a run with parts that a program made: only that program can start it again",
            ));
        }
        let mut config = record.config;
        if record.timings.is_some() {
            config.prune.timings = Some(path.to_owned());
        }
        return Ok(config);
    }
    OptimizeConfig::from_toml(&text)
        .map_err(|error| Error::does_not_fit(format!("{}: {error}", path.display())))
}

/// `runs/MODEL-STRATEGY-N` with the first free number.
fn default_out(config: &OptimizeConfig) -> PathBuf {
    let model = config.run.model.as_deref().unwrap_or("builtin");
    let name =
        Path::new(model).file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let folder = |n: u32| PathBuf::from("runs").join(format!("{name}-{}-{n}", config.prune.strategy));
    (1..).map(folder).find(|p| !p.exists()).unwrap_or_else(|| folder(0))
}
