//! Reading what users have: shards, names with and without prefix, tokenizers of three kinds, data cut into
//! parts.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use upgrayedd::data::{DataOptions, Dataset, Documents, Pass, ReadOptions};
use upgrayedd::export::{HF, export, own_dtypes, with_own_config, write_weights};
use upgrayedd::files::safetensors_file;
use upgrayedd::files::{DType, TensorFile};
use upgrayedd::load::LoadOptions;
use upgrayedd::model::Model;
use upgrayedd::nn::ops::IGNORE;
use upgrayedd::nn::{Device, Tensor};
use upgrayedd::units::{LayerSite, Selection};
use upgrayedd::weights::{Kind, Part};
use upgrayedd::{Error, Tokenizer, builtin, surgery};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn load(dir: &Path) -> Model {
    Model::load(dir, &LoadOptions::default()).unwrap()
}

fn tensors(path: &Path) -> Vec<(String, Tensor, DType)> {
    let file = TensorFile::open(path).unwrap();
    let mut names = file.names();
    names.sort();
    names.into_iter().map(|n| (n.clone(), file.read(&n).unwrap(), file.dtype(&n).unwrap())).collect()
}

fn weights_of(name: &str) -> PathBuf {
    golden(name).join("model.safetensors")
}

fn assert_same(a: &Model, b: &Model) {
    for id in a.params().ids() {
        assert!(a.params().get(id) == b.params().get(id), "{}", a.params().name(id));
    }
}

#[test]
fn shards_and_missing_prefixes_give_the_same_model() {
    for name in ["llama_mha", "gpt2", "bert_mlm", "modernbert_mlm", "roberta_mlm", "distilbert_mlm_pruned"] {
        let dir = tempfile::tempdir().unwrap();
        let prefix = load(&golden(name)).family().base_prefix;
        fs::copy(golden(name).join("config.json"), dir.path().join("config.json")).unwrap();
        let mut map = serde_json::Map::new();
        for (i, (name, tensor, dtype)) in tensors(&weights_of(name)).into_iter().enumerate() {
            let short = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
            let shard = format!("part-{}.safetensors", i % 3);
            map.insert(short.clone(), shard.into());
            let path = dir.path().join(format!("{i}.safetensors"));
            safetensors_file::write(&path, vec![(short, tensor, dtype)], Default::default()).unwrap();
        }
        // One file a tensor first, then joined into three shards.
        for shard in 0..3 {
            let parts = (0..map.len())
                .filter(|i| i % 3 == shard)
                .flat_map(|i| tensors(&dir.path().join(format!("{i}.safetensors"))));
            let path = dir.path().join(format!("part-{shard}.safetensors"));
            safetensors_file::write(&path, parts.collect(), Default::default()).unwrap();
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert_same(&load(dir.path()), &load(&golden(name)));
        fs::remove_file(dir.path().join("part-1.safetensors")).unwrap();
        let error = Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
        assert!(
            matches!(&error, Error::File { path, .. } if path.ends_with("part-1.safetensors")),
            "{error:?}"
        );
    }
}

#[test]
fn unknown_config_keys_and_companions_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    fs::create_dir(&source).unwrap();
    fs::copy(golden("llama_gqa").join("model.safetensors"), source.join("model.safetensors")).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(golden("llama_gqa").join("config.json")).unwrap()).unwrap();
    config["my_own_key"] = serde_json::json!({ "a": [1, 2.5] });
    fs::write(source.join("config.json"), config.to_string()).unwrap();
    fs::write(source.join("generation_config.json"), "{\"temperature\": 0.7}").unwrap();
    fs::write(source.join("tokenizer_config.json"), "{}").unwrap();
    let mut model = load(&source);
    surgery::remove(&mut model, None, &Selection::from([(LayerSite::heads(0), vec![1])]), 1, None).unwrap();
    export(&model, &HF, Some(DType::F32), &out).unwrap();
    let written: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(written["my_own_key"], config["my_own_key"]);
    assert_eq!(
        written["upgrayedd"]["units"]["heads"]["model.layers.0.self_attn"],
        serde_json::json!([0, 2, 3, 4, 5])
    );
    for name in ["generation_config.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), fs::read(source.join(name)).unwrap());
    }
}

