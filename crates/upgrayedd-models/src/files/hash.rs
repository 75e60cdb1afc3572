//! Checksums.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use upgrayedd_nn::interrupt;

use crate::{Error, Result};

/// blake3 of a file's contents, in hexadecimal digits.
///
/// # Errors
/// Returns [`Error::Io`] if the system cannot read the file, and [`Error::Interrupted`] if the work is
/// stopped.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut buffer = vec![0; 1 << 20];
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    loop {
        interrupt::check()?;
        match file.read(&mut buffer).map_err(Error::io(path, "read"))? {
            0 => return Ok(hasher.finalize().to_hex().to_string()),
            count => hasher.update(&buffer[..count]),
        };
    }
}
