//! How results are shown: colours, quiet, completions, manual pages, pages about runs.

use std::fs;

use crate::common::{bench, with_tokenizer};

const SHORT: [&str; 8] =
    ["--num-cycles", "1", "--max-steps-per-cycle", "1", "--max-eval-windows", "2", "--strategy", "magnitude"];

#[test]
fn colours_are_for_terminals_and_whoever_wants_them() {
    let b = bench();
    let inspect = ["inspect", "model"];
    let plain = b.ok(&inspect);
    let coloured = b.ok(&[&inspect[..], &["--color", "always"]].concat());
    assert!(!plain.contains('\u{1b}') && coloured.contains("\u{1b}[34m█\u{1b}[0m"), "{coloured:?}");
    // The same but for the colours.
    let mut parts = coloured.split("\u{1b}[");
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
    let without: String = std::iter::once(first).chain(rest).collect();
    assert_eq!(without, plain);
    let run = |name: &str, value: &str| {
        let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
        String::from_utf8(command.args(inspect).env(name, value).output().unwrap().stdout).unwrap()
    };
    assert_eq!(run("NO_COLOR", "1"), plain);
    assert_eq!(run("CLICOLOR_FORCE", "1"), coloured);
}

#[test]
fn quiet_says_results_and_errors_only() {
    let b = bench();
    let words =
        [&["optimize", "--model", "model", "--data", "text.txt", "--quiet", "--out", "run"], &SHORT[..]]
            .concat();
    let output = b.run(&words);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("held-out loss"));
    b.refused(1, &["run", "already exists"], &words);
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let b = bench();
    let help = b.ok(&["--help"]);
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands: Vec<&str> = listed
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 11, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = b.ok(&["completions", shell]);
        assert!(
            commands.iter().all(|name| script.contains(name)) && script.contains("pruning-ratio"),
            "{shell}"
        );
    }
    b.ok(&["man", "--out", "pages"]);
    for name in &commands {
        let page = fs::read_to_string(b.path(&format!("pages/upgrayedd-{name}.1"))).unwrap();
        assert!(page.contains(".TH"), "{name}");
    }
    assert!(b.ok(&["man"]).contains(".TH upgrayedd 1"));
}

#[test]
fn samples_and_the_dense_model_stand_beside_the_result() {
    let b = bench();
    let asked = ["--prompt", "Mia was", "--samples", "1", "--control", "--out", "run"];
    let text = b.ok(&[&["optimize", "--model", "model", "--data", "text.txt"], &SHORT[..], &asked].concat());
    assert!(text.contains("dense, learned") && text.contains("than that of the dense model"), "{text}");
    let samples = text.lines().filter(|line| line.starts_with("  before: ")).count();
    assert_eq!((samples, text.contains("\nMia was\n")), (2, true), "{text}");
    let page = fs::read_to_string(b.path("run/report.html")).unwrap();
    assert!(page.contains("dense, learned") && page.contains("<h3>Mia was</h3>"));
    assert!(b.path("run/control/report.html").is_file());
    // Nothing of the text is in a page without samples.
    b.ok(&[&["optimize", "--model", "model", "--data", "text.txt", "--out", "plain"], &SHORT[..]].concat());
    let page = fs::read_to_string(b.path("plain/report.html")).unwrap();
    let stories = fs::read_to_string(b.path("text.txt")).unwrap();
    let story = stories.split(". ").next().unwrap();
    assert!(story.len() > 8 && !page.contains(story) && !page.contains("Samples"), "{story}");
    b.refused(2, &["samples"], &["optimize", "--model", "model", "--data", "text.txt", "--samples", "1001"]);
    with_tokenizer(&b, "bert_mlm", &["a", "b"]);
    let masked = ["optimize", "--model", "bert_mlm", "--data", "text.txt", "--prompt", "a"];
    b.refused(2, &["continues no text"], &masked);
    let long = "Mia ".repeat(3000);
    b.refused(
        2,
        &["begins with", "3002 tokens"],
        &["optimize", "--model", "model", "--data", "text.txt", "--prompt", &long],
    );
}
