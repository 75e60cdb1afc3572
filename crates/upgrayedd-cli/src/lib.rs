//! The `upgrayedd` command line as a library, so that the program and the Python package are the same:
//! arguments → library calls; progress; exit codes.

mod args;
mod given;
mod manual;
mod memory;
mod optimize;
mod progress;
mod report;
mod text;
mod watch;

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::Context;
use clap::Parser;
use clap::error::ErrorKind;
use serde_json::json;
use upgrayedd::data::Dataset;
use upgrayedd::eval::{EvalOptions, evaluate};
use upgrayedd::export;
use upgrayedd::load::LoadOptions;
use upgrayedd::memory::Work;
use upgrayedd::model::GenerateOptions;
use upgrayedd::nn::{Device, Precision, interrupt};
use upgrayedd::reduce::{Alone, Reduce};
use upgrayedd::score::{self, ALL, Score, ScoreContext, compute_all};
use upgrayedd::units::{LayerSite, LayerUnits, Scores, Site};
use upgrayedd::{Error, Model, OptimizeConfig};

use args::{
    Cli, Command, DataArgs, EvaluateArgs, ExportArgs, GenerateArgs, InspectArgs, ModelArgs, ScoreArgs,
};

/// Set by Ctrl-C and its like; work stops at the next op.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// The signal that set it.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// A process among several that were given the same command line and share its work. The first prints and writes.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The processes.
    pub reduce: Arc<dyn Reduce>,
    /// Which of those on this machine it is.
    pub local_rank: usize,
    /// How many of them are on this machine.
    pub local_size: usize,
    /// What started them, by a name that it keeps when it starts them anew because one has died: what they began is then
    /// gone on with.
    pub launch: String,
    /// Whether they were started anew.
    pub restarted: bool,
}

impl Shared {
    /// Where this process computes: a GPU of its own, where processes share a machine.
    ///
    /// # Errors
    /// Returns what [`OptimizeConfig::open_device`] returns.
    pub fn device(&self, config: &OptimizeConfig) -> upgrayedd::Result<Device> {
        let mut own = config.clone();
        if config.run.memory.is_none() {
            own.run.device = self.own_device(&config.run.device, config.run.precision.parse()?)?;
        }
        own.open_device()
    }

    fn own_device(&self, name: &str, precision: Precision) -> upgrayedd::Result<String> {
        let has_gpu = || Ok::<_, Error>(Device::open("auto", precision)?.card().is_some());
        let one_each = name == "cuda" || (name == "auto" && has_gpu()?);
        Ok(if one_each { format!("cuda:{}", self.local_rank) } else { name.to_owned() })
    }
}

/// Runs the command line `arguments` (the program's name first), with others where it is `shared`, and returns its exit
/// code: 0 done, 1 failed, 2 wrong usage, 128 and the signal's number interrupted.
pub fn run(arguments: impl IntoIterator<Item = OsString>, shared: Option<Shared>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            match error.kind() {
                // A value that is wrong is said in a line, as everywhere.
                ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
                    progress::say(&first_paragraph(&error))
                }
                // A closed pipe leaves nobody to tell.
                _ => drop(error.print()),
            }
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    cli.color.write_global();
    let follows = shared.as_ref().is_some_and(|shared| shared.reduce.rank() > 0);
    progress::set_quiet(cli.quiet || follows);
    text::set_silent(follows);
    if let Err(error) = watch_signals() {
        progress::tell(&format!("warning: cannot watch for Ctrl-C: {error}"));
    }
    match interrupt::watch(|| STOP.load(Ordering::SeqCst), || dispatch(cli, shared.as_ref())) {
        Ok(()) => 0,
        Err(error) => {
            progress::say(&format!("error: {}", with_flags(&format!("{error:#}"), &flags(&arguments))));
            match error.downcast_ref::<Error>() {
                Some(Error::Interrupted) => u8::try_from(128 + SIGNAL.load(Ordering::SeqCst)).unwrap_or(130),
                Some(error) if error.is_usage() => 2,
                _ => 1,
            }
        }
    }
}

/// The flags among the arguments, by the names of their options.
fn flags(arguments: &[OsString]) -> Vec<String> {
    let name = |argument: &OsString| {
        let flag = argument.to_str()?.strip_prefix("--")?;
        Some(flag.split('=').next()?.replace('-', "_"))
    };
    arguments.iter().filter_map(name).collect()
}

/// A message of the library with the options that were given as flags: `pruning_ratio` is `--pruning-ratio`. Names
/// that are words as well stay as they are.
fn with_flags(message: &str, flags: &[String]) -> String {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(is_name) {
        let end = rest[start..].find(|c| !is_name(c)).map_or(rest.len(), |length| start + length);
        let (before, word) = (&rest[..start], &rest[start..end]);
        text.push_str(before);
        if word.contains('_')
            && flags.iter().any(|flag| flag == word)
            && !before.ends_with(['"', '/', '.', '-'])
        {
            text.push_str("--");
            text.push_str(&word.replace('_', "-"));
        } else {
            text.push_str(word);
        }
        rest = &rest[end..];
    }
    text + rest
}

