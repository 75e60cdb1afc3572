//! Bad input: one line that names what was wrong and the remedy, the right exit code, nothing left behind.

use std::fs;

use crate::common::{Bench, bench};

const OUT: [&str; 2] = ["--out", "run"];

fn optimize<'a>(model: &'a str, data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["optimize", "--model", model, "--data", data, "--sequence-length", "64"], &OUT[..], more].concat()
}

#[test]
fn data_that_cannot_be_used() {
    let b = bench();
    fs::write(b.path("empty.txt"), "").unwrap();
    fs::write(b.path("short.txt"), "Mia was a kind girl.").unwrap();
    fs::write(b.path("table.xlsx"), "a,b").unwrap();
    fs::write(b.path("latin.txt"), b"caf\xe9 and more\n").unwrap();
    fs::write(b.path("bad.jsonl"), "{\"text\": \"fine\"}\n{oops\n").unwrap();
    fs::write(b.path("other.jsonl"), "{\"body\": \"fine\"}\n").unwrap();
    fs::write(b.path("fake.parquet"), "PAR1 this is not one").unwrap();
    b.refused(1, &["missing.txt", "no such file"], &optimize("model", "missing.txt", &[]));
    b.refused(1, &["empty.txt", "is empty"], &optimize("model", "empty.txt", &[]));
    b.refused(1, &["table.xlsx", ".txt, .jsonl, .parquet"], &optimize("model", "table.xlsx", &[]));
    b.refused(2, &["less than one window", "--sequence-length"], &optimize("model", "short.txt", &[]));
    b.refused(1, &["latin.txt", "byte 4", "UTF-8"], &optimize("model", "latin.txt", &[]));
    b.refused(1, &["bad.jsonl", "line 2", "JSON"], &optimize("model", "bad.jsonl", &[]));
    b.refused(1, &["other.jsonl", "body", "text_field"], &optimize("model", "other.jsonl", &[]));
    b.refused(1, &["fake.parquet", "Parquet"], &optimize("model", "fake.parquet", &[]));
    b.refused(
        2,
        &["--eval-data", "same contents"],
        &optimize("model", "text.txt", &["--eval-data", "text.txt"]),
    );
    fs::copy(b.path("text.txt"), b.path("copy.txt")).unwrap();
    b.refused(
        2,
        &["two files to learn from", "same contents"],
        &optimize("model", "text.txt", &["--data", "copy.txt"]),
    );
    b.refused(2, &["no data"], &["optimize", "--model", "model"]);
    b.refused(2, &["data without a model"], &["optimize", "--data", "text.txt"]);
}

#[test]
fn parameters_out_of_range() {
    let b = bench();
    for (flag, value, words) in [
        ("--pruning-ratio", "1.0", ["--pruning-ratio", "less than 1"]),
        ("--pruning-ratio", "-0.1", ["--pruning-ratio", "-0.1"]),
        ("--growth-ratio", "1.5", ["--growth-ratio", "0 to 1"]),
        ("--min-heads", "0", ["--min-heads", "at least 1"]),
        ("--min-heads", "9", ["--min-heads is 9", "8 heads"]),
        ("--num-cycles", "0", ["--num-cycles", "more than 0"]),
        ("--learning-rate", "-1", ["--learning-rate", "more than 0"]),
        ("--learning-rate", "nan", ["--learning-rate", "NaN"]),
        ("--batch-size", "0", ["--batch-size", "more than 0"]),
        ("--sequence-length", "9999", ["sequence length", "256"]),
        ("--strategy", "entrpy", ["random, entropy, magnitude", "did you mean \"entropy\"?"]),
        ("--strategy-option", "calibration_sample=1", ["calibration_sample", "calibration_samples"]),
        ("--scope", "everywhere", ["scope", "layer, global"]),
        ("--units", "kv-group", ["kv-groups", "did you mean"]),
        ("--schedule", "target2", ["schedule", "target"]),
        ("--device", "cuda", ["cuda", "cpu"]),
        ("--device", "tpu", ["tpu", "auto, cpu, cuda"]),
        ("--dtype", "int8", ["dtype", "float16"]),
        ("--max-loss-increase", "-1", ["--max-loss-increase", "0 or more"]),
        ("--batch-size", "18446744073709551615", ["--batch-size", "at most"]),
        ("--threads", "0", ["threads", "more than 0"]),
    ] {
        let mut arguments =
            vec!["optimize", "--model", "model", "--data", "text.txt", "--out", "run", flag, value];
        if flag != "--sequence-length" {
            arguments.extend(["--sequence-length", "64"]);
        }
        b.refused(2, &words, &arguments);
    }
    let target = ["--schedule", "target", "--pruning-ratio", "0.9", "--min-heads", "3"];
    b.refused(2, &["28 of 32", "only 20"], &optimize("model", "text.txt", &target));
    let idle = ["--teacher", "model", "--distill", "0"];
    b.refused(2, &["distill is 0", "teacher"], &optimize("model", "text.txt", &idle));
    b.refused(2, &["--patience", "--eval-every"], &optimize("model", "text.txt", &["--patience", "2"]));
    b.refused(
        2,
        &["--distill-temperature", "--teacher"],
        &optimize("model", "text.txt", &["--distill-temperature", "2"]),
    );
    let one =
        ["score", "--model", "model", "--data", "text.txt", "--score", "entropy", "--ablation-samples", "2"];
    b.refused(2, &["--all"], &one);
    b.refused(2, &["--temperature"], &["generate", "--model", "model", "--prompt", "Mia", "--top-p", "0.9"]);
    b.refused(
        2,
        &["score", "entropy"],
        &["score", "--model", "model", "--data", "text.txt", "--score", "entropi", "--sequence-length", "64"],
    );
    b.refused(2, &["format", "hf-dense"], &["export", "--model", "model", "--format", "gguff", "--out", "x"]);
}

