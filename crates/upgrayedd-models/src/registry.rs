//! Named things that there are: those of this program, and those that a caller adds.

use std::sync::{PoisonError, RwLock};

use crate::{Error, Result};

/// What a registry holds.
pub(crate) trait Named: Sync + 'static {
    /// What it is called in messages.
    const KIND: &'static str;
    /// Its own name.
    fn name(&self) -> &'static str;
}

/// A list of things by name, in the order in which messages name them.
#[derive(Debug)]
pub(crate) struct Registry<T: Named> {
    own: &'static [&'static T],
    more: RwLock<Vec<&'static T>>,
}

impl<T: Named> Registry<T> {
    pub(crate) const fn new(own: &'static [&'static T]) -> Self {
        Self { own, more: RwLock::new(Vec::new()) }
    }

    pub(crate) fn all(&self) -> Vec<&'static T> {
        let more = self.more.read().unwrap_or_else(PoisonError::into_inner);
        self.own.iter().chain(more.iter()).copied().collect()
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.all().into_iter().map(T::name).collect()
    }

    pub(crate) fn named(&self, name: &str) -> Result<&'static T> {
        let found = self.all().into_iter().find(|item| item.name() == name);
        found.ok_or_else(|| Error::unknown_name(T::KIND, name, &self.names()))
    }

    pub(crate) fn register(&self, item: &'static T) -> Result<()> {
        let mut more = self.more.write().unwrap_or_else(PoisonError::into_inner);
        if self.own.iter().chain(more.iter()).any(|known| known.name() == item.name()) {
            return Err(Error::does_not_fit(format!("there is a {} {:?} already", T::KIND, item.name())));
        }
        more.push(item);
        Ok(())
    }
}
