//! What the program holds in memory, as the system counts it, beside what it says that it will.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use upgrayedd::files::DType;
use upgrayedd::{Model, OptimizeConfig, Pipeline, export, family};

use crate::common::{Bench, bench};

/// A model of 34 million weights whose numbers are random, in bfloat16.
fn large(bench: &Bench) {
    let config = fs::read_to_string(bench.path("model/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    for (key, value) in [
        ("hidden_size", 512),
        ("intermediate_size", 2048),
        ("num_hidden_layers", 8),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 8),
    ] {
        config[key] = value.into();
    }
    config["head_dim"] = 64.into();
    let (family, spec, _) = family::recognise(&config, &[], None).unwrap();
    let mut model = Model::initialised(family, spec, config, 1).unwrap();
    model.companions = upgrayedd::builtin::model().unwrap().companions;
    model.set_dtype(DType::BF16);
    export::export(&model, &export::HF, Some(DType::BF16), &bench.path("large")).unwrap();
}

/// The most that a command has held, in bytes, and what it printed.
fn peak(bench: &Bench, arguments: &[&str]) -> (u64, String) {
    let mut child = bench.command(env!("CARGO_BIN_EXE_upgrayedd"));
    let mut child = child.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    (most, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_run_stays_within_its_memory_and_comes_to_the_same() {
    let bench = bench();
    large(&bench);
    let common = [
        &[
            "optimize",
            "--model",
            "large",
            "--data",
            "text.txt",
            "--num-cycles",
            "1",
            "--max-steps-per-cycle",
            "0",
        ][..],
        &["--max-eval-windows", "2", "--sequence-length", "64", "--batch-size", "2", "--refit-samples", "32"],
        &["--strategy-option", "calibration_samples=8", "--pruning-ratio", "0.5", "--units", "all"],
    ]
    .concat();
    let asked = format!(
        "model = {:?}\ndata = [{:?}]\nmax_steps_per_cycle = 0\nsequence_length = 64\nbatch_size = 2\nunits = \"all\"",
        bench.path("large"),
        bench.path("text.txt")
    );
    let planned = Pipeline::new(OptimizeConfig::from_toml(&asked).unwrap()).unwrap();
    let stated = planned.memory().iter().map(|stage| stage.bytes).max().unwrap();
    let limit = stated.to_string() + "B";
    let (held, _) = peak(&bench, &[&common[..], &["--out", "outside", "--memory", &limit]].concat());
    let (usual, _) = peak(&bench, &[&common[..], &["--out", "inside"]].concat());
    assert!(held <= stated && stated < 3 * held, "{held} of {stated}");
    assert!(4 * held < 3 * usual, "{held}, and {usual} without");
    for name in ["model/model.safetensors", "archive.safetensors"] {
        let of = |run: &str| fs::read(bench.path(run).join(name)).unwrap();
        assert!(of("inside") == of("outside"), "{name}");
    }
    let less = (stated / 4).to_string() + "B";
    bench.refused(
        2,
        &["memory is", "it takes"],
        &[&common[..], &["--out", "refused", "--memory", &less]].concat(),
    );
    bench.refused(2, &["--memory", "8GB"], &[&common[..], &["--out", "refused", "--memory", "8"]].concat());
}
