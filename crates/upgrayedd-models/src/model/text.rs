//! What a model reads and writes text with, and the model that it is compared with.

use std::sync::Arc;

use serde_json::Value;

use super::state::{Companions, Model};
use crate::files::{read_optional_json, read_text};
use crate::spec::Objective;
use crate::tokenizer::{Tokenizer, end_tokens};
use crate::{Error, Result, keys};

impl Model {
    /// The tokenizer that came with the model.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] if the model came without one, and what [`Tokenizer::load`] returns.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.companions {
            Companions::Folder(dir) => Tokenizer::load(dir, &self.config),
            Companions::Memory(files) => match files.iter().find(|(name, _)| *name == "tokenizer.json") {
                Some((_, json)) => Tokenizer::from_json(json, &Value::Null),
                None => Err(Error::does_not_fit("the model came without a tokenizer: text needs one")),
            },
            Companions::None => {
                Err(Error::does_not_fit("the model came without a tokenizer: text needs one"))
            }
        }
    }

    /// The model whose hidden states a plain encoder is measured against and learns from.
    pub fn reference(&self) -> Option<&Arc<Self>> {
        self.reference.as_ref()
    }

    /// Measures a plain encoder against the hidden states of `reference`, and lets it learn from them.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for a model with an objective of its own, and for a reference of another
    /// kind, width, vocabulary or tokenizer.
    pub fn set_reference(&mut self, reference: Arc<Self>) -> Result<()> {
        if self.spec.objective != Objective::Encoder {
            return Err(Error::does_not_fit(format!(
                "a reference is for plain encoders: this {} model has an objective of its own",
                self.spec.objective.name()
            )));
        }
        let shape = |m: &Self| (m.family.model_type, m.spec.objective, m.spec.hidden_size, m.spec.vocab_size);
        if shape(self) != shape(&reference) {
            return Err(Error::does_not_fit(format!(
                "the reference is no encoder of this kind: expected a {} encoder of width {} and {} tokens",
                self.family.model_type, self.spec.hidden_size, self.spec.vocab_size
            )));
        }
        if let Err(reason) = self.check_same_tokens(&reference) {
            return Err(Error::does_not_fit(format!("the reference cannot be compared with: {reason}")));
        }
        self.reference = Some(reference);
        Ok(())
    }

    /// Checks that `other` reads and predicts the tokens that this model does.
    ///
    /// # Errors
    /// Returns the reason, as the end of a sentence about `other`.
    pub fn check_same_tokens(&self, other: &Self) -> std::result::Result<(), String> {
        let shape = |m: &Self| (m.spec.objective, m.spec.vocab_size);
        if shape(self) != shape(other) {
            return Err(format!(
                "it is a {} model of {} tokens, this one is a {} model of {}",
                other.spec.objective.name(),
                other.spec.vocab_size,
                self.spec.objective.name(),
                self.spec.vocab_size
            ));
        }
        if self.companions == other.companions {
            return Ok(());
        }
        // Who came without a tokenizer, or is given batches only, is taken at their word.
        match (self.tokenizer(), other.tokenizer()) {
            (Ok(ours), Ok(theirs)) if ours.fingerprint() != theirs.fingerprint() => {
                Err("its tokenizer is another one".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Tokens that end a text: those of config.json, of generation_config.json and of the tokenizer.
    ///
    /// # Errors
    /// Returns [`Error::DoesNotFit`] for an `eos_token_id` that is no token, and what
    /// [`Self::generation_settings`] returns.
    pub fn end_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let (settings, _) = self.generation_settings()?;
        let files = [("config.json", &self.config), ("generation_config.json", &settings)];
        let mut tokens = Vec::new();
        for (file, values) in files {
            tokens.extend(
                end_tokens(&values["eos_token_id"])
                    .map_err(|e| Error::does_not_fit(format!("{file}: eos_token_id {e}")))?,
            );
        }
        tokens.extend(tokenizer.eos());
        tokens.sort_unstable();
        tokens.dedup();
        Ok(tokens)
    }

    /// generation_config.json, and notes on what of it is not obeyed.
    ///
    /// # Errors
    /// Returns [`Error::File`] if the file cannot be used or asks for what this program does not do, and
    /// [`Error::Io`] if the system cannot read it.
    pub fn generation_settings(&self) -> Result<(Value, Vec<String>)> {
        let Companions::Folder(dir) = &self.companions else { return Ok((Value::Null, Vec::new())) };
        let path = dir.join("generation_config.json");
        let settings = read_optional_json(&path)?;
        let notes = keys::check("generation_config.json", &settings, &[keys::GENERATION], |_| false)
            .map_err(|e| Error::bad_file(dir, e.to_string()))?;
        Ok((settings, notes))
    }

    /// What writes conversations: the text of a file of its own, or of tokenizer_config.json; none if there is none.
    ///
    /// # Errors
    /// Returns [`Error::File`] if a file cannot be used, and [`Error::Io`] if the system cannot read it.
    pub fn chat_template(&self) -> Result<Option<String>> {
        let Companions::Folder(dir) = &self.companions else { return Ok(None) };
        let file = dir.join("chat_template.jinja");
        if file.is_file() {
            return read_text(&file).map(Some);
        }
        let config = read_optional_json(&dir.join("tokenizer_config.json"))?;
        Ok(match &config["chat_template"] {
            Value::String(text) => Some(text.clone()),
            Value::Array(list) => {
                let default = list.iter().find(|one| one["name"] == "default");
                default.and_then(|one| one["template"].as_str()).map(str::to_owned)
            }
            _ => None,
        })
    }
}
