//! Runs that are stopped, killed, starved of disk, and gone on with.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Bench, bench};
use crate::jobs::optimize;

/// Two cycles of 40 steps, saved now and then.
fn long(out: &str) -> Vec<&str> {
    let steps = [
        "--refit-samples",
        "16",
        "--max-steps-per-cycle",
        "40",
        "--num-cycles",
        "2",
        "--checkpoint-every",
        "15",
    ];
    let data = [
        "optimize",
        "--model",
        "model",
        "--data",
        "text.txt",
        "--sequence-length",
        "64",
        "--max-eval-windows",
        "4",
    ];
    [&data[..], &["--batch-size", "2", "--out", out], &steps].concat()
}

fn start(b: &Bench, arguments: &[&str]) -> Child {
    let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
    command.args(arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

pub fn signal(child: &Child, name: &str) {
    Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
}

/// Waits until `ready` holds while `child` runs.
pub fn wait_for(child: &mut Child, ready: impl Fn() -> bool) {
    while !ready() {
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn steps_made(run: &Path) -> usize {
    fs::read_to_string(run.join("events.jsonl")).map_or(0, |t| t.matches("\"event\":\"step\"").count())
}

pub fn assert_same(b: &Bench, runs: [&str; 2]) {
    for file in [
        "model/model.safetensors",
        "archive.safetensors",
        "events.jsonl",
        "checkpoints/cycle-0002/BLAKE3SUMS",
    ] {
        let [a, b] = runs.map(|run| fs::read(b.path(run).join(file)).unwrap());
        assert!(a == b, "{file}");
    }
}

#[test]
fn a_reader_that_goes_away_stops_nothing() {
    let b = bench();
    let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
    let mut child = command.args(long("run")).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop((child.stderr.take(), child.stdout.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(b.path("run/model").is_dir());
}

#[test]
fn a_signal_saves_what_has_been_learned() {
    let b = bench();
    b.ok(&long("whole"));
    let steps = steps_made(&b.path("whole")) / 2;
    for (name, code, at) in [("INT", 130, 5), ("TERM", 143, steps + 5), ("HUP", 129, 9)] {
        let run = b.path(name);
        let mut child = start(&b, &long(name));
        wait_for(&mut child, || steps_made(&run) >= at);
        signal(&child, &format!("-{name}"));
        let asked = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(!run.join("model").exists());
        b.refused(1, &["resume it first"], &["inspect", name]);
        let newest =
            fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).max().unwrap();
        let saved =
            newest.to_string_lossy().split_once("-step-").map(|(_, step)| step.parse::<usize>().unwrap());
        assert!(saved.is_some_and(|step| step >= at % steps), "{newest:?}");
        // At another number of threads, too.
        b.ok(&["resume", name, "--threads", "1"]);
        assert_same(&b, ["whole", name]);
        b.refused(1, &["complete already"], &["resume", name]);
    }
}

#[test]
fn a_signal_is_heard_while_text_is_read() {
    let b = bench();
    // Some ten seconds of tokenising.
    fs::write(b.path("long.txt"), "Once upon a time there was a dog who liked the sun.\n".repeat(1 << 20))
        .unwrap();
    let mut child =
        start(&b, &["evaluate", "--model", "builtin", "--data", "long.txt", "--max-eval-windows", "1"]);
    // The cache is made before the first text is tokenised.
    wait_for(&mut child, || b.path("cache/tokens").is_dir());
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(b.path("cache/tokens")).unwrap().count(), 0, "half a token cache is left");
}

/// `UPGRAYEDD_KILLS` says how often, 6 times if it is not set.
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bits() {
    let b = bench();
    let started = Instant::now();
    b.ok(&long("whole"));
    let whole = started.elapsed();
    let wanted: u32 = std::env::var("UPGRAYEDD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    // Moments that look random and are the same every time.
    let mut state = 0x9E37_79B9_u32;
    let mut kills = 0;
    while kills < wanted {
        let _ = fs::remove_dir_all(b.path("cut"));
        let mut arguments = long("cut");
        loop {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut child = start(&b, &arguments);
            std::thread::sleep(whole.mul_f64(0.8 * f64::from(state >> 8) / f64::from(1 << 24)));
            signal(&child, "-KILL");
            if child.wait().unwrap().success() {
                break;
            }
            kills += 1;
            // Killed before it had a folder: it is simply started again.
            if b.path("cut/run.toml").exists() {
                arguments = vec!["resume", "cut"];
            }
        }
        assert_same(&b, ["whole", "cut"]);
    }
}

/// Files may not grow beyond a limit, which is what a full disk looks like, wherever it strikes.
#[test]
fn a_full_disk_loses_nothing() {
    let b = bench();
    b.ok(&long("whole"));
    // The cache of tokens is there by now: a run that cannot write it is refused before it begins.
    let (mut refused, mut resumed) = (0, 0);
    for limit in ["1", "8", "60", "200", "400", "800", "1200", "1600"] {
        let name = format!("limit{limit}");
        let quoted = long(&name).join(" ");
        let shell =
            format!("trap '' XFSZ; ulimit -f {limit}; exec {} {quoted}", env!("CARGO_BIN_EXE_upgrayedd"));
        let output = b.command("bash").args(["-c", &shell]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {}
            Some(1) => {
                let last = stderr.lines().last().unwrap_or_default();
                assert!(last.starts_with("error: ") && last.contains("File too large"), "{limit}: {stderr}");
                refused += 1;
                if !b.path(&name).exists() {
                    continue;
                }
                b.ok(&["resume", &name]);
                resumed += 1;
            }
            other => panic!("{limit}: {other:?}: {stderr}"),
        }
        assert_same(&b, ["whole", &name]);
    }
    assert!(refused > 3, "only {refused} were refused, {resumed} went on");
}

#[test]
fn a_checkpoint_is_a_model() {
    let b = bench();
    // Nothing is rounded, so that the last checkpoint is the result.
    b.ok(&optimize("run", &["--dtype", "float32"]));
    let measure = |model: &str| {
        let data = ["--data", "text.txt", "--sequence-length", "64", "--max-eval-windows", "4"];
        b.json(&[&["evaluate", "--model", model], &data[..]].concat())["loss"].clone()
    };
    assert_eq!(measure("run/checkpoints/cycle-0002"), measure("run"));
    assert_ne!(measure("run/checkpoints/cycle-0001"), measure("run"));
    b.ok(&[
        "export",
        "--model",
        "run/checkpoints/cycle-0001",
        "--format",
        "hf",
        "--dtype",
        "float32",
        "--out",
        "first",
    ]);
    assert_eq!(measure("first"), measure("run/checkpoints/cycle-0001"));
}

#[test]
fn two_processes_do_not_share_a_run() {
    let b = bench();
    let mut child = start(&b, &long("run"));
    let run = b.path("run");
    wait_for(&mut child, || steps_made(&run) > 0);
    let output = b.run(&["resume", "run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is in use"));
    signal(&child, "-INT");
    child.wait().unwrap();
    b.ok(&["resume", "run"]);
}

#[test]
fn a_run_continues_only_with_the_data_it_was_started_with() {
    let b = bench();
    b.ok(&optimize("run", &[]));
    fs::remove_dir_all(b.path("run/model")).unwrap();
    let mut text = fs::read_to_string(b.path("text.txt")).unwrap();
    text.push_str("\nMia was a kind girl.");
    fs::write(b.path("text.txt"), text).unwrap();
    let output = b.run(&["resume", "run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("data has changed"));
}
