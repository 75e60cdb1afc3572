//! The Python file that lets transformers load a pruned model.

/// A modeling file. Several families may share one that says `STOCK` where each has its own name.
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

    /// The file.
    pub fn text(self) -> String {
        self.names
            .iter()
            .fold(self.text.to_owned(), |text, (placeholder, name)| text.replace(placeholder, name))
    }
}
