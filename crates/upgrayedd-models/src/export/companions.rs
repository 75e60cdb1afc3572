//! What belongs to a model and is not changed with it: its tokenizer, and what a sentence encoder does with
//! its hidden states.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::files::{check_link, write_file};
use crate::model::{Companions, Model};
use crate::{Error, Result};

/// Files of a model folder that come along unchanged.
pub const COMPANIONS: [&str; 14] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    MODULES,
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// Where sentence-transformers says which modules follow the encoder, each with files in a folder of its own.
pub const MODULES: &str = "modules.json";

/// The folders named by a [`MODULES`] file beside its own; nothing if it is not one.
pub fn module_folders(text: &str) -> Vec<PathBuf> {
    let modules: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    let paths = modules.iter().filter_map(|module| Some(PathBuf::from(module.get("path")?.as_str()?)));
    // A folder of the model's own, never one beside it.
    paths
        .filter(|p| p.components().count() == 1 && p.components().all(|c| matches!(c, Component::Normal(_))))
        .collect()
}

/// Writes the files that belong to the model into a folder.
///
/// # Errors
/// Returns [`Error::File`] for a file that is a link out of the model's folder, and [`Error::Io`] if the
/// system cannot read or write one.
pub fn write_companions(model: &Model, to: &Path) -> Result<()> {
    let from = match &model.companions {
        Companions::Folder(from) => from,
        Companions::Memory(files) => {
            return files.iter().try_for_each(|(name, text)| write_file(&to.join(name), text.as_bytes()));
        }
        Companions::None => return Ok(()),
    };
    for name in COMPANIONS {
        copy(&from.join(name), &to.join(name))?;
    }
    for folder in module_folders(&std::fs::read_to_string(from.join(MODULES)).unwrap_or_default()) {
        let source = from.join(&folder);
        // A module without files of its own, such as a normalisation, has no folder either.
        if !source.is_dir() {
            continue;
        }
        check_link(&source)?;
        let entries = std::fs::read_dir(&source).map_err(Error::io(&source, "read"))?;
        let target = to.join(&folder);
        std::fs::create_dir_all(&target).map_err(Error::io(&target, "create"))?;
        for entry in entries {
            let entry = entry.map_err(Error::io(&source, "read"))?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies a file, if there is one.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    check_link(from)?;
    let bytes = std::fs::read(from).map_err(Error::io(from, "read"))?;
    write_file(to, &bytes)
}

/// Whether a folder holds any of these files.
pub fn has_companions(dir: &Path) -> bool {
    COMPANIONS.iter().any(|name| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_stay_in_the_folder_of_the_model() {
        let text = r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "../other"}, {"path": "/etc"}, {"path": "a/b"}, {}, {"path": ".."}, 3]"#;
        assert_eq!(module_folders(text), [PathBuf::from("1_Pooling")]);
        assert!(module_folders("{}").is_empty() && module_folders("no JSON").is_empty());
    }
}
