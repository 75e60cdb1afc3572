//! Models from the Hugging Face Hub: cache first, then the network, as `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`
//! and `HF_HUB_OFFLINE` say.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use upgrayedd_nn::interrupt;

use crate::export::{CARD, COMPANIONS, MODULES, module_folders};
use crate::load::{ADAPTERS, MERGE, shard_names};
use crate::{Error, Result};

/// Between two looks at a download.
const PAUSE: Duration = Duration::from_millis(50);

fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false" | "no"))
}

/// Files of which a tokenizer has one at least.
const VOCABULARIES: [&str; 4] = ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"];

/// A model's folder, and where on the Hub it is from.
pub(crate) struct Fetched {
    pub(crate) dir: PathBuf,
    /// `owner/name@commit`.
    pub(crate) origin: Option<String>,
}

impl Fetched {
    fn of(id: &str, dir: PathBuf) -> Self {
        // The cache names the folder after the commit.
        let commit =
            dir.file_name().map(|name| name.to_string_lossy().into_owned()).filter(|name| is_commit(name));
        Self { origin: commit.map(|commit| format!("{id}@{commit}")), dir }
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The folder of a model in the cache, downloaded first if it is not there. `name` is an id, `owner/name`, or
/// `owner/name@revision` with a branch, tag or commit.
pub(crate) fn fetch_model(name: &str) -> Result<Fetched> {
    let plain = |part: &str| {
        let known = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        !part.is_empty() && known && !part.starts_with('.') && !part.contains("..")
    };
    let (id, revision) = name.split_once('@').map_or((name, None), |(id, revision)| (id, Some(revision)));
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|p| plain(p)) {
        return Err(Error::bad_file(
            name,
            "no such folder, and not a Hub id either (expected a folder, OWNER/NAME or OWNER/NAME@REVISION)",
        ));
    }
    if let Some(revision) = revision.filter(|r| !r.split('/').all(plain)) {
        return Err(Error::malformed(format!(
            "{name}: {revision:?} is no revision: expected a branch, a tag or a commit"
        )));
    }
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.unwrap_or("main").to_owned());
    let cache = Cache::from_env();
    // A commit that is in the cache under its own name need not be known as a revision.
    let by_commit = revision
        .filter(|r| is_commit(r))
        .map(|commit| cache.path().join(repo.folder_name()).join("snapshots").join(commit));
    let by_name =
        || cache.repo(repo.clone()).get("config.json").and_then(|config| Some(config.parent()?.to_owned()));
    let cached = by_commit
        .filter(|dir| dir.join("config.json").is_file())
        .or_else(by_name)
        .filter(|dir| complete(dir));
    // Other programs fetch weights alone: what goes with them may still be on the Hub.
    if let Some(dir) =
        cached.filter(|dir| offline() || VOCABULARIES.iter().any(|name| dir.join(name).exists()))
    {
        return Ok(Fetched::of(id, dir));
    }
    if offline() {
        return Err(Error::Hub(format!(
            "{name}: no such folder, not complete in the cache ({}{}), and HF_HUB_OFFLINE forbids to fetch it",
            cache.path().display(),
            cached_commits(&cache.path().join(repo.folder_name()))
        )));
    }
    let (wanted, token) = (name.to_owned(), std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty()));
    let fetch = move |stop: &AtomicBool| {
        let mut builder = ApiBuilder::from_env().with_progress(false);
        if token.is_some() {
            builder = builder.with_token(token);
        }
        let api =
            builder.build().map_err(|e| Error::Hub(format!("{wanted}: cannot set up the download: {e}")))?;
        download(&wanted, &api.repo(repo), stop)
    };
    Ok(Fetched::of(id, stoppable(fetch)?))
}

/// A download whose file under way was still coming when the caller was to stop.
static UNDER_WAY: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

