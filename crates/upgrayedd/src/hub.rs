//! Models from the Hugging Face Hub: cache first, then the network, as `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` say.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};

use crate::export::{COMPANIONS, MODULES, module_folders};
use crate::model::shard_names;
use crate::{Error, Result};

fn offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false" | "no"))
}

/// Files of which a tokenizer has one at least.
const VOCABULARIES: [&str; 4] = ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"];

/// The folder of a model in the cache, downloaded first if it is not there.
pub(crate) fn fetch_model(id: &str) -> Result<PathBuf> {
    let valid = |part: &str| {
        let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        !part.is_empty() && plain && !part.starts_with('.') && !part.contains("..")
    };
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|p| valid(p)) {
        return Err(Error::invalid(format!("{id}: no such folder, and not a Hub id either (expected a folder or OWNER/NAME)")));
    }
    let cache = Cache::from_env();
    let cached = cache.repo(Repo::model(id.to_owned()));
    let cached = cached.get("config.json").and_then(|config| Some(config.parent()?.to_owned())).filter(|dir| complete(dir));
    // Other programs fetch weights alone: what goes with them may still be on the Hub.
    if let Some(dir) = cached.filter(|dir| offline() || VOCABULARIES.iter().any(|name| dir.join(name).exists())) {
        return Ok(dir);
    }
    if offline() {
        return Err(Error::Hub(format!(
            "{id}: no such folder, not complete in the cache ({}), and HF_HUB_OFFLINE forbids to fetch it",
            cache.path().display()
        )));
    }
    let token = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty());
    let mut builder = ApiBuilder::from_env().with_progress(false);
    if token.is_some() {
        builder = builder.with_token(token);
    }
    let api = builder.build().map_err(|e| Error::Hub(format!("{id}: cannot set up the download: {e}")))?;
    download(id, &api.model(id.to_owned()))
}

/// Whether the weights named by the folder are all there.
fn complete(dir: &Path) -> bool {
    if dir.join("model.safetensors").exists() {
        return true;
    }
    let path = dir.join("model.safetensors.index.json");
    let index = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let shards = index.and_then(|index| shard_names(&path, &index).ok());
    shards.is_some_and(|shards| shards.iter().all(|shard| dir.join(shard).exists()))
}

fn download(id: &str, repo: &ApiRepo) -> Result<PathBuf> {
    let fail = |file: &str, e: hf_hub::api::sync::ApiError| {
        Error::Hub(format!(
            "{id}: no such folder, and cannot fetch {file} from the Hub: {e} (check the name, the network, and HF_TOKEN for gated models)"
        ))
    };
    let info = repo.info().map_err(|e| fail("the list of files", e))?;
    let listed: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
    let small = ["config.json", "modeling_upgrayedd.py"].into_iter().chain(COMPANIONS);
    let mut wanted: Vec<String> = small.filter(|f| listed.contains(f)).map(str::to_owned).collect();
    if listed.contains(&MODULES) {
        let path = repo.get(MODULES).map_err(|e| fail(MODULES, e))?;
        let folders = module_folders(&std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?);
        let of_module = |file: &&str| Path::new(file).parent().is_some_and(|parent| folders.iter().any(|f| f == parent));
        wanted.extend(listed.iter().copied().filter(of_module).map(str::to_owned));
    }
    if listed.contains(&"model.safetensors") {
        wanted.push("model.safetensors".to_owned());
    } else if listed.contains(&"model.safetensors.index.json") {
        let path = repo.get("model.safetensors.index.json").map_err(|e| fail("model.safetensors.index.json", e))?;
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let index = serde_json::from_str(&text).map_err(|e| Error::bad_file(&path, format!("is not valid JSON: {e}")))?;
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
        let path = repo.get(file).map_err(|e| fail(file, e))?;
        dir = dir.or_else(|| path.parent().map(Path::to_owned));
    }
    dir.filter(|d| d.join("config.json").is_file()).ok_or_else(|| Error::Hub(format!("{id}: the repository has no config.json")))
}
