//! Runs the program in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with a small model, some text, and a token cache that goes with it.
pub struct Bench {
    dir: TempDir,
}

pub fn bench() -> Bench {
    let bench = Bench { dir: tempfile::tempdir().unwrap() };
    bench.ok(&["export", "--model", "builtin", "--format", "hf", "--out", "model"]);
    let stories: Vec<String> = upgrayedd::builtin::stories(77, 60).collect();
    std::fs::write(bench.path("text.txt"), stories.join("\n")).unwrap();
    bench
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.path())
            .env("UPGRAYEDD_CACHE", self.path("cache"))
            .env("HF_HOME", self.path("hf"))
            .env("HF_HUB_OFFLINE", "1");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_upgrayedd")).args(arguments).output().unwrap()
    }

    /// Runs what must succeed; returns stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs what must be refused: the exit code, one line that says all of `words`, and no new file.
    pub fn refused(&self, code: i32, words: &[&str], arguments: &[&str]) {
        let before = self.listing();
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(
            errors.len() == 1 && stderr.lines().last() == errors.first().copied(),
            "{arguments:?}: not one line: {stderr}"
        );
        for word in words {
            assert!(errors[0].contains(word), "{arguments:?}: {word:?} is not in: {stderr}");
        }
        assert_eq!(self.listing(), before, "{arguments:?} left something behind");
    }

    /// Everything in the folder but the token cache.
    fn listing(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && path.file_name().is_some_and(|n| n != "cache") {
                    walk(&path, into);
                }
                into.push(path);
            }
        }
        let mut all = Vec::new();
        walk(self.dir.path(), &mut all);
        all.retain(|p| p.file_name().is_some_and(|n| n != "cache"));
        all.sort();
        all
    }
}

/// Puts a word-level tokenizer for `words` beside a golden model.
pub fn with_tokenizer(b: &Bench, golden: &str, words: &[&str]) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(golden);
    let dir = b.path(golden);
    std::fs::create_dir(&dir).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(name), dir.join(name)).unwrap();
    }
    let vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .iter()
        .chain(words)
        .copied()
        .collect::<Vec<_>>()
        .join("\n");
    std::fs::write(dir.join("vocab.txt"), vocab).unwrap();
    golden.to_owned()
}