#[test]
fn heads_pruned_by_transformers_4_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = load(&golden("gpt2"));
    surgery::remove(&mut model, None, &Selection::from([(LayerSite::heads(1), vec![0, 3])]), 1, None)
        .unwrap();
    let out = dir.path().join("out");
    export(&model, &HF, Some(DType::F32), &out).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("upgrayedd");
    config["pruned_heads"] = serde_json::json!({ "1": [0, 3] });
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let again = load(&out);
    assert_eq!(again.units(), model.units());
    assert_same(&again, &model);
}

#[test]
fn tokenizers_without_tokenizer_json() {
    let dir = tempfile::tempdir().unwrap();
    // Byte-level BPE: "Ġ" is a leading space.
    let vocab = serde_json::json!({ "h": 0, "e": 1, "l": 2, "o": 3, "Ġ": 4, "he": 5, "ll": 6, "hell": 7, "hello": 8, "Ġhello": 9, "<|endoftext|>": 10 });
    fs::write(dir.path().join("vocab.json"), vocab.to_string()).unwrap();
    fs::write(dir.path().join("merges.txt"), "#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ hello\n").unwrap();
    let bpe = Tokenizer::load(dir.path(), &serde_json::Value::Null).unwrap();
    assert_eq!(bpe.encode("hello hello").unwrap(), [8, 9]);
    assert_eq!(bpe.decode(&[8, 9]).unwrap(), "hello hello");
    assert_eq!((bpe.eos(), bpe.prefix().len()), (Some(10), 0));
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("vocab.txt"),
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##believ\n##able\ntruth\n",
    )
    .unwrap();
    let bert = Tokenizer::load(dir.path(), &serde_json::Value::Null).unwrap();
    assert_eq!(bert.encode("Unbelievable truth").unwrap(), [5, 6, 7, 8]);
    assert_eq!(
        (bert.prefix(), bert.suffix(), bert.mask(), bert.pad()),
        (&[2][..], &[3][..], Some(4), Some(0))
    );
    let nowhere = dir.path().join("nowhere");
    let error = Tokenizer::load(&nowhere, &serde_json::Value::Null).unwrap_err();
    assert!(matches!(&error, Error::File { path, .. } if *path == nowhere), "{error:?}");
}

fn stories(count: u64, options: &DataOptions) -> Dataset {
    Dataset::from_documents(
        builtin::stories(3, count),
        &builtin::model().unwrap(),
        &builtin::tokenizer().unwrap(),
        options,
    )
    .unwrap()
}

#[test]
fn parts_of_the_data_never_overlap() {
    let options = DataOptions { sequence_length: 64, ..DataOptions::default() };
    for count in [4, 10, 40, 300] {
        let data = stories(count, &options);
        let split = data.split(128, None).unwrap();
        assert_eq!(split.train.start, 0);
        assert_eq!(split.train.end, split.calibration.start);
        assert_eq!(split.calibration.end, split.held_out.start);
        assert_eq!(split.held_out.end, data.len());
        assert!(!split.train.is_empty() && !split.calibration.is_empty() && !split.held_out.is_empty());
        let other = stories(2, &options);
        let split = data.split(128, Some(&other)).unwrap();
        assert_eq!((split.held_out.clone(), split.calibration.end), (0..other.len(), data.len()));
    }
}

#[test]
fn windows_tile_the_text_and_documents_stay_apart() {
    let options = DataOptions { sequence_length: 32, ..DataOptions::default() };
    let tokenizer = builtin::tokenizer().unwrap();
    let packed = stories(5, &options);
    let stream: Vec<u32> = builtin::stories(3, 5)
        .flat_map(|s| [tokenizer.prefix(), &tokenizer.encode(&s).unwrap()].concat())
        .collect();
    let windows: Vec<u32> = (0..packed.len()).flat_map(|i| packed.tokens(i)).collect();
    assert_eq!(windows, stream[..windows.len()]);
    assert!(stream.len() - windows.len() < 32);
    let separate = stories(
        5,
        &DataOptions {
            read: ReadOptions { documents: Documents::Separate, ..options.read },
            sequence_length: 200,
            ..options
        },
    );
    assert_eq!(separate.len(), 5);
    let batch = separate.batch(&[0, 1, 2], Pass::Fixed);
    let mask = batch.mask.unwrap();
    for (row, index) in [0, 1, 2].into_iter().enumerate() {
        let length = separate.tokens(index).len();
        let row = row * batch.len..(row + 1) * batch.len;
        assert_eq!(mask[row.clone()].iter().map(|m| *m as usize).sum::<usize>(), length);
        let targets = &batch.targets[row];
        assert!(
            targets[length - 1..].iter().all(|t| *t == IGNORE)
                && targets[..length - 1].iter().all(|t| *t != IGNORE)
        );
    }
}

