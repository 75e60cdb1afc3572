//! The main job: options from a file and from the command line → a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;
use upgrayedd::config::OPEN_ENDED;
use upgrayedd::event::named_units;
use upgrayedd::pipeline::{Given, GivenParts, parse_run, read_run};
use upgrayedd::reduce::Reduce;
use upgrayedd::units::Site;
use upgrayedd::{Error, OptimizeConfig, Pipeline, Summary};

use crate::args::{OptimizeArgs, ResumeArgs};
use crate::progress::{Console, say, tell};
use crate::{Shared, print_json, set_threads, text};

pub fn run(args: Box<OptimizeArgs>, shared: Option<&Shared>) -> Result<()> {
    let config = configuration(&args)?;
    config.check()?;
    if let (Some(shared), Some(out)) = (shared, &args.out)
        && let Some(begun) = begun_by(shared, out)
    {
        return match begun {
            Begun::Complete => {
                tell(&format!("{} is complete", out.display()));
                Ok(())
            }
            Begun::Unfinished => {
                let (device, precision, threads) = (None, None, config.run.threads);
                resume(
                    ResumeArgs { run: out.clone(), threads, device, precision, json: args.json },
                    Some(shared),
                )
            }
        };
    }
    set_threads(config.run.threads, shared)?;
    let out = match (&args.out, shared) {
        (Some(out), _) => out.clone(),
        (None, None) => default_out(&config),
        (None, Some(_)) if args.dry_run => PathBuf::new(),
        (None, Some(_)) => {
            let message = "several processes share the run: name its folder, --out, on a file system that all of them see";
            return Err(Error::does_not_fit(message).into());
        }
    };
    upgrayedd::files::check_new(&out)?;
    let device = shared.map(|shared| shared.device(&config)).transpose()?;
    let launch = shared.map(|shared| shared.launch.clone());
    let given = Given { device, launch, reduce: reduce_of(shared), ..Given::default() };
    let mut pipeline = Pipeline::with(config, given)?;
    if args.dry_run {
        return dry_run(&mut pipeline, args.json);
    }
    let mut console = Console::new(true);
    let result = pipeline.run(&out, &mut console);
    console.finish();
    finish(result, &out, args.json)
}

pub fn resume(args: ResumeArgs, shared: Option<&Shared>) -> Result<()> {
    let ResumeArgs { run, threads, device, precision, json } = &args;
    let mut recorded = Pipeline::recorded_config(run)?;
    if recorded.run.num_cycles == OPEN_ENDED {
        return Err(Error::bad_file(
            run,
            "has no number of cycles: continue it from Python, with run_continuous",
        )
        .into());
    }
    set_threads(threads.or(recorded.run.threads), shared)?;
    let mut console = Console::new(true);
    if let Some(device) = device {
        recorded.run.device.clone_from(device);
    }
    if let Some(precision) = precision {
        recorded.run.precision.clone_from(precision);
    }
    let device = match shared {
        Some(shared) => shared.device(&recorded)?,
        None => recorded.open_device()?,
    };
    let given = Given { device: Some(device), reduce: reduce_of(shared), ..Given::default() };
    let result = Pipeline::resume_with(run, given, &mut console);
    console.finish();
    finish(result, run, *json)
}

/// How far a run is that the same processes have begun before one of them died.
enum Begun {
    Unfinished,
    Complete,
}

fn begun_by(shared: &Shared, out: &Path) -> Option<Begun> {
    let launch = if shared.restarted { read_run(out).ok()?.launch } else { None };
    (launch? == shared.launch)
        .then(|| if out.join("model").is_dir() { Begun::Complete } else { Begun::Unfinished })
}

fn reduce_of(shared: Option<&Shared>) -> Option<Arc<dyn Reduce>> {
    shared.map(|shared| shared.reduce.clone())
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
            "memory": pipeline.memory(), "prune": units, "split": split, "steps_per_cycle": steps, "budget": budget, "loss": before, "forecast": forecast
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
    text.push_str(&text::memory(&pipeline.memory()));
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