/// What clap says before it comes to hints, in a line.
fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Lets the first signal stop the work, and a second one the program.
fn watch_signals() -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;
    let signals = [
        SIGINT,
        SIGTERM,
        #[cfg(unix)]
        signal_hook::consts::SIGHUP,
    ];
    for signal in signals {
        // In this order: the first signal finds the flag that it sets still down.
        flag::register_conditional_shutdown(signal, 128 + signal, STOP.clone())?;
        flag::register_usize(signal, SIGNAL.clone(), usize::try_from(signal).unwrap_or(2))?;
        flag::register(signal, STOP.clone())?;
    }
    Ok(())
}

fn dispatch(cli: Cli, shared: Option<&Shared>) -> anyhow::Result<()> {
    match cli.command {
        Command::Optimize(args) => optimize::run(args, shared),
        Command::Resume(args) => optimize::resume(args, shared),
        Command::Score(args) => score(args, shared),
        Command::Evaluate(args) => evaluate_model(args, shared),
        _ if shared.is_some() => Err(Error::does_not_fit(
            "optimize, resume, score and evaluate share their work: run this in one process",
        )
        .into()),
        Command::Inspect(args) => inspect(args),
        Command::Generate(args) => generate(args),
        Command::Export(args) => export_model(args),
        Command::Report(args) => report::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

/// Sets the size of the thread pool; `None` uses every core, or this process's share of them.
fn set_threads(threads: Option<usize>, shared: Option<&Shared>) -> anyhow::Result<()> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.or(shared.map(|shared| (cores() / shared.local_size.max(1)).max(1)));
    if threads == Some(0) {
        return Err(Error::out_of_range("threads", 0, "at least 1").into());
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build_global()
        .context("cannot start the threads")
}

fn load(args: &ModelArgs, device: &str, shared: Option<&Shared>) -> upgrayedd::Result<Model> {
    let mut model = named(&args.model, args.family.clone())?;
    let precision = args.precision.parse()?;
    let name = shared.map(|shared| shared.own_device(device, precision)).transpose()?;
    let asked = device;
    let device = Device::open(name.as_deref().unwrap_or(asked), precision)?;
    let passed_over = if asked == "auto" { device.passed_over() } else { None };
    note(&passed_over.into_iter().collect::<Vec<_>>());
    if let Some(card) = device.card() {
        note(&[format!("computes on {device} ({card}, {})", args.precision)]);
    }
    model.move_to(device);
    Ok(model)
}

fn named(name: &str, family: Option<String>) -> upgrayedd::Result<Model> {
    let model = upgrayedd::open(name, &LoadOptions { family })?;
    note(&model.notices);
    Ok(model)
}

fn open(model: &Model, args: &DataArgs, sequence_length: usize) -> anyhow::Result<Dataset> {
    let data =
        Dataset::open(&args.data, model, &model.tokenizer()?, &args.options(sequence_length, args.seed)?)?;
    note(&data.notices);
    Ok(data)
}

/// Says what was passed over or taken otherwise than files say.
pub(crate) fn note<'a>(notices: impl IntoIterator<Item = &'a String>) {
    notices.into_iter().for_each(|notice| progress::tell(&format!("note: {notice}")));
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    text::print(&serde_json::to_string_pretty(value)?);
    Ok(())
}

fn score(args: ScoreArgs, shared: Option<&Shared>) -> anyhow::Result<()> {
    set_threads(args.model.threads, shared)?;
    let only = args.score.as_deref().map(score::named).transpose()?;
    refuse_idle("--ablation-samples", args.ablation_samples.is_some() && !args.all, "--all")?;
    let ablation_samples = args.ablation_samples.unwrap_or(16);
    positive(&[
        ("batch-size", args.batch_size),
        ("samples", args.samples),
        ("ablation-samples", ablation_samples),
    ])?;
    let model = args.memory.load(&args.model, shared)?;
    let length = args.sequence_length.unwrap_or_else(|| 256.min(model.spec().max_positions));
    let work = Work {
        units: args.units,
        score: only.is_none_or(Score::needs_data),
        curvature: only.is_none_or(Score::needs_curvature),
        ..Work::measuring(length, args.batch_size)
    };
    let batch_size = args.memory.fit(&model, work)?;
    let reads_data = only.is_none_or(Score::needs_data);
    if args.data.data.is_empty() && reads_data {
        return Err(Error::does_not_fit(
            "--data is missing: this score reads text (magnitude and random do without)",
        )
        .into());
    }
    let mut data = (!args.data.data.is_empty()).then(|| open(&model, &args.data, length)).transpose()?;
    data.iter_mut().for_each(|data| data.spread_over(data.len()));
    let range = 0..data.as_ref().map_or(0, Dataset::len);
    let context = ScoreContext {
        model: &model,
        units: args.units.counted(),
        data: data.as_ref().map(|data| (data, &range)),
        batch_size,
        samples: args.samples,
        seed: args.data.seed,
        gradient_checkpointing: args.gradient_checkpointing,
        reduce: reduce_of(shared),
    };
    let paths = model.paths();
    let layers = |scores: &Scores| -> serde_json::Map<String, serde_json::Value> {
        let mut layers = serde_json::Map::new();
        for (LayerSite { layer, site }, values) in scores.iter() {
            let of_layer = layers.entry(paths.of(site)[layer].clone()).or_insert_with(|| json!({}));
            if site.is_block() {
                of_layer[site.name()] = values.first().copied().into();
            } else {
                of_layer[site.name()] = model.units().layers()[layer].units(site).into();
                of_layer["scores"] = values.into();
            }
        }
        layers
    };
    let Some(score) = only else { return score_all(&context, ablation_samples, layers, args.json) };
    let scores = score.shown(&score.compute(&context)?);
    if args.json {
        let layers = layers(&scores);
        return print_json(
            &json!({ "score": score.name, "higher_keeps": !score.shown_negated, "layers": layers, "data_hash": data.map(|data| data.hash) }),
        );
    }
    text::print(&text::scores(score, &model, &scores));
    Ok(())
}

/// Every score and how well its order agrees with exact ablation.
fn score_all(
    context: &ScoreContext<'_>,
    ablation_samples: usize,
    layers: impl Fn(&Scores) -> serde_json::Map<String, serde_json::Value>,
    as_json: bool,
) -> anyhow::Result<()> {
    let truth = score::named("loss_impact")?;
    let impacts = truth.compute(&ScoreContext { samples: ablation_samples, ..*context })?;
    // Without labels there is no task to score for.
    let scores: Vec<_> =
        ALL.into_iter().filter(|s| s.name != truth.name && score::applies(s, context)).collect();
    let computed = compute_all(&scores, context)?;
    let rows: Vec<_> = scores
        .iter()
        .zip(&computed)
        .map(|(score, values)| (score.name, values.rank_correlation(&impacts)))
        .collect();
    if !as_json {
        text::print(&text::correlations(&rows));
        return Ok(());
    }
    let mut all = serde_json::Map::new();
    for ((score, values), (_, correlation)) in scores.iter().zip(&computed).zip(&rows) {
        let entry = json!({ "higher_keeps": !score.shown_negated, "rank_correlation": correlation, "layers": layers(&score.shown(values)) });
        all.insert(score.name.to_owned(), entry);
    }
    all.insert(
        truth.name.to_owned(),
        json!({ "higher_keeps": true, "rank_correlation": 1.0, "layers": layers(&impacts) }),
    );
    let hash = context.data.map(|(data, _)| data.hash.as_str());
    print_json(
        &json!({ "scores": all, "samples": context.samples, "ablation_samples": ablation_samples, "data_hash": hash }),
    )
}

fn reduce_of(shared: Option<&Shared>) -> &dyn Reduce {
    shared.map_or(&Alone, |shared| shared.reduce.as_ref())
}

/// Refuses an option that nothing would come of.
pub(crate) fn refuse_idle(option: &str, idle: bool, needed: &str) -> upgrayedd::Result<()> {
    if idle { Err(Error::does_not_fit(format!("{option} does nothing without {needed}"))) } else { Ok(()) }
}

/// Refuses options that are 0.
fn positive(options: &[(&str, usize)]) -> upgrayedd::Result<()> {
    match options.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(Error::out_of_range(format!("--{name}"), 0, "at least 1")),
        None => Ok(()),
    }
}

