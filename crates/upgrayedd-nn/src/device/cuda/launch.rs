//! Kernels with their arguments, as a driver takes them.

/// Element types of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    F32,
    Bf16,
}

impl Kind {
    pub(super) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// An array: where it lies and what it is made of. `struct Any` of the kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Any {
    pub(super) at: u64,
    pub(super) kind: Kind,
}

impl Any {
    /// No array.
    pub(super) const NONE: Self = Self { at: 0, kind: Kind::F32 };
}

/// Where a gradient goes: base + value, or the value alone where `base` is 0. `struct Out` of the kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    pub(super) at: u64,
    pub(super) base: u64,
    pub(super) kind: Kind,
}

impl Out {
    pub(super) const NONE: Self = Self { at: 0, base: 0, kind: Kind::F32 };
}

/// What a kernel takes by value.
pub(super) trait Argument {
    /// Eight bytes at a time, as they lie in memory.
    fn words(&self, to: &mut Vec<u64>);
}

impl Argument for u64 {
    fn words(&self, to: &mut Vec<u64>) {
        to.push(*self);
    }
}

impl Argument for usize {
    fn words(&self, to: &mut Vec<u64>) {
        to.push(*self as u64);
    }
}

impl Argument for i32 {
    fn words(&self, to: &mut Vec<u64>) {
        to.push(u64::from(self.cast_unsigned()));
    }
}

impl Argument for f32 {
    fn words(&self, to: &mut Vec<u64>) {
        to.push(u64::from(self.to_bits()));
    }
}

impl Argument for Any {
    fn words(&self, to: &mut Vec<u64>) {
        to.extend([self.at, self.kind as u64]);
    }
}

impl Argument for Out {
    fn words(&self, to: &mut Vec<u64>) {
        to.extend([self.at, self.base, self.kind as u64]);
    }
}

/// A struct whose words are known.
pub(super) struct Words(pub(super) Vec<u64>);

impl Argument for Words {
    fn words(&self, to: &mut Vec<u64>) {
        to.extend_from_slice(&self.0);
    }
}

/// A kernel, its grid and its arguments.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) kernel: &'static str,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    /// Bytes of shared memory that the kernel does not name itself.
    pub(super) shared: u32,
    words: Vec<u64>,
    /// Where each argument begins.
    begins: Vec<usize>,
}

impl Launch {
    pub(super) fn new(kernel: &'static str, grid: [usize; 3], threads: u32) -> Self {
        let grid = grid.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX));
        Self { kernel, grid, threads, shared: 0, words: Vec::new(), begins: Vec::new() }
    }

    /// A thread for each of `items`.
    pub(super) fn each(kernel: &'static str, items: usize) -> Self {
        Self::new(kernel, [items.div_ceil(256), 1, 1], 256)
    }

    pub(super) fn with_shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }

    pub(super) fn arg(mut self, argument: impl Argument) -> Self {
        self.begins.push(self.words.len());
        argument.words(&mut self.words);
        self
    }

    /// Where each argument lies.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &u64> {
        self.begins.iter().map(|&at| &self.words[at])
    }
}
