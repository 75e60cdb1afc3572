//! RoBERTa: BERT whose positions are counted without padding, with heads of its own; masked-LM, classifier or
//! plain encoder (Liu et al. 2019). XLM-R and CamemBERT are the same model of other languages (Conneau et al.
//! 2020, Martin et al. 2020).

use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::encoder;
use crate::family::modeling::Modeling;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{Fate::Used, Keys, NO_ROPE};
use crate::spec::{ModelSpec, Objective, Positions};
use crate::weights::{Kind, Part, Table, Weight};
use crate::{Error, Result};

pub(crate) static FAMILY: Family = family(
    "roberta",
    &[
        Architecture::encoder("RobertaModel"),
        Architecture::masked_lm("RobertaForMaskedLM"),
        Architecture::classifier("RobertaForSequenceClassification"),
    ],
    encoder::modeling!("roberta", "Roberta", "roberta"),
    "RobertaTokenizer",
    |config, task| parse(config, task, 50_265),
);

pub(crate) static XLM_ROBERTA: Family = family(
    "xlm-roberta",
    &[
        Architecture::encoder("XLMRobertaModel"),
        Architecture::masked_lm("XLMRobertaForMaskedLM"),
        Architecture::classifier("XLMRobertaForSequenceClassification"),
    ],
    encoder::modeling!("xlm_roberta", "XLMRoberta", "roberta"),
    "XLMRobertaTokenizer",
    |config, task| parse(config, task, 30_522),
);

pub(crate) static CAMEMBERT: Family = family(
    "camembert",
    &[
        Architecture::encoder("CamembertModel"),
        Architecture::masked_lm("CamembertForMaskedLM"),
        Architecture::classifier("CamembertForSequenceClassification"),
    ],
    encoder::modeling!("camembert", "Camembert", "roberta"),
    "CamembertTokenizer",
    |config, task| parse(config, task, 30_522),
);

const fn family(
    model_type: &'static str,
    architectures: &'static [Architecture],
    modeling: Modeling,
    tokenizer: &'static str,
    parse: fn(&Config<'_>, Task) -> Result<ModelSpec>,
) -> Family {
    Family {
        model_type,
        architectures,
        modeling,
        base_prefix: "roberta.",
        marker: encoder::MARKER,
        task_markers: TASK_MARKERS,
        config_aliases: &[],
        keys: &[KEYS, encoder::KEYS, NO_ROPE],
        output_head: Some("lm_head.decoder.weight"),
        other_names: &[("lm_head.bias", "lm_head.decoder.bias")],
        old_names: &[],
        tokenizer: TokenizerClass::Usually(tokenizer),
        types_are_tokens: false,
        buffers: encoder::BUFFERS,
        shape: Shape { pruned_heads: true, ..Shape::ENCODER },
        parse,
        weights,
        module: |layer| format!("roberta.encoder.layer.{layer}.attention.self"),
    }
}

pub(super) const TASK_MARKERS: &[(&str, Task)] =
    &[("lm_head.dense.weight", Task::MaskedLm), ("classifier.out_proj.weight", Task::Classifier)];

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[("pad_token_id", Used)];

fn parse(config: &Config<'_>, task: Task, vocab_size: usize) -> Result<ModelSpec> {
    let spec = encoder::spec(config, task, vocab_size)?;
    positions_after(config.count("pad_token_id", 1)?, spec)
}

/// Positions that are counted without the token for padding, and begin after its row in the table.
pub(super) fn positions_after(padding: usize, spec: ModelSpec) -> Result<ModelSpec> {
    let rows = spec.max_positions;
    let max_positions = rows.checked_sub(padding + 1).filter(|n| *n > 0).ok_or_else(|| {
        Error::malformed(format!(
            "config.json: max_position_embeddings is {rows}, and positions begin after that of padding, {padding}: there are none"
        ))
    })?;
    Ok(ModelSpec {
        max_positions,
        positions: Positions::WithoutToken(padding as u32),
        first_position: padding + 1,
        ..spec
    })
}

/// The head of a masked language model or of a classifier.
pub(super) fn add_head(table: &mut Table<'_>) {
    match table.spec().objective {
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => {
            table.add(Part::Pooler, "classifier.dense").add(Part::Head, "classifier.out_proj");
        }
        Objective::MaskedLm => {
            table.add(Part::HeadTransform, "lm_head.dense");
            table.add(Part::HeadNorm, "lm_head.layer_norm");
            table.add_one(Part::Head, Kind::Bias, "lm_head.bias");
            table.add_one(Part::Head, Kind::Weight, "lm_head.decoder.weight");
        }
        _ => {}
    }
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    encoder::add_base(&mut table, "roberta");
    add_head(&mut table);
    if spec.objective == Objective::Encoder {
        table.add_optional(Part::Pooler, "roberta.pooler.dense");
    }
    table.finish()
}
