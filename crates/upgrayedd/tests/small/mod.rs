//! The built-in model in runs of a second, and text for it.

use upgrayedd::data::{DataOptions, Dataset};
use upgrayedd::event::Silent;
use upgrayedd::load::LoadOptions;
use upgrayedd::pipeline::Pipeline;
use upgrayedd::{Model, OptimizeConfig, builtin};

/// What a run ends with, read from its folder.
pub fn result(config: OptimizeConfig) -> Model {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    Pipeline::new(config).unwrap().run(&out, &mut Silent).unwrap();
    upgrayedd::open(&out.to_string_lossy(), &LoadOptions::default()).unwrap()
}

/// Stories in windows of 32.
pub fn data(model: &Model, stories: u64) -> Dataset {
    let options = DataOptions { sequence_length: 32, ..DataOptions::default() };
    let tokenizer = model.tokenizer().unwrap();
    Dataset::from_documents(builtin::stories(1, stories), model, &tokenizer, &options).unwrap()
}