fn evaluate_model(args: EvaluateArgs, shared: Option<&Shared>) -> anyhow::Result<()> {
    set_threads(args.model.threads, shared)?;
    positive(&[("batch-size", args.batch_size), ("max-eval-windows", args.max_eval_windows.unwrap_or(1))])?;
    let mut model = args.memory.load(&args.model, shared)?;
    if let Some(reference) = &args.reference {
        let mut reference = named(reference, args.model.family.clone())?;
        reference.move_to(model.device());
        args.memory.spill(&mut reference)?;
        model.set_reference(Arc::new(reference))?;
    }
    let length = args.sequence_length.unwrap_or_else(|| 512.min(model.spec().max_positions));
    if args.data.data.is_empty() {
        return Err(Error::does_not_fit("--data is missing: name the file to measure on").into());
    }
    let data = open(&model, &args.data, length)?;
    let another = args.reference.is_some();
    let work = Work { another, ..Work::measuring(length, args.batch_size) };
    let (batch_size, max_windows) = (args.memory.fit(&model, work)?, args.max_eval_windows);
    let options = EvalOptions { batch_size, max_windows, window: length, reduce: reduce_of(shared) };
    let mut observer = progress::Console::new(false);
    let result = evaluate(&model, &data, &(0..data.len()), options, "evaluate", &mut observer)?;
    observer.finish();
    if args.json {
        print_json(&result)
    } else {
        text::print(&text::evaluation(&result));
        Ok(())
    }
}

