//! The model card of what is written: where it comes from, what was done with it, who loads it how.

use std::fmt::Write as _;
use std::path::Path;

use super::companions::MODULES;
use super::format::Format;
use crate::files::{DType, read_text};
use crate::model::{Companions, Model};
use crate::spec::Objective;
use crate::units::{LayerUnits, Site};

/// The file of a card, as the Hub has it.
pub const CARD: &str = "README.md";

/// Where the part about loading begins, which each export writes anew.
const LOADING: &str = "## How to load";

/// What whoever made the model knows of it.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// What it was made from: `owner/name@commit` of the Hub, or a name.
    pub base: Option<String>,
    /// Whether `base` is one of the Hub.
    pub on_hub: bool,
    /// What was measured, in Markdown.
    pub measured: String,
    /// How to make it again, in Markdown.
    pub made: String,
}

impl Model {
    /// What is known of a model that nobody says more about.
    pub fn story(&self) -> Story {
        let folder = match &self.companions {
            Companions::Folder(folder) => name_of(folder),
            _ => None,
        };
        let base = self.origin.clone().or(folder);
        Story { base, on_hub: self.origin.is_some(), ..Story::default() }
    }
}

/// What a folder's model is called: by its repository in a cache of the Hub, by its run, by nothing in a temporary place.
fn name_of(folder: &Path) -> Option<String> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    if folder.starts_with(std::env::temp_dir())
        && name(folder).is_some_and(|name| name.starts_with("upgrayedd-"))
    {
        return None;
    }
    let parent = folder.parent().and_then(|parent| Some((parent, name(parent)?)));
    match (name(folder), parent) {
        (_, Some((parent, above))) if above == "snapshots" => {
            name(parent.parent()?).map(|name| name.trim_start_matches("models--").replace("--", "/"))
        }
        (Some(own), Some((_, above))) if own == "model" => Some(above),
        (own, _) => own,
    }
}

