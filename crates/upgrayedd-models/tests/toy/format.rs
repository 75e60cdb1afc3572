//! A format of the caller's own: names and shapes of the weights as text.

use std::path::Path;

use upgrayedd_models::export::{Format, Kind, tensors};
use upgrayedd_models::files::{DType, write_file};
use upgrayedd_models::{Model, Result};

pub static FORMAT: Format = Format {
    name: "shapes",
    summary: "names and shapes",
    note: |_| "nothing loads it".to_owned(),
    usage: |_, _| String::new(),
    kind: Kind::File,
    write,
};

fn write(model: &Model, _: Option<DType>, dir: &Path) -> Result<()> {
    let lines =
        tensors(model, false).into_iter().map(|(name, tensor, _)| format!("{name} {:?}\n", tensor.shape()));
    write_file(&dir.join("shapes.txt"), lines.collect::<String>().as_bytes())
}
