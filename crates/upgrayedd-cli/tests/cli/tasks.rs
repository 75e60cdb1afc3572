//! Jobs of models that do something else than continue text, and of teachers.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{bench, with_tokenizer};
use crate::jobs::optimize;

#[test]
fn a_classifier_learns_its_labels() {
    let b = bench();
    let model = with_tokenizer(&b, "bert_classifier", &["good", "bad", "odd", "the", "film", "was"]);
    let rows: Vec<String> = (0..120)
        .map(|i| {
            let (word, label) = [("good", 1), ("bad", 0), ("odd", 2)][i * 7 % 3];
            format!("the film was {word}{}\t{label}", ["", " the film"][i % 2])
        })
        .collect();
    fs::write(b.path("train.tsv"), format!("sentence\tlabel\n{}\n", rows.join("\n"))).unwrap();
    let out = [
        "optimize",
        "--model",
        &model,
        "--data",
        "train.tsv",
        "--sequence-length",
        "16",
        "--learning-rate",
        "3e-3",
        "--num-cycles",
        "2",
        "--out",
        "run",
    ];
    let summary = b.json(&[&out[..], &["--epochs-per-cycle", "3"]].concat());
    assert_eq!(summary["after"]["evaluation"]["protocol"], "labels");
    assert!(
        summary["after"]["evaluation"]["accuracy"].as_f64()
            >= summary["before"]["evaluation"]["accuracy"].as_f64()
    );
    assert!(summary["after"]["evaluation"]["accuracy"].as_f64().unwrap() > 0.9, "{summary}");
    fs::write(b.path("bad.tsv"), "text\tlabel\nthe film\t7\n").unwrap();
    b.refused(
        1,
        &["none of the model's classes", "0 to 2"],
        &["evaluate", "--model", &model, "--data", "bad.tsv", "--sequence-length", "16"],
    );
}

