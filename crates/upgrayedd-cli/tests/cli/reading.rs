//! What people have: files that are nearly right, tables, labels, line ends; and what is said about what is
//! passed over.

use std::fs;

use serde_json::json;

use crate::common::{Bench, bench, with_tokenizer};

/// The notes of a command that succeeds.
fn notes(b: &Bench, arguments: &[&str]) -> Vec<String> {
    let output = b.run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stderr.lines().filter_map(|l| l.strip_prefix("note: ")).map(str::to_owned).collect()
}

fn loss(b: &Bench, model: &str, data: &str, more: &[&str]) -> f64 {
    let call = ["evaluate", "--model", model, "--data", data, "--sequence-length", "32"];
    b.json(&[&call[..], more].concat())["loss"].as_f64().unwrap()
}

#[test]
fn files_that_are_nearly_weights_are_said_to_be_there() {
    let b = bench();
    let weights = b.path("model/model.safetensors");
    let inspect = ["inspect", "model"];
    fs::write(b.path("model/adapter_config.json"), "{}").unwrap();
    b.refused(1, &["adapter_config.json", "merge_and_unload"], &inspect);
    fs::create_dir(b.path("adapter")).unwrap();
    fs::rename(b.path("model/adapter_config.json"), b.path("adapter/adapter_config.json")).unwrap();
    b.refused(1, &["adapter_config.json", "merge_and_unload"], &["inspect", "adapter"]);
    fs::rename(&weights, b.path("model/model.fp16.safetensors")).unwrap();
    b.refused(1, &["model.fp16.safetensors", "rename it"], &inspect);
    fs::rename(b.path("model/model.fp16.safetensors"), b.path("model/model-00001-of-00001.safetensors"))
        .unwrap();
    b.refused(1, &["model-00001-of-00001.safetensors", "model.safetensors.index.json"], &inspect);
    fs::rename(b.path("model/model-00001-of-00001.safetensors"), b.path("model/weights.gguf")).unwrap();
    b.refused(1, &["weights.gguf", "safetensors"], &inspect);
}