/// Changes a copy of the model and checks that it is refused.
fn broken(b: &Bench, words: &[&str], change: impl FnOnce(&std::path::Path)) {
    let dir = b.path("broken");
    fs::create_dir(&dir).unwrap();
    for entry in fs::read_dir(b.path("model")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    change(&dir);
    b.refused(1, words, &optimize("broken", "text.txt", &[]));
    fs::remove_dir_all(dir).unwrap();
}

fn edit_config(dir: &std::path::Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn models_that_cannot_be_used() {
    let b = bench();
    let weights = |dir: &std::path::Path| dir.join("model.safetensors");
    broken(&b, &["model.safetensors", "damaged or incomplete"], |d| {
        let bytes = fs::read(weights(d)).unwrap();
        fs::write(weights(d), &bytes[..bytes.len() / 2]).unwrap();
    });
    broken(&b, &["model.safetensors", "damaged or incomplete"], |d| {
        fs::write(weights(d), [0xff; 64]).unwrap()
    });
    broken(&b, &["damaged or incomplete"], |d| fs::write(weights(d), "").unwrap());
    // A header whose first tensor claims to lie beyond the file.
    broken(&b, &["damaged or incomplete"], |d| {
        let bytes = fs::read(weights(d)).unwrap();
        let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
        let at = 8 + text.find("\"data_offsets\":[").unwrap() + 16;
        let mut lying = bytes;
        lying[at] = b'9';
        fs::write(weights(d), lying).unwrap();
    });
    // The last two bytes belong to some weight: a half-precision NaN.
    broken(&b, &["NaN", "tensor"], |d| {
        let mut bytes = fs::read(weights(d)).unwrap();
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0x00, 0x7e]);
        fs::write(weights(d), bytes).unwrap();
    });
    broken(&b, &["shape", "do not belong together"], |d| edit_config(d, |c| c["hidden_size"] = 64.into()));
    broken(&b, &["num_attention_heads", "whole number"], |d| {
        edit_config(d, |c| c["num_attention_heads"] = 0.into())
    });
    broken(&b, &["hidden_size", "whole number"], |d| edit_config(d, |c| c["hidden_size"] = u64::MAX.into()));
    broken(&b, &["multiple"], |d| edit_config(d, |c| c["num_key_value_heads"] = 3.into()));
    broken(&b, &["\"t5\"", "llama, mistral"], |d| edit_config(d, |c| c["model_type"] = "t5".into()));
    broken(&b, &["LlamaForSequenceClassification", "LlamaForCausalLM"], |d| {
        edit_config(d, |c| c["architectures"][0] = "LlamaForSequenceClassification".into());
    });
    broken(&b, &["config.json", "not valid JSON"], |d| fs::write(d.join("config.json"), "{").unwrap());
    broken(&b, &["no tokenizer"], |d| fs::remove_file(d.join("tokenizer.json")).unwrap());
    broken(&b, &["pytorch_model.bin", "Convert it", "save_pretrained"], |d| {
        fs::remove_file(weights(d)).unwrap();
        fs::write(d.join("pytorch_model.bin"), "pickle").unwrap();
    });
    broken(&b, &["no model.safetensors"], |d| fs::remove_file(weights(d)).unwrap());
    broken(&b, &["../model/model.safetensors", "same folder"], |d| {
        fs::remove_file(weights(d)).unwrap();
        fs::write(
            d.join("model.safetensors.index.json"),
            r#"{"weight_map": {"a": "../model/model.safetensors"}}"#,
        )
        .unwrap();
    });
    b.refused(1, &["text.txt", "model folder"], &optimize("text.txt", "text.txt", &[]));
    b.refused(1, &["nobody/nothing", "HF_HUB_OFFLINE"], &optimize("nobody/nothing", "text.txt", &[]));
    b.refused(1, &["no such folder"], &optimize("./no/such/folder", "text.txt", &[]));
}

