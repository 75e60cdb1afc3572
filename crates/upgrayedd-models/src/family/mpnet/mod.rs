//! MPNet: RoBERTa without token types, with a bias by distance on its attention scores; masked-LM, classifier or
//! plain encoder (Song et al. 2020).

use crate::Result;
use crate::family::config::Config;
use crate::family::definition::{Architecture, Family, TokenizerClass};
use crate::family::encoder;
use crate::family::modeling::Modeling;
use crate::family::roberta;
use crate::family::shape::Shape;
use crate::family::task::Task;
use crate::keys::{
    Fate::{Idle, Only},
    Keys, NO_ROPE,
};
use crate::spec::{ModelSpec, Objective};
use crate::weights::{Kind, Part, Table, Weight};

pub(crate) static FAMILY: Family = Family {
    model_type: "mpnet",
    architectures: &[
        Architecture::encoder("MPNetModel"),
        Architecture::masked_lm("MPNetForMaskedLM"),
        Architecture::classifier("MPNetForSequenceClassification"),
    ],
    modeling: Modeling::own(include_str!("modeling.py")),
    base_prefix: "mpnet.",
    marker: "encoder.layer.0.attention.attn.q.weight",
    task_markers: roberta::TASK_MARKERS,
    config_aliases: &[],
    keys: &[KEYS, encoder::KEYS, NO_ROPE],
    output_head: Some("lm_head.decoder.weight"),
    other_names: &[("lm_head.bias", "lm_head.decoder.bias")],
    old_names: &[],
    tokenizer: TokenizerClass::Usually("MPNetTokenizer"),
    types_are_tokens: false,
    buffers: encoder::BUFFERS,
    shape: Shape::ENCODER,
    parse,
    weights,
    module: |layer| format!("mpnet.encoder.layer.{layer}.attention.attn"),
};

/// What becomes of the keys that are the family's own.
const KEYS: Keys = &[
    ("relative_attention_num_buckets", Only(&["32"], "32 buckets of distances, as transformers takes")),
    ("pad_token_id", Idle("1 whatever it says, as in transformers")),
    ("type_vocab_size", Idle("this family has no token types")),
];

fn parse(config: &Config<'_>, task: Task) -> Result<ModelSpec> {
    let spec = roberta::positions_after(1, encoder::spec(config, task, 30_527)?)?;
    Ok(ModelSpec { type_vocab_size: 0, score_bias: true, ..spec })
}

fn weights(spec: &ModelSpec) -> Vec<Weight> {
    let mut table = Table::new(spec);
    table.add(Part::Tokens, "mpnet.embeddings.word_embeddings");
    table.add(Part::Positions, "mpnet.embeddings.position_embeddings");
    table.add(Part::EmbedNorm, "mpnet.embeddings.LayerNorm");
    table.add_one(Part::ScoreBias, Kind::Weight, "mpnet.encoder.relative_attention_bias.weight");
    for layer in 0..spec.num_layers() {
        let mut add = |part, module: &str| {
            table.add_to(layer, part, &format!("mpnet.encoder.layer.{layer}.{module}"));
        };
        add(Part::Q, "attention.attn.q");
        add(Part::K, "attention.attn.k");
        add(Part::V, "attention.attn.v");
        add(Part::O, "attention.attn.o");
        add(Part::Norm1, "attention.LayerNorm");
        add(Part::Up, "intermediate.dense");
        add(Part::Down, "output.dense");
        add(Part::Norm2, "output.LayerNorm");
    }
    roberta::add_head(&mut table);
    if spec.objective == Objective::Encoder {
        table.add_optional(Part::Pooler, "mpnet.pooler.dense");
    }
    table.finish()
}
