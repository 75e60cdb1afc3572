//! The jobs of the program, end to end in folders of their own.

use std::fs;
use std::path::Path;

use crate::common::bench;
use serde_json::Value;

const SHORT: [&str; 12] = [
    "--refit-samples",
    "16",
    "--sequence-length",
    "64",
    "--max-steps-per-cycle",
    "3",
    "--max-eval-windows",
    "4",
    "--num-cycles",
    "2",
    "--batch-size",
    "2",
];

pub fn optimize<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["optimize", "--model", "model", "--data", "text.txt", "--out", out], &SHORT[..], more].concat()
}

fn active(summary: &Value) -> usize {
    summary["after"]["heads"].as_array().unwrap().iter().map(|l| l.as_array().unwrap().len()).sum()
}

pub fn events(run: &Path) -> Vec<Value> {
    fs::read_to_string(run.join("events.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn every_strategy_scope_unit_and_schedule_runs() {
    let b = bench();
    // 32 heads: 9 go and 0 come back, then 6 of 23 and 1 of 15.
    let per_cycle = 32 - 9 - 6 + 1;
    for (i, more) in [
        vec!["--strategy", "magnitude"],
        vec!["--strategy", "entropy", "--strategy-option", "attention_samples=8"],
        vec!["--strategy", "random", "--scope", "global"],
        vec!["--strategy", "random", "--units", "kv-groups"],
        vec!["--strategy", "auto"],
        vec!["--strategy", "fisher", "--pruning-steps", "3", "--refit", "false"],
        vec!["--strategy", "similarity"],
        vec!["--strategy", "wanda", "--distill", "0.5"],
        vec!["--strategy", "loss_impact", "--strategy-option", "calibration_samples=2"],
    ]
    .iter()
    .enumerate()
    {
        let out = format!("run{i}");
        let summary = b.json(&optimize(&out, more));
        assert_eq!(active(&summary), per_cycle, "{more:?}");
        assert!(
            summary["after"]["cost"]["parameters"].as_u64()
                < summary["before"]["cost"]["parameters"].as_u64()
        );
        assert!(summary["after"]["evaluation"]["loss"].as_f64().unwrap().is_finite());
        // What was reported is what is stored.
        let stored = b.json(&["inspect", &out]);
        assert_eq!(stored["active_heads"], summary["after"]["heads"]);
        assert_eq!(stored["parameters"], summary["after"]["cost"]["parameters"]);
    }
    let target = ["--schedule", "target", "--pruning-ratio", "0.5", "--growth-ratio", "0.2"];
    assert_eq!(active(&b.json(&optimize("target", &target))), 16);
}

#[test]
fn budgets_in_parameters_macs_and_time_are_met_by_as_few_heads_as_needed() {
    let b = bench();
    let share = |summary: &Value, what: &str| {
        let of = |side: &str| summary[side]["cost"][what].as_f64().unwrap();
        1.0 - of("after") / of("before")
    };
    for (budget, what) in [("parameters", "parameters"), ("macs", "macs_per_token")] {
        let more =
            ["--budget", budget, "--pruning-ratio", "0.05", "--growth-ratio", "0", "--strategy", "fisher"];
        let saved = share(&b.json(&optimize(budget, &more)), what);
        // Twice 5 % of what is there; a head with its key/value head is about 1 % of this model.
        assert!((0.0975..0.12).contains(&saved), "{budget}: {saved}");
    }
    b.ok(&optimize("latency", &["--budget", "latency", "--pruning-ratio", "0.02"]));
    // What was measured decides, so it is on record.
    let record = fs::read_to_string(b.path("latency/run.toml")).unwrap();
    assert!(record.contains("[[timings.parts]]") && record.contains("seconds = ["));
    // The first cycle can save a quarter, the second has too few heads left: it says so.
    b.ok(&optimize("later", &["--budget", "parameters", "--pruning-ratio", "0.2", "--growth-ratio", "0"]));
    let notices: Vec<String> =
        events(&b.path("later")).iter().filter_map(|e| Some(e["message"].as_str()?.to_owned())).collect();
    let says = |part: &str| notices.iter().any(|n| n.contains(part));
    assert!(
        says("may stay: units go whole") && says("asked for: min_heads 1 and units heads"),
        "{notices:?}"
    );
    let more = optimize("much", &["--budget", "parameters", "--pruning-ratio", "0.9"]);
    b.refused(2, &["parameters", "more than its heads are"], &more);
    // Whole layers, to the one that is enough.
    let more = ["--target", "parameters=0.8x", "--units", "layers", "--growth-ratio", "0"];
    let summary = b.json(&optimize("layers", &more));
    assert_eq!(
        summary["after"]["heads"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|l| l.as_array().is_some_and(Vec::is_empty))
            .count(),
        1
    );
    // Growth included, a target is where the last cycle ends.
    let more = ["--target", "macs=0.85x", "--units", "all", "--growth-ratio", "0.2"];
    let saved = share(&b.json(&optimize("to", &more)), "macs_per_token");
    assert!((0.15..0.17).contains(&saved), "{saved}");
    let wrong = optimize("wrong", &["--target", "heads=12"]);
    b.refused(2, &["unknown budget", "parameters"], &wrong);
    let units = optimize("wrong", &["--target", "units=0.7x"]);
    b.refused(2, &["units=0.7x", "pruning_ratio"], &units);
}

#[test]
fn all_scores_and_how_they_agree_with_ablation() {
    let b = bench();
    let all = [
        "score",
        "--model",
        "model",
        "--data",
        "text.txt",
        "--sequence-length",
        "64",
        "--samples",
        "8",
        "--all",
    ];
    let found = b.json(&[&all[..], &["--ablation-samples", "4"]].concat());
    let scores = found["scores"].as_object().unwrap();
    // Plain text has no task.
    assert!(scores.len() == upgrayedd::score::ALL.len() - 1 && !scores.contains_key("task"));
    for (name, score) in scores {
        let correlation = score["rank_correlation"].as_f64().unwrap();
        assert!((-1.0..=1.0).contains(&correlation), "{name}");
        assert_eq!(score["layers"].as_object().unwrap().len(), 4);
    }
    assert!(scores["fisher"]["rank_correlation"].as_f64() > scores["entropy"]["rank_correlation"].as_f64());
    assert!(b.ok(&all).contains("fisher"));
}

#[test]
fn the_result_is_measured_as_it_is_stored() {
    let b = bench();
    fs::write(b.path("other.txt"), upgrayedd::builtin::stories(78, 20).collect::<Vec<_>>().join("\n"))
        .unwrap();
    let summary = b.json(&optimize("run", &["--strategy", "magnitude", "--eval-data", "other.txt"]));
    let again = b.json(&[
        "evaluate",
        "--model",
        "run",
        "--data",
        "other.txt",
        "--sequence-length",
        "64",
        "--max-eval-windows",
        "4",
        "--batch-size",
        "2",
    ]);
    assert_eq!(again["loss"], summary["after"]["evaluation"]["loss"]);
    let kinds: Vec<String> =
        events(&b.path("run")).iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect();
    let (prune, learn) = (
        ["scored", "pruned", "refit", "evaluated", "grown"],
        ["step", "step", "step", "evaluated", "accepted"],
    );
    let (start, end) = (["run_started", "evaluated"], ["evaluated", "run_finished"]);
    // A tenth of the first cycle's heads is none; the second cycle's are fitted in.
    let want = [&start[..], &prune, &learn, &prune, &["refit"], &learn, &end].concat();
    assert_eq!(kinds, want);
}

#[test]
fn the_same_bits_in_two_runs_and_at_one_thread_and_two() {
    let b = bench();
    for (out, threads) in [("one", "1"), ("two", "2"), ("again", "2")] {
        b.ok(&optimize(out, &["--threads", threads, "--strategy", "entropy"]));
    }
    for file in [
        "model/model.safetensors",
        "archive.safetensors",
        "events.jsonl",
        "checkpoints/cycle-0002/optimizer.safetensors",
    ] {
        let read = |run: &str| fs::read(b.path(run).join(file)).unwrap();
        assert!(read("one") == read("two") && read("two") == read("again"), "{file}");
    }
}

#[test]
fn an_optimised_model_can_be_optimised_further() {
    let b = bench();
    b.ok(&optimize("first", &["--growth-ratio", "0"]));
    // From the run folder its archive comes along, so that heads lost in the first run can grow back.
    let more = ["--model", "first", "--pruning-ratio", "0", "--growth-ratio", "0.5", "--num-cycles", "1"];
    let arguments: Vec<&str> = [
        "optimize",
        "--data",
        "text.txt",
        "--sequence-length",
        "64",
        "--max-steps-per-cycle",
        "2",
        "--refit-samples",
        "16",
        "--out",
        "second",
    ]
    .into_iter()
    .chain(more)
    .collect();
    let summary = b.json(&arguments);
    // 32 − 9 − 6 = 17 left, 15 gone, 7 of them back.
    assert_eq!(active(&summary), 17 + 7);
    let notice = events(&b.path("second"))
        .into_iter()
        .any(|e| e["event"] == "notice" && e["message"].as_str().unwrap().contains("nothing to prune"));
    assert!(notice, "a ratio that prunes nothing is said");
}

#[test]
fn a_pruned_model_without_its_archive_can_be_optimised_too() {
    let b = bench();
    b.ok(&optimize("first", &["--growth-ratio", "0"]));
    b.ok(&["export", "--model", "first", "--format", "hf", "--out", "bare"]);
    let arguments =
        ["optimize", "--model", "bare", "--data", "text.txt", "--growth-ratio", "0.5", "--out", "second"];
    let summary = b.json(&[&arguments[..], &SHORT].concat());
    // 17 left: 5 go and 2 of those come back; 4 of 14 go and 3 of 7 come back. What the first run took stays
    // away.
    assert_eq!(active(&summary), 17 - 5 + 2 - 4 + 3);
    let notice = events(&b.path("second"))
        .into_iter()
        .any(|e| e["event"] == "notice" && e["message"].as_str().unwrap().contains("15 heads"));
    assert!(notice, "heads that cannot return are said");
    // Its result loads with the archive it has.
    assert_eq!(b.json(&["inspect", "second"])["active_heads"], summary["after"]["heads"]);
}

#[test]
fn a_target_is_reached_whatever_grows() {
    let b = bench();
    for growth in ["0", "0.5", "0.9", "1"] {
        let out = format!("growth-{growth}");
        let target = [
            "--schedule",
            "target",
            "--pruning-ratio",
            "0.5",
            "--growth-ratio",
            growth,
            "--strategy",
            "random",
        ];
        assert_eq!(active(&b.json(&optimize(&out, &target))), 16, "growth {growth}");
    }
}

#[test]
fn a_cycle_that_loses_too_much_is_rolled_back_exactly() {
    let b = bench();
    let more = [
        "--pruning-ratio",
        "0.8",
        "--max-loss-increase",
        "0.01",
        "--learning-rate",
        "1e-9",
        "--dtype",
        "float32",
    ];
    let summary = b.json(&optimize("run", &more));
    assert_eq!(active(&summary), 32);
    assert_eq!(summary["after"]["evaluation"]["loss"], summary["before"]["evaluation"]["loss"]);
    assert!(summary["cycles"].as_array().unwrap().iter().all(|c| c["accepted"] == false));
}

#[test]
fn options_come_from_a_file_and_the_command_line_wins() {
    let b = bench();
    fs::write(b.path("o.toml"), "model = \"model\"\ndata = [\"text.txt\"]\nstrategy = \"random\"\nseed = 5\nsequence_length = 64\nmax_steps_per_cycle = 1\nnum_cycles = 1\n").unwrap();
    b.ok(&["optimize", "--config", "o.toml", "--seed", "6", "--out", "run"]);
    let record: toml::Table = fs::read_to_string(b.path("run/run.toml")).unwrap().parse().unwrap();
    assert_eq!(record["config"]["seed"].as_integer(), Some(6));
    assert_eq!(record["config"]["strategy"].as_str(), Some("random"));
    // The record itself is a configuration too: that of the same run.
    b.ok(&["optimize", "--config", "run/run.toml", "--out", "again"]);
    let weights = |run: &str| fs::read(b.path(run).join("model/model.safetensors")).unwrap();
    assert_eq!(weights("run"), weights("again"));
    // Unless parts of the run are in no file: without them it would be another one.
    let text = fs::read_to_string(b.path("run/run.toml")).unwrap();
    assert!(text.contains("data = false"));
    fs::write(b.path("given.toml"), text.replace("data = false", "data = true")).unwrap();
    b.refused(
        1,
        &["given.toml", "parts that a program made"],
        &["optimize", "--config", "given.toml", "--out", "third"],
    );
    fs::write(b.path("old.toml"), text.replace("format_version = 6", "format_version = 1")).unwrap();
    b.refused(1, &["old.toml", "has format 1: this program reads 6"], &["optimize", "--config", "old.toml"]);
    fs::write(b.path("bad.toml"), "prunning_ratio = 0.3\n").unwrap();
    b.refused(
        2,
        &["bad.toml", "prunning_ratio", "did you mean \"pruning_ratio\"?"],
        &["optimize", "--config", "bad.toml"],
    );
}

#[test]
fn a_dry_run_writes_nothing() {
    let b = bench();
    let arguments = optimize("run", &["--dry-run", "--strategy", "magnitude"]);
    let plan = b.json(&arguments);
    let count: usize =
        plan["prune"]["heads"].as_object().unwrap().values().map(|h| h.as_array().unwrap().len()).sum();
    assert_eq!(count, 9);
    assert!(plan["prune"]["heads"].as_object().unwrap().keys().all(|k| k.starts_with("model.layers.")));
    let stages: Vec<&str> =
        plan["memory"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(stages, ["measure", "score", "refit", "read and write", "learn"]);
    // The loss after each ratio is foretold, and the model that is measured next is whole again.
    let forecast = plan["forecast"].as_array().unwrap();
    let active: Vec<u64> = forecast.iter().map(|f| f["active"].as_u64().unwrap()).collect();
    assert_eq!(active, [29, 26, 23, 20, 16]);
    assert!(
        forecast.iter().all(|f| f["loss"].as_f64().unwrap() > 0.0) && plan["loss"].as_f64().unwrap() > 0.0
    );
    // Ratios are shares of what the run's budget counts, as far as heads go; a head has 128 weights a feature
    // at most.
    let plan = b.json(&[&arguments[..], &["--budget", "parameters", "--pruning-ratio", "0.2"]].concat());
    let all = b.json(&["inspect", "model"])["parameters"].as_f64().unwrap();
    let forecast = plan["forecast"].as_array().unwrap();
    assert!(plan["budget"] == "parameters" && forecast.len() == 2, "{plan}");
    for row in forecast {
        let (goal, left) =
            (all * (1.0 - row["ratio"].as_f64().unwrap()), row["parameters"].as_f64().unwrap());
        assert!(left <= goal && left > goal - 4.0 * 16.0 * 128.0, "{row}");
    }
    assert!(!b.path("run").exists());
}

#[test]
fn scoring_evaluating_inspecting_and_generating() {
    let b = bench();
    for score in ["entropy", "magnitude", "random"] {
        let scores = b.json(&[
            "score",
            "--model",
            "model",
            "--data",
            "text.txt",
            "--score",
            score,
            "--sequence-length",
            "64",
        ]);
        let layer = &scores["layers"]["model.layers.3.self_attn"];
        assert_eq!(layer["scores"].as_array().unwrap().len(), 8);
        if score == "entropy" {
            assert!(
                layer["scores"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|s| (0.0..=1.0).contains(&s.as_f64().unwrap()))
            );
        }
    }
    let layers =
        ["score", "--model", "model", "--data", "text.txt", "--score", "loss_impact", "--samples", "4"];
    let scores = b.json(&[&layers[..], &["--units", "attention,mlp", "--sequence-length", "64"]].concat());
    assert!(scores["layers"]["model.layers.3.self_attn"]["attention"].is_f64());
    assert!(scores["layers"]["model.layers.0.mlp"]["mlp"].is_f64());
    let e = b.json(&["evaluate", "--model", "model", "--data", "text.txt", "--sequence-length", "64"]);
    assert!((e["loss"].as_f64().unwrap().exp() - e["perplexity"].as_f64().unwrap()).abs() < 1e-9);
    assert_eq!(e["protocol"], "chunks");
    let i = b.json(&["inspect", "model"]);
    assert_eq!(
        (i["layers"].as_u64(), i["heads"][0].as_u64(), i["kv_cache_bytes_per_token"].as_u64()),
        (Some(4), Some(8), Some(2 * 4 * 128 * 2))
    );
    let text =
        b.ok(&["generate", "--model", "model", "--prompt", "Once there was a", "--max-new-tokens", "20"]);
    assert!(text.starts_with("Once there was a ") && text.len() > 40, "{text}");
    let human = b.ok(&["evaluate", "--model", "model", "--data", "text.txt", "--sequence-length", "64"]);
    assert!(human.contains("perplexity"));
}

#[test]
fn documents_of_every_kind_give_the_same_sequences() {
    let b = bench();
    let stories: Vec<String> = upgrayedd::builtin::stories(5, 12).collect();
    fs::write(b.path("a.txt"), stories.join("\n")).unwrap();
    let lines: Vec<String> =
        stories.iter().map(|s| serde_json::json!({ "text": s, "id": 1 }).to_string()).collect();
    fs::write(b.path("a.jsonl"), lines.join("\n")).unwrap();
    write_parquet(&b.path("a.parquet"), &stories);
    let evaluate = |file: &str| {
        b.json(&[
            "evaluate",
            "--model",
            "model",
            "--data",
            file,
            "--documents",
            "separate",
            "--sequence-length",
            "128",
        ])
    };
    let (txt, jsonl, parquet) = (evaluate("a.txt"), evaluate("a.jsonl"), evaluate("a.parquet"));
    assert_eq!(txt["loss"], jsonl["loss"]);
    assert_eq!(txt["loss"], parquet["loss"]);
    assert!(txt["sequences"].as_u64().unwrap() >= 12);
    // Cached tokens give the same again; several files add up.
    assert_eq!(evaluate("a.jsonl")["loss"], jsonl["loss"]);
    let both = b.json(&[
        "evaluate",
        "--model",
        "model",
        "--data",
        "a.txt",
        "--data",
        "a.jsonl",
        "--documents",
        "separate",
        "--sequence-length",
        "128",
    ]);
    assert_eq!(both["sequences"].as_u64(), txt["sequences"].as_u64().map(|n| 2 * n));
}

fn write_parquet(path: &Path, texts: &[String]) {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let schema =
        parquet::schema::parser::parse_message_type("message m { required binary text (UTF8); }").unwrap();
    let mut writer =
        SerializedFileWriter::new(fs::File::create(path).unwrap(), schema.into(), Default::default())
            .unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|t| t.as_str().into()).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}
