//! A filesystem that fails at any call: `tests/faults/faults.c` is loaded before the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Bench, bench};
use crate::stops::{assert_same, signal, steps_made, wait_for};

const FULL_DISK: i32 = 28;
const NOT_ALLOWED: i32 = 13;
const INPUT_OUTPUT: i32 = 5;

fn arguments(out: &str) -> Vec<&str> {
    let data = [
        "optimize",
        "--model",
        "model",
        "--data",
        "text.txt",
        "--sequence-length",
        "32",
        "--max-eval-windows",
        "2",
    ];
    let learn =
        ["--batch-size", "1", "--max-steps-per-cycle", "2", "--num-cycles", "2", "--checkpoint-every", "1"];
    [&data[..], &learn, &["--strategy", "magnitude", "--refit", "false", "--out", out]].concat()
}

fn library(b: &Bench) -> PathBuf {
    let library = b.path("faults.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/faults.c");
    let compiled = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

/// The program with the failing filesystem; `set` are its variables.
fn program(b: &Bench, library: &Path, arguments: &[&str], set: &[(&str, String)]) -> Command {
    let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
    command.args(arguments).env("LD_PRELOAD", library).env("FAULT_DIR", b.path(""));
    command.envs(set.iter().map(|(name, value)| (*name, value)));
    command
}

fn run(b: &Bench, library: &Path, arguments: &[&str], set: &[(&str, String)]) -> Output {
    program(b, library, arguments, set).output().unwrap()
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let b = bench();
    let library = library(&b);
    b.ok(&arguments("whole"));
    // Each call takes 0.1 s, so that saving takes seconds.
    let mut command = program(&b, &library, &arguments("cut"), &[("FAULT_SLEEP_MS", "100".into())]);
    let mut child = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let (run, checkpoints) = (b.path("cut"), b.path("cut/checkpoints"));
    wait_for(&mut child, || steps_made(&run) > 0);
    signal(&child, "-TERM");
    let saving = || {
        fs::read_dir(&checkpoints)
            .unwrap()
            .any(|e| e.unwrap().file_name().to_string_lossy().starts_with(".partial-"))
    };
    wait_for(&mut child, saving);
    signal(&child, "-TERM");
    let asked = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
    assert!(saving(), "it was not cut short");
    b.ok(&["resume", "cut"]);
    assert_same(&b, ["whole", "cut"]);
}

/// Every call that writes, makes, renames, removes or syncs fails in its turn. `UPGRAYEDD_FAULTS=all` tries
/// each; without it, a few.
#[test]
fn a_filesystem_that_fails_loses_nothing() {
    let b = bench();
    let library = library(&b);
    let fresh = |out: &str| {
        let _ = fs::remove_dir_all(b.path(out));
        let _ = fs::remove_dir_all(b.path("cache"));
    };
    fresh("whole");
    let log = b.path("calls.log");
    let whole = run(&b, &library, &arguments("whole"), &[("FAULT_LOG", log.display().to_string())]);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let calls = fs::read_to_string(&log).unwrap();
    for name in ["write", "fsync", "rename", "mkdir", "unlink", "open64"] {
        assert!(calls.lines().any(|call| call.starts_with(name)), "no {name} was seen in\n{calls}");
    }

    let all = std::env::var("UPGRAYEDD_FAULTS").is_ok_and(|v| v == "all");
    let stride = if all { 1 } else { calls.lines().count() / 4 };
    let (mut tried, mut refused, mut resumed) = (0, 0, 0);
    for (errno, says, first) in [
        (FULL_DISK, "No space left", 7),
        (NOT_ALLOWED, "Permission denied", 35),
        (INPUT_OUTPUT, "Input/output", 71),
    ] {
        for (at, call) in calls.lines().enumerate().skip(if all { 0 } else { first }).step_by(stride) {
            let case = format!("{says} at call {}, {call}", at + 1);
            eprintln!("{case}");
            fresh("cut");
            let set = [("FAULT_AT", (at + 1).to_string()), ("FAULT_ERRNO", errno.to_string())];
            let output = run(&b, &library, &arguments("cut"), &set);
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("{:?} {stderr}", output.status.code());
            tried += 1;
            // What could not be removed does not end a run.
            if output.status.success() {
                assert_same(&b, ["whole", "cut"]);
                continue;
            }
            let last = stderr.lines().last().unwrap_or_default();
            // 2: there is nowhere to keep the cache of tokens, which another setting mends.
            assert!(
                matches!(output.status.code(), Some(1 | 2))
                    && last.starts_with("error: ")
                    && last.contains(says),
                "{case}: {stderr}"
            );
            refused += 1;
            if b.path("cut/model").exists() {
                // The result is whole, though the disk may not have it yet: only the sync of its folder
                // failed.
                assert!(call.starts_with("fsync"), "{case}: {stderr}");
                b.refused(1, &["complete already"], &["resume", "cut"]);
            } else if b.path("cut").exists() {
                b.ok(&["resume", "cut"]);
                resumed += 1;
            } else {
                b.ok(&arguments("cut"));
            }
            assert_same(&b, ["whole", "cut"]);
        }
    }
    eprintln!("{tried} faults: {refused} runs ended with an error, {resumed} of them were gone on with");
    assert!(refused > 0 && resumed > 0, "{tried} faults: {refused} refused, {resumed} resumed");
}
