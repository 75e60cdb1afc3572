//! BERT: bidirectional, LayerNorm after each half-block, padding masks; masked-LM, classifier or plain
//! encoder (Devlin et al. 2019).

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::encoder;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{Fate::Idle, Keys, NO_ROPE};
use crate::spec::{ModelSpec, Objective};
use crate::weights::{Kind, Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "bert",
    architectures: &[
        Architecture::encoder("BertModel"),
        Architecture::masked_lm("BertForMaskedLM"),
        Architecture::masked_lm("BertForPreTraining"),
        Architecture::classifier("BertForSequenceClassification"),
    ],
    modeling: encoder::modeling!("bert", "Bert", "bert"),
    base_prefix: "bert.",
    marker: encoder::MARKER,
    task_markers: &[
        ("cls.predictions.transform.dense.weight", Task::MaskedLm),
        ("classifier.weight", Task::Classifier),
    ],
    config_aliases: &[],
    keys: &[KEYS, encoder::KEYS, NO_ROPE],
    output_head: Some("cls.predictions.decoder.weight"),
    // One bias under two names; what the decoder itself has is what transformers computes with.
    other_names: &[("cls.predictions.bias", "cls.predictions.decoder.bias")],
    old_names: &[],
    tokenizer: TokenizerClass::Usually("BertTokenizer"),
    types_are_tokens: false,
    buffers: encoder::BUFFERS,
    shape: Shape { pruned_heads: true, ..Shape::ENCODER },
    parse,
    weights,
    module: |layer| format!("bert.encoder.layer.{layer}.attention.self"),
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[
    ("pooler_fc_size", Idle("of Google's first files, without effect in transformers")),
    ("pooler_num_attention_heads", Idle("of Google's first files, without effect in transformers")),
    ("pooler_num_fc_layers", Idle("of Google's first files, without effect in transformers")),
    ("pooler_size_per_head", Idle("of Google's first files, without effect in transformers")),
    ("pooler_type", Idle("of Google's first files, without effect in transformers")),
    ("directionality", Idle("of Google's first files, without effect in transformers")),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let spec = encoder::spec(config, task, 30_522)?;
    Ok(ModelSpec { head_activation: spec.activation, ..spec })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    encoder::add_base(&mut table, "bert");
    match spec.objective {
        Objective::Classifier { .. } | Objective::MultiLabel { .. } => {
            table.add(Part::Pooler, "bert.pooler.dense").add(Part::Head, "classifier");
        }
        Objective::MaskedLm => {
            table.add_optional(Part::Pooler, "bert.pooler.dense");
            // The head for next-sentence prediction of a BertForPreTraining comes along; nothing is learned
            // with it.
            table.add_optional(Part::NextSentence, "cls.seq_relationship");
            table.add(Part::HeadTransform, "cls.predictions.transform.dense");
            table.add(Part::HeadNorm, "cls.predictions.transform.LayerNorm");
            table.add_one(Part::Head, Kind::Bias, "cls.predictions.bias");
            table.add_one(Part::Head, Kind::Weight, "cls.predictions.decoder.weight");
        }
        _ => {
            table.add_optional(Part::Pooler, "bert.pooler.dense");
        }
    }
    table.finish()
}
