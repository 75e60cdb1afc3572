//! What reads files that may come from anyone, as functions of bytes. An error is fine; a panic, a hang or a
//! flood of memory is not. The targets of `cargo fuzz` and the bounded test in
//! `crates/upgrayedd/tests/hostile.rs` share them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use upgrayedd::data::{DataOptions, Dataset, Documents, ReadOptions};
use upgrayedd::files::TensorFile;
use upgrayedd::load::LoadOptions;
use upgrayedd::pipeline::RUN_FORMAT;
use upgrayedd::{Model, Pipeline, Tokenizer, builtin};

/// A reader and where its first inputs come from.
pub struct Reader {
    pub name: &'static str,
    pub read: fn(&[u8]),
    /// Inputs that are right, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub static ALL: [Reader; 9] = [
    Reader { name: "config", read: config, seeds: || golden_files("config.json") },
    Reader { name: "safetensors", read: safetensors, seeds: || golden_files("model.safetensors") },
    Reader { name: "index", read: index, seeds: index_seeds },
    Reader {
        name: "tokenizer",
        read: tokenizer,
        seeds: || vec![builtin::tokenizer().unwrap().to_json().unwrap().into()],
    },
    Reader { name: "tokenizer_files", read: tokenizer_files, seeds: tokenizer_files_seeds },
    Reader { name: "data", read: data, seeds: data_seeds },
    Reader { name: "labelled", read: labelled, seeds: labelled_seeds },
    Reader { name: "archive", read: archive, seeds: archive_seeds },
    Reader { name: "run", read: run, seeds: run_seeds },
];

/// Puts the first inputs of a target where the fuzzer begins.
#[allow(dead_code, reason = "the bounded test has its inputs at hand")]
pub fn plant(name: &str) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    fs::create_dir_all(&corpus).unwrap();
    for (i, seed) in (named(name).seeds)().iter().enumerate() {
        fs::write(corpus.join(format!("seed-{i}")), seed).unwrap();
    }
}

/// The reader called `name`.
#[allow(dead_code, reason = "the bounded test runs them all")]
pub fn named(name: &str) -> &'static Reader {
    ALL.iter().find(|r| r.name == name).unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|p| p.join("tests/golden"))
        .find(|p| p.is_dir())
        .unwrap()
        .join(name)
}

const MODELS: [&str; 4] = ["llama_gqa", "llama_gqa_pruned", "gpt2", "bert_mlm"];

fn golden_files(file: &str) -> Vec<Vec<u8>> {
    MODELS.iter().map(|model| fs::read(golden(model).join(file)).unwrap()).collect()
}