#[test]
fn a_config_without_model_type() {
    let b = bench();
    fs::create_dir(b.path("plain")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(b.path("model").join(name), b.path("plain").join(name)).unwrap();
    }
    let strip = |keys: &[&str]| {
        edit_config(&b.path("plain"), |c| {
            keys.iter().for_each(|k| {
                c.as_object_mut().unwrap().remove(*k);
            })
        })
    };
    strip(&["model_type"]);
    assert_eq!(b.json(&["inspect", "plain"])["family"], "llama");
    strip(&["architectures"]);
    // Several families call their weights so.
    b.refused(1, &["say which as family", "llama", "qwen2"], &["inspect", "plain"]);
    assert_eq!(b.json(&["inspect", "plain", "--family", "llama"])["family"], "llama");
    b.refused(2, &["bret", "did you mean \"bert\"?"], &["inspect", "plain", "--family", "bret"]);
}

#[test]
fn places_that_cannot_be_written() {
    let b = bench();
    fs::create_dir(b.path("run")).unwrap();
    b.refused(1, &["run", "already exists", "another place"], &optimize("model", "text.txt", &[]));
    b.refused(1, &["already exists"], &["export", "--model", "model", "--format", "hf", "--out", "model"]);
    b.refused(
        1,
        &["cannot"],
        &["export", "--model", "model", "--format", "hf", "--out", "/proc/nowhere/model"],
    );
    fs::remove_dir(b.path("run")).unwrap();
    fs::write(b.path("file"), "").unwrap();
    b.refused(1, &["cannot"], &["export", "--model", "model", "--format", "hf", "--out", "file/model"]);
    b.refused(1, &["not a run folder"], &["resume", "model"]);
}

/// A limit on the size of files stands in for a full disk: writing fails half way.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let b = bench();
    // The token cache is there already, so that only the run's own files hit the limit.
    b.ok(&[
        "evaluate",
        "--model",
        "model",
        "--data",
        "text.txt",
        "--sequence-length",
        "64",
        "--max-eval-windows",
        "1",
    ]);
    for blocks in [1, 100, 2000] {
        let program = env!("CARGO_BIN_EXE_upgrayedd");
        let line = format!(
            "trap '' XFSZ; ulimit -f {blocks}; exec {program} optimize --model model --data text.txt --sequence-length 64 \
             --num-cycles 1 --max-steps-per-cycle 2 --max-eval-windows 2 --out run"
        );
        let output = b.command("bash").args(["-c", &line]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{blocks}: {stderr}");
        assert!(stderr.lines().last().unwrap().contains("cannot write"), "{stderr}");
        let left: Vec<_> = fs::read_dir(b.path(""))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(!left.iter().any(|n| n == "run" || n.starts_with('.')), "{blocks}: {left:?}");
    }
}

/// A driver that finds a GPU, and no more.
const DRIVER: &str =
    "int cuInit(unsigned flags) { return 0; }\nint cuDeviceGetCount(int *count) { *count = 1; return 0; }\n";

#[cfg(target_os = "linux")]
#[test]
fn a_gpu_without_its_libraries() {
    let b = bench();
    fs::write(b.path("driver.c"), DRIVER).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "driver.c", "-o", "libcuda.so.1"])
        .current_dir(b.path("."))
        .status();
    assert!(built.unwrap().success());
    let said = |device: &str| {
        let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
        command.env("LD_LIBRARY_PATH", b.path("."));
        let output =
            command.args(["evaluate", "--model", "model", "--data", "text.txt", "--device", device]).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = said("cuda");
    assert!(code == Some(2) && message.contains("cuBLASLt"), "{message}");
    assert!(message.contains("UPGRAYEDD_CUDA_LIBRARIES") && message.trim().lines().count() == 1, "{message}");
    let (code, message) = said("cuda:3");
    assert!(code == Some(2) && message.contains("numbered from 0"), "{message}");
    // The CPU does it, but not in silence.
    let (code, message) = said("auto");
    assert!(
        code == Some(0) && message.contains("note: the GPU is not used: the library cuBLASLt"),
        "{message}"
    );
}
