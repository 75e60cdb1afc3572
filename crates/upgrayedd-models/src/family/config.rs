//! Typed access to config.json: errors name the key, what stands there and what would be right.

use serde_json::Value;

use crate::spec::Objective;
use crate::{Error, Result};

use super::task::Task;

/// More layers than any model has.
const MOST_LAYERS: usize = 4096;

/// A config.json (or an object in it) with the names that a family's configuration class gives to the same
/// key.
pub struct Config<'a> {
    value: &'a Value,
    /// Other names of a key: `(other, own)`. As in transformers, the other name wins where both are there.
    aliases: &'static [(&'static str, &'static str)],
}

impl<'a> Config<'a> {
    pub(super) fn new(value: &'a Value, aliases: &'static [(&'static str, &'static str)]) -> Self {
        Self { value, aliases }
    }

    /// What stands under a key, `null` included; `None` if the key is not there.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        let other =
            self.aliases.iter().filter(|(_, own)| *own == key).find_map(|(other, _)| self.value.get(other));
        other.or_else(|| self.value.get(key))
    }

    fn wrong(key: &str, value: &Value, expected: &str) -> Error {
        Error::out_of_range(format!("config.json: {key}"), value, expected)
    }

    /// A whole number of sane size; `default` stands in for a missing key.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => Self::to_size(key, value),
        }
    }

    /// The same where `null` means that the key is not there.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn size_or_null(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).filter(|v| !v.is_null()).map(|value| Self::to_size(key, value)).transpose()
    }

    fn to_size(key: &str, value: &Value) -> Result<usize> {
        const LARGEST: u64 = 1 << 24;
        match value.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
            _ => Err(Self::wrong(key, value, &format!("a whole number from 1 to {LARGEST}"))),
        }
    }

    /// A positive number; `default` stands in for a missing key, and without one the key must be there.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else, and for a missing key without a default.
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => {
                let value = value.unwrap_or(&Value::Null);
                let number = value.as_f64().filter(|v| v.is_finite() && *v > 0.0);
                number.ok_or_else(|| Self::wrong(key, value, "a positive number"))
            }
        }
    }

    /// True or false; `default` stands in for a missing key.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(Self::wrong(key, value, "true or false")),
        }
    }

    /// A text; `None` if the key is missing or `null`.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(Self::wrong(key, value, "a name")),
        }
    }

    /// An object; `None` if the key is missing, `null` or empty.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn object(&self, key: &str) -> Result<Option<&'a Value>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value @ Value::Object(fields)) => Ok((!fields.is_empty()).then_some(value)),
            Some(value) => Err(Self::wrong(key, value, "an object")),
        }
    }

    /// A function by the name that transformers has for it.
    ///
    /// # Errors
    /// Returns [`Error::UnknownName`] for a name that is not known here, and [`Error::OutOfRange`] for what
    /// is no name.
    pub fn activation(&self, key: &str, default: &str) -> Result<upgrayedd_nn::ops::Activation> {
        use upgrayedd_nn::ops::Activation::{Gelu, GeluTanh, Relu, Silu};
        let named = match self.get(key) {
            None => default,
            Some(Value::String(name)) => name,
            Some(value) => return Err(Self::wrong(key, value, "the name of an activation")),
        };
        match named {
            "gelu" | "gelu_python" => Ok(Gelu),
            // One formula in four spellings.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Ok(GeluTanh)
            }
            "silu" | "swish" => Ok(Silu),
            "relu" => Ok(Relu),
            other => Err(Error::unknown_name(
                &format!("{key} in config.json"),
                other,
                &["gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "relu"],
            )),
        }
    }

    /// The number of layers; a list of their types has one for each.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for what is no number of layers, [`Error::Unsupported`] for too many of
    /// them, and [`Error::Malformed`] if `layer_types` lists another number.
    pub fn layers(&self, key: &str, default: usize) -> Result<usize> {
        let layers = self.size(key, default)?;
        if layers > MOST_LAYERS {
            return Err(Error::unsupported(format!(
                "config.json: {key} is {layers}: at most {MOST_LAYERS} are supported"
            )));
        }
        match self.get("layer_types").and_then(Value::as_array) {
            Some(types) if types.len() != layers => Err(Error::malformed(format!(
                "config.json: layer_types has {} layers, but {key} is {layers}: expected as many",
                types.len()
            ))),
            _ => Ok(layers),
        }
    }

    /// A list of positive numbers.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else, a missing key included.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let value = self.get(key).unwrap_or(&Value::Null);
        let positive = |v: &Value| v.as_f64().filter(|v| v.is_finite() && *v > 0.0);
        let numbers = value.as_array().and_then(|list| list.iter().map(positive).collect::<Option<Vec<_>>>());
        let expected = format!("a list of {count} positive numbers");
        numbers.filter(|n| n.len() == count).ok_or_else(|| Self::wrong(key, value, &expected))
    }

    /// A whole number that may be 0; `default` stands in for a missing key.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn count(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            Some(value) => Self::to_size(key, value),
        }
    }

    /// The type of each layer, if `layer_types` says so.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for what is no list of names. That it is as long as there are layers,
    /// [`Self::layers`] has seen to.
    pub fn layer_types(&self) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get("layer_types").filter(|v| !v.is_null()) else { return Ok(None) };
        let names = value.as_array().and_then(|types| types.iter().map(Value::as_str).collect());
        names.map(Some).ok_or_else(|| Self::wrong("layer_types", value, "a list of names"))
    }

    /// A list of marks, 0 or 1, one a layer; `None` if the key is missing or `null`.
    ///
    /// # Errors
    /// Returns [`Error::OutOfRange`] for anything else.
    pub fn marks(&self, key: &str, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let mark = |mark: &Value| match mark {
            Value::Bool(mark) => Some(*mark),
            mark => mark.as_u64().filter(|mark| *mark <= 1).map(|mark| mark == 1),
        };
        let marks = value.as_array().and_then(|marks| marks.iter().map(mark).collect::<Option<Vec<_>>>());
        let expected = format!("a list of {layers} marks, 0 or 1");
        marks.filter(|m| m.len() >= layers).map(Some).ok_or_else(|| Self::wrong(key, value, &expected))
    }

    /// Columns per head, where all heads together are as wide as the model.
    ///
    /// # Errors
    /// Returns [`Error::Malformed`] if the width is not a multiple of the heads.
    pub fn share_of(&self, hidden_size: usize, num_heads: usize) -> Result<usize> {
        if !hidden_size.is_multiple_of(num_heads) {
            return Err(Error::malformed(format!(
                "config.json: hidden size {hidden_size} is not a multiple of {num_heads} heads"
            )));
        }
        Ok(hidden_size / num_heads)
    }

    /// What a model with a head for this task learns.
    ///
    /// # Errors
    /// For a classifier, returns [`Error::OutOfRange`] for a value of a wrong type, [`Error::Malformed`] if
    /// `num_labels` and `id2label` differ, and [`Error::Unsupported`] for a `problem_type` that does not go
    /// with the number of labels.
    pub fn objective(&self, task: Task) -> Result<Objective> {
        Ok(match task {
            Task::CausalLm => Objective::CausalLm,
            Task::MaskedLm => Objective::MaskedLm,
            Task::Encoder => Objective::Encoder,
            Task::Classifier => {
                let number = self.size_or_null("num_labels")?;
                let named = match self.get("id2label") {
                    Some(Value::Object(names)) if !names.is_empty() => Some(names.len()),
                    Some(Value::Object(_)) if number.is_some() => None,
                    None | Some(Value::Null) => None,
                    Some(value) => return Err(Self::wrong("id2label", value, "an object of names by class")),
                };
                // Two labels need not be named.
                let labels = match (named, number) {
                    (Some(named), Some(number)) if named != number => {
                        return Err(Error::malformed(format!(
                            "config.json: num_labels is {number}, but id2label names {named}: expected as many"
                        )));
                    }
                    (named, number) => named.or(number).unwrap_or(2),
                };
                let kind = if labels == 1 { "regression" } else { "single_label_classification" };
                const SEVERAL: &str = "multi_label_classification";
                match self.text("problem_type")? {
                    Some(SEVERAL) => Objective::MultiLabel { labels },
                    Some(other) if other != kind => {
                        return Err(Error::unsupported(format!(
                            "config.json: problem_type {other:?} with {labels} labels is not supported: expected {kind:?} or {SEVERAL:?}"
                        )));
                    }
                    _ => Objective::Classifier { labels },
                }
            }
        })
    }
}
