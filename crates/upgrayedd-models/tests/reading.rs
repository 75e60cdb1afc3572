//! Variants of what people have, read as transformers reads them, or refused. The right values are in
//! `tests/golden/reading`, with the script that makes them beside it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use upgrayedd_models::data::{ChatLoss, DataOptions, Dataset, Pass, ReadOptions};
use upgrayedd_models::export::{HF, export};
use upgrayedd_models::family;
use upgrayedd_models::files::safetensors_file;
use upgrayedd_models::files::{DType, TensorFile};
use upgrayedd_models::load::LoadOptions;
use upgrayedd_models::model::{Batch, Companions, Hooks};
use upgrayedd_models::spec::Objective;
use upgrayedd_models::{Error, Model, Tokenizer};
use upgrayedd_nn::ops::IGNORE;
use upgrayedd_nn::{Tape, Tensor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(golden("reading").join(name)).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Tensors with their names, in the order of the file.
type Tensors = Vec<(String, Tensor, DType)>;

fn take<'t>(tensors: &'t Tensors, name: &str) -> &'t Tensor {
    &tensors.iter().find(|(n, ..)| n == name).unwrap().1
}

/// The first row goes to the second place, and so on; of a vector each element.
fn rolled(tensor: &Tensor) -> Tensor {
    let width = if tensor.shape().len() == 1 { 1 } else { tensor.cols() };
    let mut data = tensor.data().to_vec();
    data.rotate_right(width);
    Tensor::from_vec(tensor.shape(), data)
}

fn step(tensors: &mut Tensors, step: &Value) {
    let word = |i: usize| text(&step[i]).to_owned();
    match text(&step[0]) {
        "copy" => tensors.push((word(2), take(tensors, &word(1)).clone(), DType::F32)),
        "roll" => tensors.push((word(2), rolled(take(tensors, &word(1))), DType::F32)),
        "drop" => tensors.retain(|(name, ..)| *name != word(1)),
        "add" => {
            let shape: Vec<usize> =
                step.as_array().unwrap()[2..].iter().map(|n| n.as_u64().unwrap() as usize).collect();
            tensors.push((word(1), Tensor::from_vec(&shape, vec![1.0; shape.iter().product()]), DType::F32));
        }
        "rename" => tensors.iter_mut().for_each(|(name, ..)| *name = name.replacen(&word(1), &word(2), 1)),
        other => panic!("unknown step {other}"),
    }
}

/// Writes a case's folder.
fn write(case: &Value, dir: &Path) {
    let base = golden(text(&case["base"]));
    let mut config: Map<String, Value> =
        serde_json::from_str(&fs::read_to_string(base.join("config.json")).unwrap()).unwrap();
    for key in case["drop"].as_array().into_iter().flatten() {
        config.shift_remove(text(key));
    }
    config.extend(case["config"].as_object().cloned().unwrap_or_default());
    fs::write(dir.join("config.json"), Value::Object(config).to_string()).unwrap();
    let file = TensorFile::open(&base.join("model.safetensors")).unwrap();
    let mut tensors: Tensors = file
        .names()
        .into_iter()
        .map(|name| (name.clone(), file.read(&name).unwrap(), file.dtype(&name).unwrap()))
        .collect();
    case["steps"].as_array().into_iter().flatten().for_each(|s| step(&mut tensors, s));
    safetensors_file::write(&dir.join("model.safetensors"), tensors, Default::default()).unwrap();
}

/// The mean loss on the tokens, or of a plain encoder the mean square of its hidden states.
fn loss(model: &Model, ids: &[u32]) -> f64 {
    let tokens = ids.to_vec();
    let targets = match model.spec().objective {
        Objective::CausalLm => ids[1..].iter().map(|t| i64::from(*t)).chain([IGNORE]).collect(),
        Objective::Classifier { .. } => vec![1],
        _ => ids.iter().map(|t| i64::from(*t)).collect(),
    };
    let batch = Batch { tokens: Arc::new(tokens), batch: 1, len: ids.len(), targets, ..Batch::default() };
    let mut tape = Tape::inference(model.device(), model.params());
    if model.spec().objective == Objective::Encoder {
        let states = model.hidden(&mut tape, &batch, &mut Hooks::default()).unwrap().tensor().clone();
        return states.data().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / states.len() as f64;
    }
    let loss = model.loss(&mut tape, &batch, 1.0, &mut Hooks::default()).unwrap();
    loss.sum.read() / loss.count as f64
}