#[test]
fn several_labels_are_learned_from_lists() {
    let b = bench();
    let model = with_tokenizer(&b, "bert_several_labels", &["good", "odd", "loud", "the", "film", "was"]);
    let rows: Vec<String> = (0..160)
        .map(|i| {
            // Each word is its label, whatever else there is; 0 to 2 by number or by mark.
            let there: Vec<usize> = (0..3).filter(|l| (i * 5 % 8) >> l & 1 == 1).collect();
            let words: Vec<&str> = there.iter().map(|&l| ["good", "odd", "loud"][l]).collect();
            let labels = match i % 2 {
                0 => serde_json::json!(there),
                _ => serde_json::json!((0..3).map(|l| there.contains(&l)).collect::<Vec<_>>()),
            };
            serde_json::json!({ "text": format!("the film was {}", words.join(" ")), "label": labels })
                .to_string()
        })
        .collect();
    fs::write(b.path("train.jsonl"), rows.join("\n")).unwrap();
    let fixed = [
        "--sequence-length",
        "16",
        "--learning-rate",
        "3e-3",
        "--num-cycles",
        "2",
        "--epochs-per-cycle",
        "4",
    ];
    let run = ["optimize", "--model", &model, "--data", "train.jsonl", "--out", "run", "--strategy", "auto"];
    let summary = b.json(&[&run[..], &fixed].concat());
    let of = |when: &str, what: &str| summary[when]["evaluation"][what].as_f64().unwrap();
    assert!(of("after", "loss") < of("before", "loss"));
    assert!(of("after", "accuracy") > 0.9 && of("after", "f1") > 0.95, "{summary}");
    let learn_more =
        ["optimize", "--model", "run", "--data", "train.jsonl", "--out", "taught", "--distill", "0.5"];
    let taught = b.json(&[&learn_more[..], &fixed].concat());
    assert!(taught["after"]["evaluation"]["f1"].as_f64().unwrap() > 0.9, "{taught}");
    fs::write(b.path("bad.jsonl"), r#"{"text": "the film", "label": [0, 7]}"#).unwrap();
    b.refused(
        1,
        &["none of the model's classes", "0 to 2"],
        &["evaluate", "--model", &model, "--data", "bad.jsonl", "--sequence-length", "16"],
    );
}

#[test]
fn a_regression_learns_numbers_from_pairs_of_texts() {
    let b = bench();
    let model = with_tokenizer(&b, "bert_regression", &["good", "bad", "the", "film", "was"]);
    let rows: Vec<String> = (0..120)
        .map(|i| {
            // Alike or not, which neither text says alone.
            let (first, second) = ([i % 2, i / 2 % 2]).map(|n| ["good", "bad"][n]).into();
            let value = if first == second { 1.5 } else { -0.5 };
            format!("{value}\tthe film was {first}\tthe film was {second}")
        })
        .collect();
    fs::write(b.path("train.tsv"), format!("similarity\tsentence\tother\n{}\n", rows.join("\n"))).unwrap();
    let data = [
        "--model",
        &model,
        "--data",
        "train.tsv",
        "--label-field",
        "similarity",
        "--text-pair-field",
        "other",
    ];
    let learning = [
        "--learning-rate",
        "3e-3",
        "--num-cycles",
        "1",
        "--epochs-per-cycle",
        "8",
        "--strategy",
        "task",
        "--out",
        "run",
    ];
    let summary = b.json(&[&["optimize", "--sequence-length", "16"], &data[..], &learning].concat());
    let after = &summary["after"]["evaluation"];
    assert_eq!(after["protocol"], "numbers");
    assert!(after["loss"].as_f64().unwrap() < 0.1 && after["spearman"].as_f64().unwrap() > 0.8, "{summary}");
    // A teacher's numbers count as well.
    let again = ["--teacher", "run", "--distill", "0.5", "--num-cycles", "1", "--out", "taught"];
    b.json(&[&["optimize", "--sequence-length", "16"], &data[..], &again].concat());

    let refused = |code: i32, rows: &str, length: &str, more: &[&str], words: &[&str]| {
        fs::write(b.path("bad.tsv"), rows).unwrap();
        let call = ["evaluate", "--model", &model, "--data", "bad.tsv", "--sequence-length", length];
        b.refused(code, words, &[&call[..], more].concat());
    };
    let pair = ["--text-pair-field", "other"];
    refused(1, "text\tlabel\nthe film\tgood\n", "16", &[], &["line 2", "\"good\" is no number"]);
    refused(1, "text\tlabel\nthe film\t1\n", "16", &pair, &["no second text field", "--text-pair-field"]);
    refused(2, "text\tother\tlabel\nthe\tfilm\t1\n", "4", &pair, &["no room", "3 special tokens"]);
}

#[test]
fn a_masked_language_model_learns_and_so_does_an_encoder_from_its_parent() {
    let b = bench();
    let words = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let model = with_tokenizer(&b, "bert_mlm", &words);
    let text: Vec<String> =
        (0..80).map(|i| (0..10).map(|j| words[(i + j) % 8]).collect::<Vec<_>>().join(" ")).collect();
    fs::write(b.path("abc.txt"), text.join("\n")).unwrap();
    let arguments = |model: &'static str, out: &'static str| {
        vec![
            "optimize",
            "--model",
            model,
            "--data",
            "abc.txt",
            "--documents",
            "separate",
            "--sequence-length",
            "16",
            "--learning-rate",
            "3e-3",
            "--num-cycles",
            "2",
            "--epochs-per-cycle",
            "4",
            "--out",
            out,
        ]
    };
    let summary = b.json(&arguments("bert_mlm", "run"));
    assert_eq!((model.as_str(), &summary["after"]["evaluation"]["protocol"]), ("bert_mlm", &"masked".into()));
    assert!(
        summary["after"]["evaluation"]["loss"].as_f64() < summary["before"]["evaluation"]["loss"].as_f64()
    );
    with_tokenizer(&b, "bert_encoder", &words);
    b.refused(
        2,
        &["plain encoder", "distill"],
        &[&arguments("bert_encoder", "other")[..], &["--distill", "0.5"]].concat(),
    );
    let summary = b.json(&[&arguments("bert_encoder", "encoder")[..], &["--strategy", "auto"]].concat());
    let (before, after) = (&summary["before"]["evaluation"], &summary["after"]["evaluation"]);
    assert_eq!(
        (&before["loss"], &before["protocol"], &before["perplexity"]),
        (&0.0.into(), &"hidden states".into(), &Value::Null)
    );
    let last = summary["cycles"].as_array().unwrap().last().unwrap();
    assert!(
        after["loss"].as_f64() > Some(0.0) && last["loss_learned"].as_f64() < last["loss_pruned"].as_f64(),
        "{summary}"
    );
    let evaluate = [
        "evaluate",
        "--model",
        "encoder",
        "--data",
        "abc.txt",
        "--documents",
        "separate",
        "--sequence-length",
        "16",
    ];
    b.refused(2, &["plain encoder", "reference"], &evaluate);
    b.refused(
        2,
        &["a reference is for plain encoders"],
        &["evaluate", "--model", "bert_mlm", "--data", "abc.txt", "--reference", "bert_encoder"],
    );
    let distance = b.json(&[&evaluate[..], &["--reference", "bert_encoder"]].concat());
    assert_eq!(distance["protocol"], "hidden states");
    assert!(distance["loss"].as_f64() > Some(0.0));
}

#[test]
fn a_teacher_may_be_another_model_with_the_same_tokens() {
    let b = bench();
    let weights = |run: &str| fs::read(b.path(run).join("model/model.safetensors")).unwrap();
    b.ok(&optimize("own", &["--distill", "0.5"]));
    b.ok(&optimize("named", &["--teacher", "model"]));
    assert!(
        weights("own") == weights("named"),
        "the model as given is the teacher by default, with half of the loss"
    );
    b.ok(&optimize("other", &["--teacher", "own"]));
    assert!(weights("own") != weights("other"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama_gqa");
    b.refused(
        2,
        &["cannot teach this model", "tokens"],
        &optimize("no", &["--teacher", golden.to_str().unwrap()]),
    );
}
