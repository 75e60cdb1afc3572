//! Token streams: text is tokenised once, kept in a cache file, and memory-mapped.

#![allow(unsafe_code, reason = "cache files are memory-mapped")]

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use upgrayedd_nn::interrupt;

use super::documents::{Cutter, PIECE_BYTES, Part, Piece, for_each_part, kinds};
use super::options::{DataOptions, Documents};
use super::record::Skipped;
use crate::files::hash_file;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Begins every cache file; the last byte is the version of its layout.
const MAGIC: [u8; 8] = *b"UPGTOK\0\x03";
const HEADER: usize = 40;

/// Tokens of all documents, end to end, in a mapped file: magic, counts (tokens, documents, records without
/// text and with more cells than are named), `u32` tokens, `u64` document ends.
#[derive(Debug)]
pub(super) struct TokenStore {
    bytes: Bytes,
    tokens: usize,
    documents: usize,
    pub(super) skipped: Skipped,
    pub(super) file_hashes: Vec<String>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Where token caches lie: `UPGRAYEDD_CACHE`, else the user's cache folder.
///
/// # Errors
/// Returns [`Error::Malformed`] if no environment variable tells a place: neither `UPGRAYEDD_CACHE` nor
/// `XDG_CACHE_HOME` nor `HOME`.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("UPGRAYEDD_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("upgrayedd")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/upgrayedd")))
        .ok_or_else(|| {
            Error::malformed("no place for the token cache: set UPGRAYEDD_CACHE to a writable folder")
        })
}

impl TokenStore {
    /// The tokens of `files`, from the cache or tokenised now. With `in_stream`, special tokens and ends of
    /// documents are part of them.
    pub(super) fn open(
        files: &[PathBuf],
        tokenizer: &Tokenizer,
        options: &DataOptions,
        in_stream: bool,
    ) -> Result<Self> {
        for file in files {
            super::text::extension(file, &kinds())?;
            if std::fs::metadata(file).map_err(Error::io(file, "read"))?.len() == 0 {
                return Err(Error::bad_file(file, "is empty: expected text"));
            }
        }
        let file_hashes = hash_files(files)?;
        let content_hash = joint_hash(&file_hashes);
        let kinds: Vec<_> = files.iter().map(|f| f.extension().map(|e| e.to_ascii_lowercase())).collect();
        let recipe = format!(
            "{MAGIC:?} {} {content_hash} {kinds:?} {:?} {:?} {:?} {:?} {in_stream}",
            tokenizer.fingerprint(),
            options.read.text_field,
            options.read.documents,
            options.read.delimiter,
            options.read.columns
        );
        let dir = cache_dir()?.join("tokens");
        let path = dir.join(format!("{}.tok", blake3::hash(recipe.as_bytes()).to_hex()));
        if !path.is_file() {
            let no_place = |e| {
                Error::malformed(format!(
                    "{}: cannot create the token cache: {e}; set UPGRAYEDD_CACHE to a writable folder",
                    dir.display()
                ))
            };
            std::fs::create_dir_all(&dir).map_err(no_place)?;
            tokenise(files, tokenizer, options, in_stream, &dir, &path)?;
        }
        Self::map(&path, file_hashes)
    }

    fn map(path: &Path, file_hashes: Vec<String>) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        // SAFETY: the map is read-only, and the file is never changed after it has been renamed into place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "read"))?;
        Self::parse(Bytes::Mapped(map), file_hashes)
            .ok_or_else(|| Error::bad_file(path, "is a damaged token cache: delete it"))
    }

    /// The tokens of texts in memory.
    pub(super) fn from_documents(
        texts: impl Iterator<Item = String>,
        tokenizer: &Tokenizer,
        options: &DataOptions,
        in_stream: bool,
    ) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        let mut writer = Writer::new(Vec::new(), tokenizer, options, in_stream);
        let memory = Path::new("memory");
        writer.out.extend_from_slice(&[0; HEADER]);
        for text in texts {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            writer.push(Part::whole(text), memory)?;
        }
        writer.flush(memory)?;
        let header = writer.header();
        let Writer { mut out, ends, .. } = writer;
        out.extend_from_slice(bytemuck::cast_slice(&ends));
        out[..HEADER].copy_from_slice(bytemuck::cast_slice(&header));
        let hash = hasher.finalize().to_hex().to_string();
        Self::parse(Bytes::Owned(out), vec![hash]).ok_or_else(|| Error::data("no text to learn from"))
    }

    fn parse(map: Bytes, file_hashes: Vec<String>) -> Option<Self> {
        let count = |at: usize| {
            map.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).unwrap_or(0) as usize
        };
        let (tokens, documents) = (count(8), count(16));
        let skipped = Skipped { without_text: count(24), with_more: count(32) };
        let length =
            tokens.checked_mul(4).and_then(|t| documents.checked_mul(8)?.checked_add(t)?.checked_add(HEADER));
        let valid = map.get(..8) == Some(&MAGIC) && length == Some(map.len());
        valid.then_some(Self { bytes: map, tokens, documents, skipped, file_hashes })
    }

    pub(super) fn len(&self) -> usize {
        self.tokens
    }

    pub(super) fn largest_token(&self) -> Option<u32> {
        let words = self.bytes[HEADER..HEADER + self.tokens * 4].as_chunks::<4>().0;
        words.par_iter().map(|b| u32::from_le_bytes(*b)).max()
    }

    /// How often a token stands there.
    pub(super) fn count_of(&self, token: u32) -> usize {
        let words = self.bytes[HEADER..HEADER + self.tokens * 4].as_chunks::<4>().0;
        words.par_iter().filter(|b| u32::from_le_bytes(**b) == token).count()
    }

    pub(super) fn slice(&self, start: usize, length: usize) -> Vec<u32> {
        let at = HEADER + start * 4;
        let words = self.bytes[at..at + length * 4].as_chunks::<4>().0;
        words.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// Token ranges of the documents, in order.
    pub(super) fn documents(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let ends = self.bytes[HEADER + self.tokens * 4..].as_chunks::<8>().0;
        debug_assert_eq!(ends.len(), self.documents);
        let mut start = 0;
        ends.iter().map(move |b| {
            let end = (u64::from_le_bytes(*b) as usize).min(self.tokens);
            let range = start.min(end)..end;
            start = end;
            range
        })
    }
}