#[test]
fn models_are_read_as_transformers_reads_them_or_refused() {
    let all = read("models.json");
    let ids: Vec<u32> = serde_json::from_value(all["ids"].clone()).unwrap();
    for case in all["cases"].as_array().unwrap() {
        let (name, dir) = (text(&case["name"]), tempfile::tempdir().unwrap());
        write(case, dir.path());
        let model = Model::load(dir.path(), &LoadOptions::default());
        let Some(right) = case["loss"].as_f64() else {
            let error = model.err().unwrap_or_else(|| panic!("{name}: not refused")).to_string();
            for word in case["says"].as_array().unwrap() {
                assert!(error.contains(text(word)), "{name}: {word} is not in: {error}");
            }
            continue;
        };
        let model = model.unwrap_or_else(|e| panic!("{name}: {e}"));
        let got = loss(&model, &ids);
        assert!((got - right).abs() < 1e-5 * right, "{name}: {got}, but transformers has {right}");
        for word in case["notes"].as_array().into_iter().flatten() {
            assert!(
                model.notices.iter().any(|n| n.contains(text(word))),
                "{name}: {word} is not in {:?}",
                model.notices
            );
        }
        // What is written is what was read.
        let out = dir.path().join("out");
        export(&model, &HF, None, &out).unwrap();
        let again = Model::load(&out, &LoadOptions::default()).unwrap();
        assert_eq!(loss(&again, &ids), got, "{name}: written and read again");
        for id in model.params().ids() {
            let name = model.params().name(id);
            let same = again.params().get(again.params().find(name).unwrap());
            assert!(same == model.params().get(id), "{name}");
        }
    }
}

#[test]
fn an_ordinary_model_gives_no_notice() {
    for base in
        ["llama_mha", "llama_gqa", "gpt2", "bert_mlm", "bert_classifier", "bert_regression", "bert_encoder"]
    {
        let model = Model::load(&golden(base), &LoadOptions::default()).unwrap();
        assert!(model.notices.is_empty(), "{base}: {:?}", model.notices);
    }
}

/// Vocabulary files of a base's tokenizer.json.
fn write_apart(tokenizer: &Value, dir: &Path) {
    let model = &tokenizer["model"];
    let vocab = model["vocab"].as_object().unwrap();
    match model["merges"].as_array() {
        Some(merges) => {
            fs::write(dir.join("vocab.json"), model["vocab"].to_string()).unwrap();
            let line = |m: &Value| format!("{} {}\n", text(&m[0]), text(&m[1]));
            fs::write(
                dir.join("merges.txt"),
                format!("#version: 0.2\n{}", merges.iter().map(line).collect::<String>()),
            )
            .unwrap();
        }
        None => {
            let mut tokens: Vec<(&String, u64)> =
                vocab.iter().map(|(token, id)| (token, id.as_u64().unwrap())).collect();
            tokens.sort_by_key(|(_, id)| *id);
            fs::write(
                dir.join("vocab.txt"),
                tokens.iter().map(|(token, _)| format!("{token}\n")).collect::<String>(),
            )
            .unwrap();
        }
    }
}

#[test]
fn tokenizers_make_the_ids_of_transformers() {
    let all = read("tokenizers.json");
    for case in all["cases"].as_array().unwrap() {
        let (name, dir) = (text(&case["name"]), tempfile::tempdir().unwrap());
        for (file, content) in case["files"].as_object().unwrap() {
            fs::write(dir.path().join(file), content.to_string()).unwrap();
        }
        let base = &all["bases"][text(&case["base"])];
        if case["apart"] == true {
            write_apart(base, dir.path());
        } else {
            fs::write(dir.path().join("tokenizer.json"), base.to_string()).unwrap();
        }
        let config = serde_json::json!({ "model_type": case["model_type"] });
        let tokenizer = Tokenizer::load(dir.path(), &config);
        if !case["refused"].is_null() {
            assert!(tokenizer.is_err(), "{name}: not refused");
            continue;
        }
        let tokenizer = tokenizer.unwrap_or_else(|e| panic!("{name}: {e}"));
        for (t, ids) in all["texts"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap()) {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            let got = [tokenizer.prefix(), &tokenizer.encode(text(t)).unwrap(), tokenizer.suffix()].concat();
            assert_eq!(got, ids, "{name}: {t}");
        }
        for (pair, right) in all["pairs"].as_array().unwrap().iter().zip(case["pairs"].as_array().unwrap()) {
            // An example without text is refused where it is read.
            if tokenizer.encode(text(&pair[0])).unwrap().is_empty() {
                continue;
            }
            let (ids, types) = tokenizer.sequence(text(&pair[0]), Some(text(&pair[1])), 512).unwrap();
            let right: (Vec<u32>, Vec<u32>) = serde_json::from_value(right.clone()).unwrap();
            assert_eq!((&ids, types.unwrap_or(vec![0; ids.len()])), (&right.0, right.1), "{name}: {pair}");
        }
    }
}