/// A folder of this process, in memory where there is such a place.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let base = Some(PathBuf::from("/dev/shm")).filter(|p| p.is_dir()).unwrap_or_else(std::env::temp_dir);
        let folder = base.join(format!("upgrayedd-readers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    })
}

/// A fresh folder, since a target may be run by several threads.
fn fresh() -> PathBuf {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = folder().join(number.to_string());
    fs::create_dir(&dir).unwrap();
    dir
}

fn in_folder(work: impl FnOnce(&Path)) {
    let dir = fresh();
    work(&dir);
    fs::remove_dir_all(dir).unwrap();
}

/// Some config.json beside each of the small models' weights.
fn config(bytes: &[u8]) {
    in_folder(|dir| {
        fs::write(dir.join("config.json"), bytes).unwrap();
        for model in MODELS {
            fs::copy(golden(model).join("model.safetensors"), dir.join("model.safetensors")).unwrap();
            let _ = Model::load(dir, &LoadOptions::default());
        }
    });
}

fn safetensors(bytes: &[u8]) {
    in_folder(|dir| {
        let path = dir.join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        let Ok(file) = TensorFile::open(&path) else { return };
        let _ = file.metadata();
        for name in file.names() {
            let _ = file.read(&name);
        }
    });
}

fn index(bytes: &[u8]) {
    in_folder(|dir| {
        fs::copy(golden("gpt2").join("config.json"), dir.join("config.json")).unwrap();
        fs::copy(golden("gpt2").join("model.safetensors"), dir.join("part.safetensors")).unwrap();
        fs::write(dir.join("model.safetensors.index.json"), bytes).unwrap();
        let _ = Model::load(dir, &LoadOptions::default());
    });
}

fn index_seeds() -> Vec<Vec<u8>> {
    let file = TensorFile::open(&golden("gpt2").join("model.safetensors")).unwrap();
    let map: Vec<String> = file.names().iter().map(|name| format!("{name:?}:\"part.safetensors\"")).collect();
    vec![format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", map.join(",")).into()]
}

fn tokenizer(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(tokenizer) = Tokenizer::from_json(text, &serde_json::Value::Null) else { return };
    if let Ok(tokens) = tokenizer.encode("Mia was a kind girl. \u{1F600}\n\tna\u{EF}ve \u{2581} 42") {
        let _ = tokenizer.decode(&tokens);
    }
    let _ = tokenizer.sequence("Mia was", Some("a kind girl."), 8);
    let _ = tokenizer.decode(&[0, 1, 1 << 20, u32::MAX]);
}

/// What stands beside a vocabulary; the first byte says in which file, and beside which vocabulary.
fn tokenizer_files(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    in_folder(|dir| {
        let names = [
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.txt",
            "vocab.json",
            "merges.txt",
        ];
        let name = names[usize::from(kind % 6)];
        match (kind >> 3) % 3 {
            0 => fs::write(dir.join("tokenizer.json"), builtin::tokenizer().unwrap().to_json().unwrap())
                .unwrap(),
            1 => fs::write(dir.join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b").unwrap(),
            _ => {
                fs::write(dir.join("vocab.json"), r#"{"a":0,"b":1,"ab":2}"#).unwrap();
                fs::write(dir.join("merges.txt"), "#version: 0.2\na b\n").unwrap();
            }
        }
        fs::write(dir.join(name), rest).unwrap();
        for model_type in ["llama", "gpt2", "bert"] {
            let config = serde_json::json!({ "model_type": model_type, "vocab_size": 400 });
            if let Ok(tokenizer) = Tokenizer::load(dir, &config) {
                let _ = tokenizer.sequence("ab Mia was", Some("a kind girl."), 8);
            }
        }
    });
}

fn tokenizer_files_seeds() -> Vec<Vec<u8>> {
    let config = r#"{"tokenizer_class":"BertTokenizer","do_lower_case":false,"strip_accents":null,"add_bos_token":true,"pad_token":
        {"__type":"AddedToken","content":"<pad>","special":true},"added_tokens_decoder":{"7":{"content":"x","lstrip":true}},
        "additional_special_tokens":["y"]}"#;
    let map = r#"{"bos_token":"<s>","extra_special_tokens":["z"],"image_token":{"content":"<i>","normalized":false}}"#;
    let mut seeds = Vec::new();
    for vocabulary in [0u8, 8, 16] {
        for (kind, text) in
            [(0, config), (1, map), (2, r#"{"<e>":9}"#), (3, "[UNK]\n\na"), (4, r#"{"a":0}"#), (5, "a b\n")]
        {
            seeds.push([&[vocabulary + kind], text.as_bytes()].concat());
        }
    }
    seeds
}

/// The first byte says which kind of file the rest is.
fn data(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    static MODEL: OnceLock<(Model, Tokenizer)> = OnceLock::new();
    let (model, tokenizer) = MODEL.get_or_init(|| (builtin::model().unwrap(), builtin::tokenizer().unwrap()));
    in_folder(|dir| {
        let name = ["data.txt", "data.jsonl", "data.parquet", "data.tsv", "data.csv"][usize::from(kind % 5)];
        let documents = if kind & 8 == 0 { Documents::Packed } else { Documents::Separate };
        let path = dir.join(name);
        fs::write(&path, rest).unwrap();
        let options = DataOptions {
            sequence_length: 16,
            read: ReadOptions { documents, ..ReadOptions::default() },
            ..DataOptions::default()
        };
        let _ = Dataset::open(&[path], model, tokenizer, &options);
    });
}

fn data_seeds() -> Vec<Vec<u8>> {
    let text = builtin::stories(1, 4).collect::<Vec<_>>();
    let lines: String = text.iter().map(|t| format!("{}\n", serde_json::json!({ "text": t }))).collect();
    let parquet = parquet_file(&text);
    vec![
        [&[0], text.join("\n").as_bytes()].concat(),
        [&[10], text.join("\r\n").as_bytes()].concat(),
        [&[1], lines.as_bytes()].concat(),
        [&[2], &parquet[..]].concat(),
        [&[3], format!("n\ttext\n1\t\"{}\"\n", text.join("\"\"\t\n")).as_bytes()].concat(),
        [&[4], format!("text,n\n{},1\n", text.join(",1\n")).as_bytes()].concat(),
    ]
}

/// Pairs of texts with numbers; the first byte says in which kind of file.
fn labelled(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    static MODEL: OnceLock<(Model, Tokenizer)> = OnceLock::new();
    let (model, tokenizer) = MODEL.get_or_init(|| {
        let dir = fresh();
        fs::write(dir.join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##a\n##b").unwrap();
        let tokenizer = Tokenizer::load(&dir, &serde_json::Value::Null).unwrap();
        fs::remove_dir_all(dir).unwrap();
        (Model::load(&golden("bert_regression"), &LoadOptions::default()).unwrap(), tokenizer)
    });
    in_folder(|dir| {
        let path = dir.join(
            ["data.tsv", "data.jsonl", "data.csv", "data.parquet"]
                [usize::from(kind % 2 + (kind >> 2) % 2 * 2)],
        );
        fs::write(&path, rest).unwrap();
        let text_pair_field = (kind & 2 == 0).then(|| "other".to_owned());
        let options = DataOptions {
            sequence_length: 8,
            read: ReadOptions { text_pair_field, ..ReadOptions::default() },
            ..DataOptions::default()
        };
        let _ = Dataset::open(&[path], model, tokenizer, &options);
    });
}

fn labelled_seeds() -> Vec<Vec<u8>> {
    let table = b"text\tother\tlabel\na b\tab a b a b a b\t0.5\nb\ta\t-1e3\n";
    let lines = b"{\"text\":\"a b\",\"other\":\"b\",\"label\":0.5}\n\n{\"text\":\"b\",\"other\":\"a\",\"label\":\"2\"}\n";
    vec![
        [&[0], &table[..]].concat(),
        [&[2], &table[..]].concat(),
        [&[1], &lines[..]].concat(),
        [&[4], &table[..]].concat(),
    ]
}

fn parquet_file(texts: &[String]) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let schema =
        parquet::schema::parser::parse_message_type("message m { required binary text (UTF8); }").unwrap();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema.into(), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|t| t.as_str().into()).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn archive(bytes: &[u8]) {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let model =
        MODEL.get_or_init(|| Model::load(&golden("llama_gqa_pruned"), &LoadOptions::default()).unwrap());
    in_folder(|dir| {
        let path = dir.join("archive.safetensors");
        fs::write(&path, bytes).unwrap();
        if let Ok(archive) = upgrayedd::surgery::load_archive(&path, model) {
            let _ = archive.restorable(model.units(), upgrayedd::units::Site::Head);
        }
    });
}

fn archive_seeds() -> Vec<Vec<u8>> {
    let dir = fresh();
    let path = dir.join("archive.safetensors");
    let mut model = Model::load(&golden("llama_gqa"), &LoadOptions::default()).unwrap();
    let head = model.units().layers()[0].active()[1];
    upgrayedd::surgery::remove(
        &mut model,
        None,
        &upgrayedd::units::heads_by_layer([(0, vec![head])].into()),
        1,
        None,
    )
    .unwrap();
    model.archive().save(&path, &model.paths()).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_dir_all(dir).unwrap();
    vec![bytes]
}

fn run(bytes: &[u8]) {
    in_folder(|dir| {
        fs::write(dir.join("run.toml"), bytes).unwrap();
        let _ = Pipeline::recorded_config(dir).map(|config| config.check());
    });
}

fn run_seeds() -> Vec<Vec<u8>> {
    let config = toml::to_string(&upgrayedd::OptimizeConfig::default()).unwrap();
    let split = "train = { start = 20, end = 90 }\ncalibration = { start = 0, end = 20 }\nheld_out = { start = 90, end = 100 }\nseparate_eval_data = false\n";
    let head = format!(
        "format_version = {RUN_FORMAT}\nprogram_version = \"0.2.0\"\nmodel_hash = \"0\"\ndata_hash = \"0\"\n"
    );
    let run = format!("{head}[split]\n{split}[config]\n{config}");
    // What is not read as a run shows nothing.
    upgrayedd::pipeline::parse_run("run.toml".as_ref(), &run).unwrap();
    vec![run.into()]
}
