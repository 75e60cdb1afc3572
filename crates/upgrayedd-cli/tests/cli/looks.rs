//! Teachers, and second looks at a selection.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::bench;
use crate::jobs::{events, optimize};

#[test]
fn a_teacher_may_be_another_model_with_the_same_tokens() {
    let b = bench();
    let weights = |run: &str| fs::read(b.path(run).join("model/model.safetensors")).unwrap();
    b.ok(&optimize("own", &["--distill", "0.5"]));
    b.ok(&optimize("named", &["--teacher", "model"]));
    assert!(weights("own") == weights("named"), "the model as given is the teacher by default, with half of the loss");
    b.ok(&optimize("other", &["--teacher", "own"]));
    assert!(weights("own") != weights("other"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama_gqa");
    b.refused(2, &["cannot teach this model", "tokens"], &optimize("no", &["--teacher", golden.to_str().unwrap()]));
}

#[test]
fn second_looks_keep_the_budget_and_what_lowers_the_calibration_loss() {
    let b = bench();
    let looks = ["--strategy", "fisher", "--scope", "global", "--exact-border", "4", "--swaps", "4", "--growth-ratio", "0"];
    let summary = b.json(&optimize("run", &looks));
    let plain = b.json(&optimize("plain", &["--strategy", "fisher", "--scope", "global", "--growth-ratio", "0"]));
    let active = |s: &Value| s["cycles"].as_array().unwrap().iter().map(|c| c["active"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(active(&summary), active(&plain));
    let events = events(&b.path("run"));
    let of_kind = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    for settled in of_kind("settled") {
        let impacts = settled["impacts"]["heads"].as_object().unwrap().values().map(|heads| heads.as_object().unwrap().len());
        assert_eq!(impacts.sum::<usize>(), 8);
    }
    let swaps = of_kind("swapped");
    assert!(of_kind("settled").len() == 2 && !swaps.is_empty());
    for swap in swaps {
        assert_eq!(swap["accepted"], swap["loss_after"].as_f64() < swap["loss_before"].as_f64());
        let count =
            |units: &Value| units["heads"].as_object().unwrap().values().map(|h| h.as_array().unwrap().len()).sum::<usize>();
        assert_eq!(count(&swap["grown"]), count(&swap["pruned"]));
    }
    b.refused(2, &["exact_border", "units heads"], &optimize("no", &["--exact-border", "2", "--units", "kv-groups"]));
}