#[test]
fn line_ends_and_byte_order_marks_change_nothing() {
    let b = bench();
    let text = fs::read_to_string(b.path("text.txt")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let jsonl = |end: &str| {
        lines.iter().map(|l| format!("{{\"score\": NaN, \"text\": {}}}{end}", json!(l))).collect::<String>()
    };
    for (ending, packed, separate) in
        [("txt", text.clone(), lines.join("\n")), ("jsonl", jsonl("\n"), jsonl("\n"))]
    {
        for (documents, content) in [("packed", packed), ("separate", separate)] {
            let measure = |name: &str, bytes: String| {
                let name = format!("{name}.{ending}");
                fs::write(b.path(&name), bytes).unwrap();
                loss(&b, "model", &name, &["--documents", documents])
            };
            let right = measure("plain", content.clone());
            assert_eq!(measure("mark", format!("\u{feff}{content}")), right);
            assert_eq!(measure("crlf", content.replace('\n', "\r\n")), right);
            assert_eq!(measure("cr", content.replace('\n', "\r")), right);
        }
    }
    fs::write(b.path("wide.txt"), [0xff, 0xfe, b'a', 0]).unwrap();
    b.refused(1, &["wide.txt", "UTF-16", "iconv"], &["evaluate", "--model", "model", "--data", "wide.txt"]);
}

#[test]
fn labels_are_read_alike_from_every_table_and_what_is_passed_over_is_said() {
    let b = bench();
    let model = with_tokenizer(&b, "bert_classifier", &["good", "bad", "odd", "the", "film", "was"]);
    let rows = [
        ("the film was good", 1),
        ("the film, bad", 0),
        ("odd \"film\" was the odd film", 2),
        ("bad film", 0),
    ];
    let config = b.path(&model).join("config.json");
    let mut named: serde_json::Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    named["id2label"] = json!({ "0": "poor", "1": "fine", "2": "strange" });
    named.as_object_mut().unwrap().remove("label2id");
    fs::write(&config, named.to_string()).unwrap();
    let name = |label: i32| ["poor", "fine", "strange"][label as usize];
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let write = |file: &str, head: &str, row: &dyn Fn(&str, i32) -> String| {
        let rows: Vec<String> = rows.iter().map(|(text, label)| row(text, *label)).collect();
        fs::write(b.path(file), format!("{head}{}\n\n", rows.join("\n"))).unwrap();
    };
    write("numbers.jsonl", "", &|t, l| json!({ "text": t, "label": l }).to_string());
    write("names.jsonl", "", &|t, l| json!({ "text": t, "label": name(l) }).to_string());
    write("floats.jsonl", "", &|t, l| json!({ "text": t, "label": f64::from(l) }).to_string());
    write("table.csv", "label,text\n", &|t, l| format!("{l},{}", quoted(t)));
    write("table.tsv", "text\tlabel\n", &|t, l| format!("{t}\t{}", name(l)));
    write("tabs.csv", "text\tlabel\n", &|t, l| format!("{t}\t{l}"));
    write("bare.csv", "", &|t, l| format!("{l};{}", quoted(t)));
    let right = loss(&b, &model, "numbers.jsonl", &[]);
    for file in ["names.jsonl", "floats.jsonl", "table.csv", "table.tsv", "tabs.csv"] {
        assert_eq!(loss(&b, &model, file, &[]), right, "{file}");
    }
    let bare = ["--columns", "label,text", "--delimiter", ";"];
    assert_eq!(loss(&b, &model, "bare.csv", &bare), right);
    write("more.csv", "", &|t, l| format!("{l};{};more", quoted(t)));
    assert_eq!(loss(&b, &model, "more.csv", &bare), right);
    let said = notes(
        &b,
        &[&["evaluate", "--model", &model, "--data", "more.csv", "--sequence-length", "16"], &bare[..]]
            .concat(),
    );
    assert!(said.iter().any(|note| note.contains("4 records") && note.contains("columns names")), "{said:?}");

    let rows = "{\"text\": null, \"label\": 1}\n{\"text\": \"bad\", \"label\": -1}\n{\"text\": \"gruesome awful ugly\", \"label\": 0}\n";
    fs::write(b.path("holes.jsonl"), rows).unwrap();
    let said =
        notes(&b, &["evaluate", "--model", &model, "--data", "holes.jsonl", "--sequence-length", "16"]);
    for words in [["1 record", "want of a text"], ["1 example", "-1 and -100"], ["60.0 %", "[UNK]"]] {
        assert!(
            said.iter().any(|note| words.iter().all(|w| note.contains(w))),
            "{words:?} is not in {said:?}"
        );
    }
    let refused = |content: &str, ending: &str, more: &[&str], words: &[&str]| {
        let file = format!("bad.{ending}");
        fs::write(b.path(&file), content).unwrap();
        let call = ["evaluate", "--model", &model, "--data", &file, "--sequence-length", "16"];
        b.refused(if more.is_empty() { 1 } else { 2 }, words, &[&call[..], more].concat());
    };
    refused("{\"text\": \"bad\", \"label\": -1}\n", "jsonl", &[], &["-1 or -100"]);
    refused("{\"text\": \"bad\", \"label\": 0.5}\n", "jsonl", &[], &["line 1", "0.5", "0 to 2"]);
    refused("{\"text\": \"bad\", \"label\": \"awful\"}\n", "jsonl", &[], &["awful", "poor"]);
    refused("text,label\nbad\n", "csv", &[], &["line 2", "1 columns", "2"]);
    refused("bad,0\n", "csv", &[], &["name all columns", "bad, 0"]);
    refused("bad,0\n", "csv", &["--columns", "text,text"], &["text", "twice"]);
    fs::write(b.path("tabs.csv"), "a, b\t0\n").unwrap();
    let tabs = ["evaluate", "--model", &model, "--data", "tabs.csv", "--columns", "text,label,id"];
    b.refused(1, &["line 1", "delimiter tab"], &tabs);
    refused("{}", "jsonl", &["--delimiter", ","], &["delimiter", ".tsv and .csv"]);
    named["label2id"] = json!({ "0": 2, "1": 1, "2": 0 });
    fs::write(&config, named.to_string()).unwrap();
    refused("text,label\nbad,0\n", "csv", &[], &["class 2", "class 0"]);
    refused("{\"text\": \"bad\", \"label\": 0}\n", "jsonl", &[], &["class 2", "class 0"]);
    refused("{\"text\": \"bad\", \"label\": \"7\"}\n", "jsonl", &[], &["7", "0 to 2"]);
}

#[test]
fn scores_of_weights_need_no_data() {
    let b = bench();
    let call = |score: &'static str| ["score", "--model", "model", "--score", score];
    assert_eq!(b.json(&call("magnitude"))["data_hash"], json!(null));
    b.refused(2, &["--data", "magnitude"], &call("fisher"));
    b.refused(2, &["--data"], &["score", "--model", "model", "--all"]);
    b.refused(2, &["--data"], &["evaluate", "--model", "model"]);
}

#[test]
fn generation_stops_at_every_end_token() {
    let b = bench();
    let call = ["generate", "--model", "model", "--prompt", "Once there was a", "--max-new-tokens", "12"];
    let tokens = |b: &Bench| b.json(&call)["tokens"].as_array().unwrap().clone();
    let all = tokens(&b);
    assert_eq!(all.len(), 12);
    let first = |wanted: &serde_json::Value| all.iter().position(|t| t == wanted).unwrap() + 1;
    fs::write(
        b.path("model/generation_config.json"),
        json!({ "eos_token_id": [all[7]], "do_sample": true }).to_string(),
    )
    .unwrap();
    assert_eq!(tokens(&b).len(), first(&all[7]));
    let said = notes(&b, &call);
    assert!(said.iter().any(|note| note.contains("do_sample")), "{said:?}");
    let config = b.path("model/config.json");
    let mut edited: serde_json::Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    edited["eos_token_id"] = json!([2, all[4]]);
    fs::write(&config, edited.to_string()).unwrap();
    assert_eq!(tokens(&b).len(), first(&all[4]).min(first(&all[7])));
}

#[test]
fn a_run_says_what_was_passed_over_and_keeps_it_on_record() {
    let b = bench();
    let config = b.path("model/config.json");
    let mut edited: serde_json::Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    edited["attention_multiplier"] = json!(0.1);
    fs::write(&config, edited.to_string()).unwrap();
    let call = [
        "optimize",
        "--model",
        "model",
        "--data",
        "text.txt",
        "--sequence-length",
        "64",
        "--num-cycles",
        "1",
    ];
    let said = notes(&b, &[&call[..], &["--max-steps-per-cycle", "0", "--out", "run"]].concat());
    assert!(said.iter().any(|note| note.contains("attention_multiplier")), "{said:?}");
    for file in ["run.toml", "events.jsonl"] {
        assert!(
            fs::read_to_string(b.path("run").join(file)).unwrap().contains("attention_multiplier"),
            "{file}"
        );
    }
}

#[test]
fn the_family_option_contradicts_nothing() {
    let b = bench();
    let config = b.path("model/config.json");
    let edit = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut edited: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
        change(&mut edited);
        fs::write(&config, edited.to_string()).unwrap();
    };
    b.refused(1, &["model_type", "llama", "family gpt2"], &["inspect", "model", "--family", "gpt2"]);
    edit(&|c| c["architectures"] = json!(["OurOwnForCausalLM"]));
    b.refused(1, &["OurOwnForCausalLM", "family llama"], &["inspect", "model"]);
    assert_eq!(b.json(&["inspect", "model", "--family", "llama"])["objective"], "causal-lm");
    edit(&|c| {
        c.as_object_mut().unwrap().remove("model_type");
        c.as_object_mut().unwrap().remove("architectures");
    });
    b.refused(1, &["tensors", "family bert"], &["inspect", "model", "--family", "bert"]);
}