#[test]
fn the_document_of_keys_is_what_the_tables_say() {
    let written = fs::read_to_string(golden("../../docs/config-keys.md")).unwrap();
    assert!(
        written == family::keys_document(),
        "is old: cargo run -p upgrayedd --example config_keys > docs/config-keys.md"
    );
}

/// A random Llama with enough tokens whose tokenizer and chat template are in `dir`.
fn talker(dir: &Path) -> Model {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 400, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    });
    let (family, spec, _) = family::recognise(&config, &[], None).unwrap();
    let mut model = Model::initialised(family, spec, config, 1).unwrap();
    model.companions = Companions::Folder(dir.to_owned());
    model
}

#[test]
fn conversations_are_written_and_learned_as_in_transformers() {
    let all = read("chats.json");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), all["tokenizer"].to_string()).unwrap();
    for case in all["cases"].as_array().unwrap() {
        let template = text(&case["template"]);
        let config = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "chat_template": [{ "name": "default", "template": all["templates"][template] }],
        });
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let model = talker(dir.path());
        let path = dir.path().join("chat.jsonl");
        fs::write(&path, serde_json::json!({ "messages": case["messages"] }).to_string()).unwrap();
        let chat_loss = if template == "as json" { ChatLoss::All } else { ChatLoss::Assistant };
        let options = DataOptions {
            read: ReadOptions { chat_loss, ..ReadOptions::default() },
            ..DataOptions::default()
        };
        let data = Dataset::open(&[path], &model, &model.tokenizer().unwrap(), &options);
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let learned: Vec<u8> = serde_json::from_value(case["learned"].clone()).unwrap();
        let name = format!("{template}: {}", case["messages"]);
        if !learned.contains(&1) {
            assert!(matches!(data, Err(Error::Data(_))), "{name}: nothing is learned");
            continue;
        }
        let data = data.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(data.tokens(0), ids, "{name}");
        let batch = data.batch(&[0], Pass::Fixed);
        // The target of a position is the token after it.
        let targets: Vec<u8> = batch.targets.iter().map(|t| u8::from(*t != IGNORE)).collect();
        assert_eq!(targets[..ids.len() - 1], learned[1..], "{name}");
    }
}

#[test]
fn conversations_that_cannot_be_learned_from_are_refused() {
    let all = read("chats.json");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), all["tokenizer"].to_string()).unwrap();
    let path = dir.path().join("chat.jsonl");
    let open = |template: &str, line: &str| {
        if !template.is_empty() {
            fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        }
        fs::write(&path, line).unwrap();
        let model = talker(dir.path());
        Dataset::open(
            std::slice::from_ref(&path),
            &model,
            &model.tokenizer().unwrap(),
            &DataOptions::default(),
        )
        .map(|_| ())
    };
    let said = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    assert!(matches!(open("", said), Err(Error::DoesNotFit(_))), "no template");
    assert!(matches!(open("{% if %}", said), Err(Error::Unsupported(_))));
    assert!(matches!(open("{{ raise_exception('no') }}", said), Err(Error::File { .. })));
    assert!(matches!(
        open("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", said),
        Err(Error::File { .. })
    ));
    // What the assistant says stands nowhere.
    assert!(matches!(open("{{ messages[0].content }}{{ messages|length }}", said), Err(Error::File { .. })));
    let mixed = format!("{said}\n{}", r#"{"text": "a story"}"#);
    let good = text(&all["templates"]["chatml"]);
    assert!(matches!(open(good, &mixed), Err(Error::File { .. })));
    assert!(open(good, said).is_ok());
}
