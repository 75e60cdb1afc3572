//! The names of a checkpoint's tensors, freed from what programs have put around them.

use std::collections::BTreeMap;

use crate::family::Family;
use crate::{Error, Result};

/// Parts of a path that wrappers leave in names: compiled, data-parallel, sharded and checkpointed modules.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Tensors by the names that transformers gives them, with those that they have in the file.
pub(super) struct Names {
    stored: BTreeMap<String, String>,
    /// What was taken off.
    pub(super) notes: Vec<String>,
}

impl Names {
    /// Takes off what wrappers have put around modules.
    pub(super) fn new(stored: Vec<String>) -> Result<Self> {
        if let Some(name) = stored
            .iter()
            .find(|n| ["base_layer", "lora_A", "lora_B"].iter().any(|p| n.split('.').any(|part| part == *p)))
        {
            return Err(Error::unsupported(format!(
                "holds the tensor {name} of an adapter (PEFT) that is not merged: merge it with merge_and_unload() and save the model"
            )));
        }
        let mut names = Self { stored: BTreeMap::new(), notes: Vec::new() };
        let mut seen: Vec<&str> = Vec::new();
        for name in stored {
            let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
            seen.extend(WRAPPERS.iter().copied().filter(|w| name.split('.').any(|part| part == *w)));
            names.insert(parts.join("."), name)?;
        }
        seen.sort_unstable();
        seen.dedup();
        if !seen.is_empty() {
            names.notes.push(format!(
                "tensor names hold {}, of modules that were wrapped when saved, and are read without",
                seen.join(" and ")
            ));
        }
        Ok(names)
    }

    fn insert(&mut self, name: String, stored: String) -> Result<()> {
        match self.stored.insert(name.clone(), stored.clone()) {
            Some(other) => Err(Error::malformed(format!(
                "the tensors {other} and {stored} are both {name}: expected one of them"
            ))),
            None => Ok(()),
        }
    }

    /// Takes off a prefix beyond the family's own that all its tensors share.
    pub(super) fn without_prefix(mut self, family: &Family) -> Result<Self> {
        let fronts = self.stored.keys().filter_map(|name| name.strip_suffix(family.marker));
        let fronts: Vec<String> =
            fronts.filter(|front| front.is_empty() || front.ends_with('.')).map(str::to_owned).collect();
        let front = match &fronts[..] {
            // No layer of this family at all: what is missing says so.
            [] => return Ok(self),
            [front] => front,
            [one, other, ..] => {
                return Err(Error::unsupported(format!(
                    "holds several models, with tensors under {one:?} and {other:?}: expected one {} model",
                    family.model_type
                )));
            }
        };
        let extra = front.strip_suffix(family.base_prefix).unwrap_or(front);
        if extra.is_empty() || front == family.base_prefix {
            return Ok(self);
        }
        self.notes.push(format!(
            "tensor names begin with {extra:?}, which a {} model's do not: read without it",
            family.model_type
        ));
        for (name, stored) in std::mem::take(&mut self.stored) {
            self.insert(name.strip_prefix(extra).map_or_else(|| name.clone(), str::to_owned), stored)?;
        }
        Ok(self)
    }

    /// Every name.
    pub(super) fn all(&self) -> Vec<String> {
        self.stored.keys().cloned().collect()
    }

    /// The name in the file of a tensor: the other one that the family has for it, or its own.
    pub(super) fn find(&self, name: &str, family: &Family) -> Result<Option<&str>> {
        let other = family.other_names.iter().find(|(own, _)| *own == name).map(|(_, other)| *other);
        match other.map(|other| self.find_as(other, family)).transpose()?.flatten() {
            Some(found) => Ok(Some(found)),
            None => self.find_as(name, family),
        }
    }

    /// The name in the file of a tensor under just this name: with the base prefix or without, as
    /// transformers has it or as older versions did. Refuses several.
    pub(super) fn find_as(&self, name: &str, family: &Family) -> Result<Option<&str>> {
        // A LayerNorm also under the names that TensorFlow gave it.
        let old =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let prefix = family.base_prefix;
        let without = |n: &str| n.strip_prefix(prefix).map_or_else(|| format!("{prefix}{n}"), str::to_owned);
        let older = family.old_names.iter().filter(|(own, _)| *own == name).map(|(_, old)| *old);
        let names = [name, &old].into_iter().chain(older).flat_map(|n| [n.to_owned(), without(n)]);
        let mut found: Vec<&str> = names.filter_map(|n| self.stored.get(&n)).map(String::as_str).collect();
        found.sort_unstable();
        found.dedup();
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [one, other, ..] => Err(Error::malformed(format!(
                "the tensors {one} and {other} are both {name}: expected one of them"
            ))),
        }
    }

    /// The names, as transformers has them and as stored, of what was not asked for.
    pub(super) fn unread<'n>(&'n self, read: impl Fn(&str) -> bool + 'n) -> impl Iterator<Item = &'n str> {
        self.stored.iter().filter(move |(_, stored)| !read(stored)).map(|(name, _)| name.as_str())
    }
}