fn inspect(args: InspectArgs) -> anyhow::Result<()> {
    set_threads(None, None)?;
    let model = named(&args.model, args.family)?;
    let cost = model.cost(args.context);
    let heads = model.units().layers();
    if args.json {
        return print_json(&json!({
            "family": model.family().model_type,
            "objective": model.spec().objective.name(),
            "layers": model.spec().num_layers(),
            "hidden_size": model.spec().hidden_size,
            "head_dim": model.spec().head_dim,
            "heads": heads.iter().map(|l| l.active().len()).collect::<Vec<_>>(),
            "kv_heads": heads.iter().map(|l| l.kv_active().len()).collect::<Vec<_>>(),
            "active_heads": heads.iter().map(|l| l.active()).collect::<Vec<_>>(),
            "original_heads": heads.iter().map(LayerUnits::total).collect::<Vec<_>>(),
            "original_kv_heads": heads.iter().map(LayerUnits::kv_total).collect::<Vec<_>>(),
            "channels": heads.iter().map(|l| l.count(Site::Channel)).collect::<Vec<_>>(),
            "original_channels": heads.iter().map(|l| l.total_of(Site::Channel)).collect::<Vec<_>>(),
            "dtype": model.dtype().name(),
            "parameters": cost.parameters,
            "bytes": cost.bytes,
            "macs_per_token": cost.macs_per_token,
            "context": cost.context,
            "kv_cache_bytes_per_token": cost.kv_cache_bytes_per_token,
        }));
    }
    text::print(&text::inspection(&model, &cost));
    Ok(())
}

fn generate(args: GenerateArgs) -> anyhow::Result<()> {
    set_threads(args.model.threads, None)?;
    refuse_idle("--top-p", args.top_p.is_some() && args.temperature == 0.0, "--temperature above 0")?;
    let model = load(&args.model, &args.model.device, None)?;
    let tokenizer = model.tokenizer()?;
    let (_, ignored) = model.generation_settings()?;
    note(tokenizer.notices().iter().chain(&ignored));
    let prompt = [tokenizer.prefix(), &tokenizer.encode(&args.prompt)?].concat();
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p.unwrap_or(1.0),
        seed: args.seed,
        end_tokens: model.end_tokens(&tokenizer)?,
    };
    let generation = model.generate(&prompt, &options, |_| !STOP.load(Ordering::SeqCst))?;
    let text = tokenizer.decode(&[&prompt[..], &generation.tokens].concat())?;
    if args.json {
        let seconds = generation.decode_seconds;
        let rate = if generation.tokens.len() > 1 {
            Some((generation.tokens.len() - 1) as f64 / seconds)
        } else {
            None
        };
        return print_json(
            &json!({ "text": text, "prompt_tokens": prompt, "tokens": generation.tokens, "prefill_seconds": generation.prefill_seconds, "tokens_per_second": rate }),
        );
    }
    text::print(&text);
    if STOP.load(Ordering::SeqCst) { Err(Error::Interrupted.into()) } else { Ok(()) }
}

fn export_model(args: ExportArgs) -> anyhow::Result<()> {
    set_threads(None, None)?;
    let formats = export::listed(&args.format)?;
    let dtype = args.dtype.as_deref().map(str::parse).transpose()?;
    upgrayedd::files::check_new(&args.out)?;
    let model = named(&args.model, args.family)?;
    export::export_all(&model, &formats, dtype, &args.out, None)?;
    for format in formats {
        progress::tell(&format!("wrote {} ({}): {}", args.out.display(), format.name, (format.note)(&model)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn options_that_were_flags_are_said_as_flags() {
        let typed = ["upgrayedd", "--pruning-ratio=2", "--min-heads", "1", "--seed"].map(Into::into);
        let message =
            "pruning_ratio is 2: expected \"seed\" or data/min_heads, with min_heads and batch_size";
        let said = super::with_flags(message, &super::flags(&typed));
        assert_eq!(
            said,
            "--pruning-ratio is 2: expected \"seed\" or data/min_heads, with --min-heads and batch_size"
        );
    }
}
