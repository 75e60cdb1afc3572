//! A GGUF file, version 3: what is known of the model, then its tensors.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use upgrayedd_nn::interrupt;

use crate::{Error, Result};

/// Tensors begin at multiples of it.
const ALIGNMENT: usize = 32;

/// Numbers of a block that share a scale in [`Element::Q8_0`].
pub(super) const BLOCK: usize = 32;

/// A value of what is known of the model.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

/// What numbers are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    F16,
    BF16,
    /// Blocks of 32 whole numbers from -127 to 127 and what multiplies them, in 16 bits.
    Q8_0,
}

impl Element {
    /// The number that stands for it, among types of tensors.
    fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::BF16 => 30,
        }
    }

    /// Its name, as that format's users have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
            Self::BF16 => "BF16",
        }
    }

    /// The number that stands for a file of mostly this type.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::BF16 => 32,
        }
    }

    fn bytes(self, count: usize) -> usize {
        match self {
            Self::F32 => 4 * count,
            Self::F16 | Self::BF16 => 2 * count,
            Self::Q8_0 => count / BLOCK * (BLOCK + 2),
        }
    }

    /// Appends numbers in this type; says which it cannot hold.
    fn encode(self, values: &[f32], out: &mut Vec<u8>) -> std::result::Result<(), f32> {
        let check = |value: f32, stored: f32| if stored.is_finite() { Ok(()) } else { Err(value) };
        match self {
            Self::F32 => values.iter().try_for_each(|value| {
                out.extend(value.to_le_bytes());
                check(*value, *value)
            }),
            Self::F16 => values.iter().try_for_each(|value| {
                let stored = half::f16::from_f32(*value);
                out.extend(stored.to_le_bytes());
                check(*value, stored.to_f32())
            }),
            Self::BF16 => values.iter().try_for_each(|value| {
                let stored = half::bf16::from_f32(*value);
                out.extend(stored.to_le_bytes());
                check(*value, stored.to_f32())
            }),
            Self::Q8_0 => values.chunks_exact(BLOCK).try_for_each(|block| {
                let largest = block.iter().fold(0f32, |most, v| most.max(v.abs()));
                let scale = largest / 127.0;
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                let stored = half::f16::from_f32(scale);
                out.extend(stored.to_le_bytes());
                out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
                let bad = block.iter().copied().find(|v| !v.is_finite());
                bad.map_or_else(|| check(largest, stored.to_f32()), Err)
            }),
        }
    }
}

/// A tensor to be written.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    /// Rows and columns, or one axis.
    pub(super) shape: Vec<usize>,
    pub(super) element: Element,
    /// Its numbers, asked for when it is its turn.
    pub(super) values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

/// Writes a file.
///
/// # Errors
/// Returns [`Error::NotFinite`] for a number that its type cannot hold, [`Error::Io`] if the system cannot write, and
/// [`Error::Interrupted`] if the work is stopped.
pub(super) fn write(path: &Path, entries: &[(String, Entry)], tensors: &[Tensor<'_>]) -> Result<()> {
    let io = || Error::io(path, "write");
    let mut head = Vec::from(*b"GGUF");
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((entries.len() as u64).to_le_bytes());
    for (key, entry) in entries {
        text(&mut head, key);
        value(&mut head, entry);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        // The axis whose numbers lie side by side goes first.
        tensor.shape.iter().rev().for_each(|size| head.extend((*size as u64).to_le_bytes()));
        head.extend(tensor.element.code().to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += tensor.element.bytes(tensor.shape.iter().product()).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    let mut file = BufWriter::new(File::create(path).map_err(io())?);
    file.write_all(&head).map_err(io())?;
    for tensor in tensors {
        interrupt::check()?;
        let mut bytes = Vec::new();
        tensor.element.encode(&(tensor.values)(), &mut bytes).map_err(|value| {
            Error::NotFinite(format!(
                "{} holds {value}, which {} cannot store: export as float32 or bfloat16",
                tensor.name,
                tensor.element.name()
            ))
        })?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(io())?;
    }
    let file = file.into_inner().map_err(|e| Error::io(path, "write")(e.into_error()))?;
    file.sync_all().map_err(io())
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A value after the number that stands for its type.
fn value(out: &mut Vec<u8>, entry: &Entry) {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const BOOL: u32 = 7;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
    let array = |out: &mut Vec<u8>, of: u32, length: usize| {
        kind(out, ARRAY);
        kind(out, of);
        out.extend((length as u64).to_le_bytes());
    };
    match entry {
        Entry::U32(number) => {
            kind(out, U32);
            out.extend(number.to_le_bytes());
        }
        Entry::F32(number) => {
            kind(out, F32);
            out.extend(number.to_le_bytes());
        }
        Entry::Bool(flag) => {
            kind(out, BOOL);
            out.push(u8::from(*flag));
        }
        Entry::Text(string) => {
            kind(out, TEXT);
            text(out, string);
        }
        Entry::U32s(list) => {
            array(out, U32, list.len());
            list.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Entry::I32s(list) => {
            array(out, I32, list.len());
            list.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Entry::F32s(list) => {
            array(out, F32, list.len());
            list.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Entry::Texts(list) => {
            array(out, TEXT, list.len());
            list.iter().for_each(|string| text(out, string));
        }
    }
}