#[test]
fn masking_is_seeded_and_differs_between_epochs() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("bert_mlm").join("config.json"), dir.path().join("config.json")).unwrap();
    fs::copy(golden("bert_mlm").join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let words: Vec<String> = (0..30).map(|i| format!("w{i}")).collect();
    fs::write(
        dir.path().join("vocab.txt"),
        format!("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{}\n", words.join("\n")),
    )
    .unwrap();
    let model = load(dir.path());
    let tokenizer = Tokenizer::load(dir.path(), &model.config).unwrap();
    let open = |seed| {
        let options = DataOptions { sequence_length: 32, seed, ..DataOptions::default() };
        let text = (0..600).map(|i| words[i * i % 30].clone()).collect::<Vec<_>>().join(" ");
        Dataset::from_documents([text].into_iter(), &model, &tokenizer, &options).unwrap()
    };
    let (data, same, other) = (open(1), open(1), open(2));
    let all: Vec<usize> = (0..data.len()).collect();
    let tokens = |d: &Dataset, pass| d.batch(&all, pass).tokens.to_vec();
    assert_eq!(tokens(&data, Pass::Fixed), tokens(&same, Pass::Fixed));
    assert_ne!(tokens(&data, Pass::Fixed), tokens(&other, Pass::Fixed));
    assert_ne!(tokens(&data, Pass::Train(0)), tokens(&data, Pass::Train(1)));
    let batch = data.batch(&all, Pass::Fixed);
    let share = batch.counted() as f64 / (all.len() * 30) as f64;
    assert!((0.1..0.2).contains(&share), "{share}");
    for (row, sequence) in batch.tokens.chunks(32).enumerate() {
        assert_eq!((sequence[0], sequence[31]), (2, 3), "special tokens are never masked");
        let original = data.tokens(row);
        for (i, target) in batch.targets[row * 32..(row + 1) * 32].iter().enumerate() {
            assert!(if *target == IGNORE {
                sequence[i] == original[i]
            } else {
                i64::from(original[i]) == *target
            });
        }
    }
}

/// Norms and biases in f32, feed-forward in f16, all else in bf16: what trainers write who want norms exact.
fn mixed(name: &str, dir: &Path) {
    let dtype = |name: &str, tensor: &Tensor| match tensor.shape().len() {
        1 => DType::F32,
        _ if name.contains("mlp") || name.contains("intermediate") => DType::F16,
        _ => DType::BF16,
    };
    let typed = tensors(&weights_of(name)).into_iter().map(|(name, tensor, _)| {
        let dtype = dtype(&name, &tensor);
        (name, tensor, dtype)
    });
    fs::create_dir(dir).unwrap();
    fs::copy(golden(name).join("config.json"), dir.join("config.json")).unwrap();
    safetensors_file::write(&dir.join("model.safetensors"), typed.collect(), Default::default()).unwrap();
}

fn types(path: &Path) -> Vec<(String, DType)> {
    tensors(path).into_iter().map(|(name, _, dtype)| (name, dtype)).collect()
}

#[test]
fn each_weight_is_written_in_the_type_it_came_in() {
    for name in ["llama_gqa", "gpt2", "bert_mlm", "modernbert_mlm"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |part: &str| dir.path().join(part);
        mixed(name, &at("mixed"));
        let mut model = load(&at("mixed"));
        let said = "stored as float32 and float16 and bfloat16: each is written as it was";
        assert!(model.notices.iter().any(|n| n.contains(said)), "{:?}", model.notices);
        export(&model, &HF, None, &at("same")).unwrap();
        let file = |part: &str| at(part).join("model.safetensors");
        assert!(tensors(&file("same")) == tensors(&file("mixed")), "{name}");

        // Head by head, and with values that the types do not have, which a run's base must keep all the
        // same.
        surgery::remove(&mut model, None, &Selection::from([(LayerSite::heads(0), vec![1])]), 1, None)
            .unwrap();
        let id = model.find(Some(0), Part::O, Kind::Weight).unwrap();
        model.params_mut().edit(Device::cpu(), id, |t| t.data_mut()[0] += 1e-7);
        export(&model, &HF, None, &at("less")).unwrap();
        assert_eq!(types(&file("less")), types(&file("mixed")), "{name}");
        let bytes: usize = tensors(&file("less")).iter().map(|(_, t, dtype)| t.len() * dtype.size()).sum();
        assert_eq!(model.cost(8).bytes, bytes, "{name}");
        export(&model, &HF, Some(DType::F32), &at("wide")).unwrap();
        assert!(types(&file("wide")).iter().all(|(_, dtype)| *dtype == DType::F32), "{name}");

        // As the base of a run: to the bit, in wider types where it must be, which are known again.
        fs::create_dir(at("base")).unwrap();
        write_weights(&model, &at("base")).unwrap();
        fs::write(at("base").join("config.json"), with_own_config(model.clone()).config.to_string()).unwrap();
        let mut again = load(&at("base"));
        assert_same(&again, &model);
        let own = |model: &Model| model.params().ids().map(|id| model.dtype_of(id)).collect::<Vec<_>>();
        assert_ne!(own(&again), own(&model), "{name}: the changed weight is wider");
        again.set_dtypes(&own_dtypes(&at("base")).unwrap());
        assert_eq!(own(&again), own(&model), "{name}");
    }
}

