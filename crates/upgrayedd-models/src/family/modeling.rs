//! The Python file that lets transformers load a pruned model.

/// What modeling files share.
const SHARED: &str = include_str!("shared.py");
const NN: &str = "from torch import nn\n";

/// A modeling file. Several families may share one that says `STOCK` where each has its own name. The line that
/// imports from `shared` is replaced by `shared.py`, since a model brings one file along.
#[derive(Debug, Clone, Copy)]
pub struct Modeling {
    text: &'static str,
    names: &'static [(&'static str, &'static str)],
}

impl Modeling {
    /// A file of one family's own.
    pub const fn own(text: &'static str) -> Self {
        Self { text, names: &[] }
    }

    /// A file that several families share: what it says, and what a family puts in its place.
    pub const fn shared(text: &'static str, names: &'static [(&'static str, &'static str)]) -> Self {
        Self { text, names }
    }

    /// The file: which version wrote it, a hash of what follows, and the code.
    pub fn text(self) -> String {
        let (version, code) = (env!("CARGO_PKG_VERSION"), self.code());
        format!("# Upgrayedd {version}\n# BLAKE3 of what follows: {}\n{code}", hash(&code))
    }

    /// The hash of the code, by which a reader knows it.
    pub fn hash(self) -> String {
        hash(&self.code())
    }

    fn code(self) -> String {
        let named = self
            .names
            .iter()
            .fold(self.text.to_owned(), |text, (placeholder, name)| text.replace(placeholder, name));
        let Some(import) = named.lines().find(|line| line.starts_with("from shared import")) else {
            return named;
        };
        let mut text = named.replacen(&format!("{import}\n"), "", 1);
        if !text.contains(NN) {
            text = text.replacen("from transformers", &format!("{NN}from transformers"), 1);
        }
        // After the imports.
        let first = ["\nclass ", "\ndef "].into_iter().filter_map(|word| text.find(word)).min();
        let functions = SHARED.find("def ").map_or("", |at| &SHARED[at..]);
        text.insert_str(first.map_or(text.len(), |at| at + 1), &format!("{}\n\n\n", functions.trim_end()));
        text
    }
}

fn hash(code: &str) -> String {
    blake3::hash(code.as_bytes()).to_hex().to_string()
}
