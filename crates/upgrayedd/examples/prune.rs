//! Prunes chosen heads and writes the smaller model: `prune MODEL '{"0": [1, 3], "2": [0]}' OUT_DIR`.
#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::path::Path;

use upgrayedd::export::{HF, export};
use upgrayedd::load::LoadOptions;
use upgrayedd::surgery;
use upgrayedd::units::heads_by_layer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, heads, out] = &arguments[..] else {
        return Err("usage: prune MODEL HEADS_BY_LAYER OUT_DIR".into());
    };
    let selection = heads_by_layer(serde_json::from_str(heads)?);
    let mut model = upgrayedd::open(model, &LoadOptions::default())?;
    let before = model.num_parameters();
    surgery::remove(&mut model, None, &selection, 0, None)?;
    export(&model, &HF, None, Path::new(out))?;
    println!("{before} → {} parameters in {out}", model.num_parameters());
    Ok(())
}