#[test]
fn layer_norms_under_their_old_names_are_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("bert_mlm").join("config.json"), dir.path().join("config.json")).unwrap();
    let old = |name: String| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    };
    let renamed = tensors(&weights_of("bert_mlm"))
        .into_iter()
        .map(|(name, tensor, dtype)| (old(name), tensor, dtype))
        .collect();
    safetensors_file::write(&dir.path().join("model.safetensors"), renamed, Default::default()).unwrap();
    assert_same(&load(dir.path()), &load(&golden("bert_mlm")));
}

#[test]
fn a_weight_that_would_be_ignored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("llama_mha").join("config.json"), dir.path().join("config.json")).unwrap();
    let mut all = tensors(&weights_of("llama_mha"));
    // A buffer of old checkpoints is harmless.
    all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Tensor::zeros(&[3]), DType::F32));
    let write = |all: &[(String, Tensor, DType)]| {
        safetensors_file::write(&dir.path().join("model.safetensors"), all.to_vec(), Default::default())
            .unwrap();
    };
    write(&all);
    assert_same(&load(dir.path()), &load(&golden("llama_mha")));
    // A bias that config.json does not announce is not.
    all.push(("model.layers.1.self_attn.q_proj.bias".into(), Tensor::zeros(&[24]), DType::F32));
    write(&all);
    let error = Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::File { path, .. } if path.starts_with(dir.path())), "{error:?}");
    assert!(error.to_string().contains("model.layers.1.self_attn.q_proj.bias"), "names the tensor: {error}");
}

#[test]
fn a_head_that_is_named_and_not_there_makes_a_plain_encoder() {
    for (name, class) in [("mpnet_encoder", "MPNetForMaskedLM"), ("roberta_encoder", "RobertaForMaskedLM")] {
        let dir = tempfile::tempdir().unwrap();
        let mut config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(golden(name).join("config.json")).unwrap()).unwrap();
        config["architectures"] = serde_json::json!([class]);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        fs::copy(golden(name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let model = load(dir.path());
        assert_same(&model, &load(&golden(name)));
        assert!(model.notices.iter().any(|notice| notice.contains("plain encoder")), "{:?}", model.notices);
    }
}

#[test]
fn what_version_1_wrote_is_refused_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(&golden("llama_gqa"));
    let out = dir.path().join("model");
    export(&model, &HF, Some(DType::F32), &out).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    config["upgrayedd"] = serde_json::json!({ "format_version": 1, "heads": [[0, 1], [0]] });
    fs::write(out.join("config.json"), config.to_string()).unwrap();
    let other_version = |error: Error, file: &str| match error {
        Error::File { path, problem } => {
            assert!(path.ends_with(file), "{path:?}");
            assert!(matches!(*problem, Error::Unsupported(_)), "{problem:?}");
        }
        other => panic!("{other:?}"),
    };
    other_version(Model::load(&out, &LoadOptions::default()).unwrap_err(), "model");

    let archive = dir.path().join("archive.safetensors");
    let old = [("departures".to_owned(), "[]".to_owned())].into();
    safetensors_file::write(&archive, Vec::new(), old).unwrap();
    other_version(upgrayedd::surgery::load_archive(&archive, &model).unwrap_err(), "archive.safetensors");

    fs::write(dir.path().join("run.toml"), "format_version = 1\n[config]\nunit = \"head\"\n").unwrap();
    other_version(upgrayedd::pipeline::read_run(dir.path()).unwrap_err(), "run.toml");
}
