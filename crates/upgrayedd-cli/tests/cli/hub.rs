//! Models by Hub id, against a server of our own that speaks the Hub's protocol.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::common::bench;
use crate::stops::signal;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server was asked: paths, and the token if there was one.
type Log = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Serves the files of a folder as the repository `owner/small`.
fn serve(folder: PathBuf) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Log::default();
    let seen = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (folder, seen) = (folder.clone(), Arc::clone(&seen));
            std::thread::spawn(move || answer(stream, &folder, &seen));
        }
    });
    (address, log)
}

fn entries(folder: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect()
}

fn answer(mut stream: TcpStream, folder: &std::path::Path, seen: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
    let header = |name: &str| {
        headers.iter().find_map(|h| {
            h.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
        })
    };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    seen.lock().unwrap().push((path.clone(), header("authorization")));
    let reply = |stream: &mut TcpStream, status: &str, extra: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if path.starts_with("/api/models/owner/small") {
        let mut names: Vec<PathBuf> = entries(folder);
        let within: Vec<PathBuf> = names.iter().filter(|n| n.is_dir()).flat_map(|n| entries(n)).collect();
        names.retain(|n| n.is_file());
        let name =
            |path: &PathBuf| serde_json::json!({ "rfilename": path.strip_prefix(folder).unwrap().to_str() });
        let files: Vec<_> = names.iter().chain(&within).map(name).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string();
        return reply(&mut stream, "200 OK", "Content-Type: application/json\r\n", body.as_bytes());
    }
    let file = path
        .strip_prefix("/owner/small/resolve/")
        .and_then(|rest| Some(folder.join(rest.split_once('/')?.1)));
    let Some(bytes) = file.and_then(|f| std::fs::read(f).ok()) else {
        return reply(&mut stream, "404 Not Found", "", b"");
    };
    let (start, end) = header("range")
        .and_then(|r| {
            r.strip_prefix("bytes=")?
                .split_once('-')
                .map(|(a, b)| (a.parse().unwrap_or(0), b.parse().unwrap_or(usize::MAX)))
        })
        .unwrap_or((0, usize::MAX));
    let part = &bytes[start..end.saturating_add(1).min(bytes.len())];
    let extra = format!(
        "ETag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        bytes.len(),
        start + part.len().max(1) - 1,
        bytes.len()
    );
    reply(&mut stream, "206 Partial Content", &extra, part);
}