/// blake3 of each file's contents.
pub(super) fn hash_files(files: &[PathBuf]) -> Result<Vec<String>> {
    files.iter().map(|path| hash_file(path)).collect()
}

/// One hash for several files in order.
pub(super) fn joint_hash(hashes: &[String]) -> String {
    match hashes {
        [one] => one.clone(),
        several => blake3::hash(several.concat().as_bytes()).to_hex().to_string(),
    }
}

struct Writer<'a, W> {
    out: W,
    tokenizer: &'a Tokenizer,
    in_stream: bool,
    /// Written between documents where the tokenizer frames none.
    separator: Option<u32>,
    tokens: usize,
    skipped: Skipped,
    ends: Vec<u64>,
    cutter: Cutter,
    round: Vec<Piece>,
    round_bytes: usize,
}

fn tokenise(
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    options: &DataOptions,
    in_stream: bool,
    dir: &Path,
    path: &Path,
) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in(dir).map_err(Error::io(dir, "write to the token cache in"))?;
    let mut writer = Writer::new(BufWriter::new(file), tokenizer, options, in_stream);
    let write = Error::io(path, "write");
    writer.out.write_all(&[0; HEADER]).map_err(write)?;
    for file in files {
        let Skipped { without_text, with_more } =
            for_each_part(file, options, &mut |part| writer.push(part, path))?;
        writer.skipped.without_text += without_text;
        writer.skipped.with_more += with_more;
    }
    writer.finish(path)
}

impl<'a, W: Write> Writer<'a, W> {
    fn new(out: W, tokenizer: &'a Tokenizer, options: &DataOptions, in_stream: bool) -> Self {
        let framed = !tokenizer.prefix().is_empty() || !tokenizer.suffix().is_empty();
        let separate = options.read.documents == Documents::Separate;
        let separator = tokenizer.eos().filter(|_| in_stream && !framed && !separate);
        let (cutter, round) = (Cutter::default(), Vec::new());
        Self {
            out,
            tokenizer,
            in_stream,
            separator,
            tokens: 0,
            skipped: Skipped::default(),
            ends: Vec::new(),
            cutter,
            round,
            round_bytes: 0,
        }
    }

    fn header(&self) -> [u64; 5] {
        let Skipped { without_text, with_more } = self.skipped;
        [
            u64::from_le_bytes(MAGIC),
            self.tokens as u64,
            self.ends.len() as u64,
            without_text as u64,
            with_more as u64,
        ]
    }

    fn push(&mut self, part: Part, path: &Path) -> Result<()> {
        let (round, bytes) = (&mut self.round, &mut self.round_bytes);
        self.cutter.push(part, self.tokenizer, &mut |piece| {
            *bytes += piece.text.len();
            round.push(piece);
            Ok(())
        })?;
        // A piece for each thread (they are cut somewhat short), some tenths of a second: between two rounds
        // a Ctrl-C is heard.
        if self.round_bytes >= (PIECE_BYTES - PIECE_BYTES / 16) * rayon::current_num_threads() {
            self.flush(path)
        } else {
            Ok(())
        }
    }

    /// Tokenises the pieces gathered so far, in parallel, and writes them in order.
    fn flush(&mut self, path: &Path) -> Result<()> {
        interrupt::check()?;
        let round = std::mem::take(&mut self.round);
        self.round_bytes = 0;
        let encoded: Vec<Result<Vec<u32>>> = round.par_iter().map(|p| p.encode(self.tokenizer)).collect();
        for (piece, ids) in round.iter().zip(encoded) {
            let ids = ids?;
            let mut all = Vec::with_capacity(ids.len() + 2);
            if self.in_stream && piece.starts {
                all.extend(self.separator.filter(|_| self.tokens > 0));
                all.extend(self.tokenizer.prefix());
            }
            all.extend(ids);
            if self.in_stream && piece.ends {
                all.extend(self.tokenizer.suffix());
            }
            self.tokens += all.len();
            self.out.write_all(bytemuck::cast_slice(&all)).map_err(Error::io(path, "write"))?;
            if piece.ends {
                self.ends.push(self.tokens as u64);
            }
        }
        Ok(())
    }
}

impl Writer<'_, BufWriter<tempfile::NamedTempFile>> {
    fn finish(mut self, path: &Path) -> Result<()> {
        self.flush(path)?;
        let header = self.header();
        let write = || Error::io(path, "write");
        self.out.write_all(bytemuck::cast_slice(&self.ends)).map_err(write())?;
        self.out.seek(SeekFrom::Start(0)).map_err(write())?;
        self.out.write_all(bytemuck::cast_slice(&header)).map_err(write())?;
        let file = self.out.into_inner().map_err(|e| write()(e.into_error()))?;
        file.as_file().sync_all().map_err(write())?;
        file.persist(path).map_err(|e| write()(e.error))?;
        Ok(())
    }
}
