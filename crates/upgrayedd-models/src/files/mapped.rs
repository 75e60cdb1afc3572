//! A file in memory, a page at a time.

#![allow(unsafe_code, reason = "weights are memory-mapped")]

use std::fs::File;
use std::ops::Range;

use memmap2::Mmap;
use upgrayedd_nn::Source;

/// A file whose pages are read when they are looked at, and again when they have been let go.
pub(super) struct Mapped(Mmap);

impl Mapped {
    pub(super) fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is read-only, and this program replaces files and never writes into one that it maps.
        // Another that does changes the weights.
        Ok(Self(unsafe { Mmap::map(file) }?))
    }
}

impl Source for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn is_file(&self) -> bool {
        true
    }

    #[cfg(unix)]
    fn let_go(&self, range: Range<usize>) {
        // SAFETY: whoever reads these bytes gets them again: pages of a file that is mapped read-only come
        // back as they were.
        let told = unsafe {
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // Advice that is not taken costs memory and nothing else.
        drop(told);
    }

    #[cfg(not(unix))]
    fn let_go(&self, _: Range<usize>) {}
}