#[test]
fn a_signal_is_heard_while_the_hub_is_silent() {
    let b = bench();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
    command.args(["inspect", "owner/small"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("HF_ENDPOINT", format!("http://{}", listener.local_addr().unwrap()));
    command.env("HF_HOME", b.path("hub")).env_remove("HF_HUB_OFFLINE");
    let mut child = command.spawn().unwrap();
    // It has asked, and nobody will ever answer.
    let asked = listener.accept().unwrap();
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(asked);
}

#[test]
fn a_hub_id_comes_from_the_network_once_and_then_from_the_cache() {
    let b = bench();
    let (address, log) = serve(b.path("model"));
    let fetch = |offline: &str, endpoint: &str| {
        b.command(env!("CARGO_BIN_EXE_upgrayedd"))
            .args(["inspect", "owner/small", "--json"])
            .env("HF_ENDPOINT", endpoint)
            .env("HF_TOKEN", "hf_secret")
            .env("HF_HUB_OFFLINE", offline)
            .output()
            .unwrap()
    };
    // Offline and not in the cache: an error that says both.
    let refused = fetch("1", &address);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("HF_HUB_OFFLINE"));
    assert!(log.lock().unwrap().is_empty());
    let first = fetch("0", &address);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(log.lock().unwrap().iter().all(|(_, token)| token.as_deref() == Some("Bearer hf_secret")));
    assert!(b.path("hf/hub/models--owner--small/snapshots").is_dir(), "HF_HOME is where the cache lies");
    // From the cache: nothing is asked, even online, and the network may be gone.
    let asked = log.lock().unwrap().len();
    let second = fetch("1", "http://127.0.0.1:9");
    let third = fetch("0", &address);
    assert!(second.status.success() && third.status.success());
    assert_eq!(log.lock().unwrap().len(), asked);
    assert_eq!(first.stdout, second.stdout);
    // The tokenizer came along.
    let text = b
        .command(env!("CARGO_BIN_EXE_upgrayedd"))
        .args(["generate", "--model", "owner/small", "--prompt", "Once there was a", "--max-new-tokens", "4"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).starts_with("Once there was a "));
}

#[test]
fn a_revision_is_read_and_its_commit_is_on_record() {
    let b = bench();
    let (address, log) = serve(b.path("model"));
    let run = |args: &[&str], endpoint: &str, offline: &str| {
        let mut command = b.command(env!("CARGO_BIN_EXE_upgrayedd"));
        command.args(args).env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", offline).output().unwrap()
    };
    let optimize = [
        "optimize",
        "--model",
        "owner/small@v1.0",
        "--data",
        "text.txt",
        "--sequence-length",
        "64",
        "--num-cycles",
        "1",
    ];
    let quick = ["--max-steps-per-cycle", "0", "--out", "run"];
    let output = run(&[&optimize[..], &quick].concat(), &address, "0");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(log.lock().unwrap().iter().any(|(path, _)| path.contains("/resolve/v1.0/")));
    let pinned = format!("owner/small@{COMMIT}");
    let record = std::fs::read_to_string(b.path("run/run.toml")).unwrap();
    assert!(record.contains(&format!("model = \"{pinned}\"")), "{record}");
    let card = std::fs::read_to_string(b.path("run/model/README.md")).unwrap();
    assert!(card.contains("base_model: owner/small\n") && card.contains(COMMIT), "{card}");
    // The record is what makes the run again, from the cache by the commit alone.
    let again = run(&["optimize", "--config", "run/run.toml", "--out", "again"], "http://127.0.0.1:9", "1");
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(
        std::fs::read(b.path("again/model/model.safetensors")).unwrap(),
        std::fs::read(b.path("run/model/model.safetensors")).unwrap()
    );
    // A run that goes on has the same card.
    let cut = ["--checkpoint-every", "1", "--max-steps-per-cycle", "2", "--max-eval-windows", "2", "--out"];
    assert!(run(&[&optimize[..], &cut, &["whole"]].concat(), &address, "1").status.success());
    let resumed = b.path("resumed");
    std::fs::create_dir(&resumed).unwrap();
    for part in ["run.toml", "events.jsonl", "base", "checkpoints"] {
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .arg(b.path("whole").join(part))
            .arg(&resumed)
            .status()
            .unwrap();
        assert!(copied.success());
    }
    let output = run(&["resume", "resumed"], &address, "1");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["model/README.md", "model/model.safetensors"] {
        assert_eq!(
            std::fs::read(b.path("whole").join(file)).unwrap(),
            std::fs::read(resumed.join(file)).unwrap(),
            "{file}"
        );
    }
    for bad in ["owner/small@", "owner/small@../x", "owner/small@a b"] {
        let refused = run(&["inspect", bad], &address, "0");
        assert_eq!(refused.status.code(), Some(2), "{bad}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("no revision"), "{bad}");
    }
}

#[test]
fn what_belongs_to_a_model_comes_along_even_if_its_weights_were_there_before() {
    let b = bench();
    // What sentence-transformers does with the hidden states.
    std::fs::write(
        b.path("model/modules.json"),
        r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Normalize"}]"#,
    )
    .unwrap();
    std::fs::create_dir(b.path("model/1_Pooling")).unwrap();
    std::fs::write(b.path("model/1_Pooling/config.json"), r#"{"pooling_mode_mean_tokens": true}"#).unwrap();
    let (address, log) = serve(b.path("model"));
    let run = |args: &[&str]| {
        let output = b
            .command(env!("CARGO_BIN_EXE_upgrayedd"))
            .args(args)
            .env("HF_ENDPOINT", &address)
            .env("HF_HUB_OFFLINE", "0")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let out = b.path("exported");
    run(&["export", "--model", "owner/small", "--format", "hf", "--out", out.to_str().unwrap()]);
    for name in ["modules.json", "1_Pooling/config.json"] {
        assert_eq!(
            std::fs::read(out.join(name)).unwrap(),
            std::fs::read(b.path("model").join(name)).unwrap()
        );
    }
    assert!(!out.join("2_Normalize").exists());
    let snapshot = b.path("hf/hub/models--owner--small/snapshots").join(COMMIT);
    std::fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let asked = log.lock().unwrap().len();
    run(&["inspect", "owner/small"]);
    assert!(snapshot.join("tokenizer.json").is_file() && log.lock().unwrap().len() > asked);
}

#[test]
fn what_the_hub_does_not_have_is_said() {
    let b = bench();
    std::fs::create_dir(b.path("pickled")).unwrap();
    std::fs::copy(b.path("model/config.json"), b.path("pickled/config.json")).unwrap();
    std::fs::write(b.path("pickled/pytorch_model.bin"), "pickle").unwrap();
    let (address, _) = serve(b.path("pickled"));
    let inspect = |id: &str| {
        let output = b
            .command(env!("CARGO_BIN_EXE_upgrayedd"))
            .args(["inspect", id])
            .env("HF_ENDPOINT", &address)
            .env("HF_HUB_OFFLINE", "0")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(inspect("owner/small").contains("pytorch_model.bin"));
    assert!(inspect("owner/missing").contains("HF_TOKEN"));
}
