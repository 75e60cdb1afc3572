//! Writes a model's logits for some tokens: `logits MODEL '[1, 15, 3]' OUT.safetensors` (tensor `logits`, one
//! row a token).

use std::path::Path;
use std::sync::Arc;

use upgrayedd::files::DType;
use upgrayedd::files::safetensors_file;
use upgrayedd::load::LoadOptions;
use upgrayedd::model::{Batch, Hooks};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, out] = &arguments[..] else {
        return Err("usage: logits MODEL TOKENS OUT.safetensors".into());
    };
    let tokens: Vec<u32> = serde_json::from_str(tokens)?;
    let model = upgrayedd::open(model, &LoadOptions::default())?;
    let batch = Batch { batch: 1, len: tokens.len(), tokens: Arc::new(tokens), ..Batch::default() };
    let logits = model.logits(&batch, &mut Hooks::default())?;
    safetensors_file::write(
        Path::new(out),
        vec![("logits".to_owned(), logits, DType::F32)],
        Default::default(),
    )?;
    Ok(())
}