/// The card of a model: a new one, or that of the folder that it was read from if this program wrote it.
pub(super) fn card(model: &Model, formats: &[&'static Format], dtype: Option<DType>) -> String {
    let mut loading = loading(model, formats, dtype);
    let before = match &model.companions {
        Companions::Folder(folder) => read_text(&folder.join(CARD)).ok().filter(|text| is_ours(text)),
        _ => None,
    };
    match before {
        Some(text) if model.is_as_read() => {
            loading.push_str("\nWhat was measured is the run's own result; in other types of numbers the last digits differ.\n");
            with_loading(&text, &loading)
        }
        _ => text(model, &model.story(), &loading),
    }
}

/// The card of a model whose story is known.
pub fn card_of(model: &Model, formats: &[&'static Format], story: &Story) -> String {
    text(model, story, &loading(model, formats, None))
}

fn text(model: &Model, story: &Story, loading: &str) -> String {
    let base = story.base.as_deref().unwrap_or("a model in memory");
    let (name, commit) = base.split_once('@').filter(|_| story.on_hub).unwrap_or((base, ""));
    let mut text = "---\nlibrary_name: transformers\ntags:\n- upgrayedd\n".to_owned();
    let full = model.units.is_full() && story.measured.is_empty();
    if !full {
        text.push_str("- pruned\n");
    }
    if let Some(task) = pipeline(model) {
        let _ = writeln!(text, "pipeline_tag: {task}");
    }
    if story.on_hub {
        let _ = writeln!(text, "base_model: {name}");
    }
    license_of(model).iter().for_each(|line| text.push_str(&format!("{line}\n")));
    let _ = write!(
        text,
        "---\n\n# {name}{}\n\nWritten by Upgrayedd {} from {name}",
        if full { "" } else { ", pruned" },
        env!("CARGO_PKG_VERSION")
    );
    if !commit.is_empty() {
        let _ = write!(text, " as it was at commit `{commit}`");
    }
    let _ = write!(text, ".\n\n{}", kept(model));
    for part in [&story.measured, loading, &story.made] {
        if !part.is_empty() {
            let _ = write!(text, "\n{}\n", part.trim_end());
        }
    }
    text
}

/// Which units are left, layer by layer.
fn kept(model: &Model) -> String {
    let layers = model.units.layers();
    if model.units.is_full() {
        return String::new();
    }
    let counts = |site: Site| {
        let of = |layer: &LayerUnits| layer.count(site).to_string();
        layers.iter().map(of).collect::<Vec<_>>().join(" ")
    };
    let mut text = "What is left, layer by layer:\n\n".to_owned();
    for site in [Site::Head, Site::Channel] {
        let (now, then) = (model.units.count(site), model.units.total_of(site));
        if now < then {
            let _ = writeln!(text, "- {} of {then} {}: {}", now, site.name(), counts(site));
        }
    }
    text
}

fn pipeline(model: &Model) -> Option<&'static str> {
    match model.spec.objective {
        Objective::CausalLm => Some("text-generation"),
        Objective::MaskedLm => Some("fill-mask"),
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => Some("text-classification"),
        Objective::Encoder => None,
    }
}

/// The lines about its license that the card of the base has in its header.
fn license_of(model: &Model) -> Vec<String> {
    let Companions::Folder(folder) = &model.companions else { return Vec::new() };
    let text = read_text(&folder.join(CARD)).unwrap_or_default();
    let (mut lines, mut listed) = (Vec::new(), false);
    for line in header(&text) {
        let key =
            ["license:", "license_name:", "license_link:"].into_iter().find(|key| line.starts_with(key));
        let value = key.map_or("", |key| line[key.len()..].trim());
        // A list of them goes on for some lines; a link into the folder leads nowhere from another.
        let counts = match key {
            Some("license_link:") => value.starts_with("http"),
            Some(_) => true,
            None => listed && line.trim_start().starts_with('-'),
        };
        listed = counts && (key.is_none() || value.is_empty());
        if counts {
            lines.push(line.to_owned());
        }
    }
    lines
}

/// The lines of a card's header.
fn header(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines();
    let begins = lines.next().is_some_and(|line| line.trim_end() == "---");
    lines.take_while(move |line| begins && line.trim_end() != "---")
}

fn is_ours(text: &str) -> bool {
    header(text).any(|line| line.trim_end() == "- upgrayedd") && text.contains(LOADING)
}

/// A card of ours with another part about loading.
fn with_loading(text: &str, loading: &str) -> String {
    let (before, rest) = text.split_once(LOADING).unwrap_or((text, ""));
    let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
    format!("{before}{}\n{after}", loading.trim_end())
}

/// Who loads it how.
fn loading(model: &Model, formats: &[&'static Format], dtype: Option<DType>) -> String {
    let mut text = format!("{LOADING}\n");
    for format in formats {
        let _ = write!(
            text,
            "\n**{}**: {}.\n\n{}",
            format.name,
            (format.note)(model),
            (format.usage)(model, dtype)
        );
    }
    text.push_str("\nTo the Hub it goes by `hf upload OWNER/NAME FOLDER`.\n");
    text
}

/// How transformers loads a folder; sentence-transformers, where it is one of its own.
pub(super) fn in_python(model: &Model, remote_code: bool) -> String {
    let is_sentence_encoder =
        matches!(&model.companions, Companions::Folder(folder) if Path::new(folder).join(MODULES).is_file());
    let trust = if remote_code { ", trust_remote_code=True" } else { "" };
    let (from, class) = match model.spec.objective {
        Objective::Encoder if is_sentence_encoder => {
            return format!(
                "```python\nfrom sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer(\"FOLDER\"{trust})\n```\n"
            );
        }
        Objective::CausalLm => ("transformers", "AutoModelForCausalLM"),
        Objective::MaskedLm => ("transformers", "AutoModelForMaskedLM"),
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => {
            ("transformers", "AutoModelForSequenceClassification")
        }
        Objective::Encoder => ("transformers", "AutoModel"),
    };
    format!(
        "```python\nfrom {from} import AutoTokenizer, {class}\n\nmodel = {class}.from_pretrained(\"FOLDER\"{trust})\ntokenizer = AutoTokenizer.from_pretrained(\"FOLDER\")\n```\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_is_written_anew_and_nothing_else() {
        let card = "---\ntags:\n- upgrayedd\nlicense: mit\n---\n\n# A\n\nMeasured.\n\n## How to load\n\nold\n\n## How it was made\n\nso\n";
        assert!(is_ours(card) && !is_ours("# no header\n\n## How to load\n"));
        let again = with_loading(card, "## How to load\n\nnew\n");
        assert!(
            again.contains("new")
                && !again.contains("old")
                && again.ends_with("\n\n## How it was made\n\nso\n"),
            "{again}"
        );
        assert_eq!(with_loading(&again, "## How to load\n\nnew\n"), again);
        assert_eq!(header(card).filter(|line| line.starts_with("license")).count(), 1);
        assert_eq!(header("no header\n---\nlicense: x\n").count(), 0);
    }
}
