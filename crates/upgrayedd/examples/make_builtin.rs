//! Trains the built-in model from nothing: `cargo run --release -p upgrayedd --example make_builtin --
//! OUT_DIR`.
//!
//! The files in `crates/upgrayedd/src/builtin/` are what it writes, bit for bit on the same kind of
//! processor.
#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out: PathBuf = std::env::args().nth(1).ok_or("usage: make_builtin OUT_DIR")?.into();
    upgrayedd::builtin::make(&out, |report| {
        if report.step % 100 == 0 {
            println!("step {} of {}: loss {:.4}", report.step, report.steps, report.loss);
        }
    })?;
    println!("wrote {}", out.display());
    Ok(())
}