/// Does work that asks now and then whether to stop, but may be long about it, on a thread of its own. It is
/// left alone when the caller is to stop, and the next waits for it: both may want the same file.
fn stoppable<T: Send + 'static>(work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Result<T> {
    let under_way = || UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(earlier) = under_way().take() {
        while !earlier.is_finished() {
            std::thread::sleep(PAUSE);
            if let Err(stopped) = interrupt::check() {
                *under_way() = Some(earlier);
                return Err(stopped.into());
            }
        }
    }
    let (sender, done) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    // Nobody may be left to tell.
    let thread = std::thread::Builder::new().spawn(move || drop(sender.send(work(&stopping))));
    let thread = thread.map_err(|e| Error::Hub(format!("cannot start a download: {e}")))?;
    loop {
        match done.recv_timeout(PAUSE) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Error::Hub("the download broke off".to_owned()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Err(stopped) = interrupt::check() {
            stop.store(true, Ordering::Relaxed);
            *under_way() = Some(thread);
            return Err(stopped.into());
        }
    }
}

/// The commits of a repository that the cache has, as a message names them.
fn cached_commits(repo: &Path) -> String {
    let entries = std::fs::read_dir(repo.join("snapshots")).into_iter().flatten().flatten();
    let mut commits: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    commits.sort();
    if commits.is_empty() { String::new() } else { format!(" has {}", commits.join(", ")) }
}

/// Whether the weights named by the folder are all there.
fn complete(dir: &Path) -> bool {
    if dir.join("model.safetensors").exists() {
        return true;
    }
    let path = dir.join("model.safetensors.index.json");
    let index = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let shards = index.and_then(|index| shard_names(&path, &index).ok());
    shards.is_some_and(|shards| shards.iter().all(|shard| dir.join(shard).exists()))
}

fn download(id: &str, repo: &ApiRepo, stop: &AtomicBool) -> Result<PathBuf> {
    let fail = |file: &str, e: hf_hub::api::sync::ApiError| {
        Error::Hub(format!(
            "{id}: no such folder, and cannot fetch {file} from the Hub: {e} (check the name, the network, and HF_TOKEN for gated models)"
        ))
    };
    let info = repo.info().map_err(|e| fail("the list of files", e))?;
    let listed: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    if let Some(adapter) = ADAPTERS.into_iter().find(|name| listed.contains(name)) {
        return Err(Error::Hub(format!(
            "{id}: the repository has {adapter}, an adapter (PEFT), which is not applied: {MERGE}"
        )));
    }
    let small = ["config.json", "modeling_upgrayedd.py", CARD].into_iter().chain(COMPANIONS);
    let mut wanted: Vec<String> = small.filter(|f| listed.contains(f)).map(str::to_owned).collect();
    if listed.contains(&MODULES) {
        let path = repo.get(MODULES).map_err(|e| fail(MODULES, e))?;
        let folders = module_folders(&std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?);
        let of_module =
            |file: &&str| Path::new(file).parent().is_some_and(|parent| folders.iter().any(|f| f == parent));
        wanted.extend(listed.iter().copied().filter(of_module).map(str::to_owned));
    }
    if listed.contains(&"model.safetensors") {
        wanted.push("model.safetensors".to_owned());
    } else if listed.contains(&"model.safetensors.index.json") {
        let path =
            repo.get("model.safetensors.index.json").map_err(|e| fail("model.safetensors.index.json", e))?;
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let index = serde_json::from_str(&text)
            .map_err(|e| Error::bad_file(&path, format!("is not valid JSON: {e}")))?;
        wanted.extend(shard_names(&path, &index)?);
    } else {
        let hint = if listed.contains(&"pytorch_model.bin") {
            " (only pytorch_model.bin, a pickle, which is not read: look for a safetensors revision)"
        } else {
            ""
        };
        return Err(Error::Hub(format!("{id}: the repository has no safetensors weights{hint}")));
    }
    let mut dir = None;
    for file in &wanted {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let path = repo.get(file).map_err(|e| fail(file, e))?;
        dir = dir.or_else(|| path.parent().map(Path::to_owned));
    }
    dir.filter(|d| d.join("config.json").is_file())
        .ok_or_else(|| Error::Hub(format!("{id}: the repository has no config.json")))
}
