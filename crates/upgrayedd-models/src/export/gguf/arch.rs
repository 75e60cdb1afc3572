//! Which of llama.cpp's architectures computes what a model computes.

use upgrayedd_nn::ops::Activation;

use crate::model::Model;
use crate::spec::{Block, ModelSpec, Norm, Objective, QkNorm};

/// An architecture of llama.cpp's.
#[derive(Debug, PartialEq)]
pub(super) struct Arch {
    /// Its name in files.
    pub(super) name: &'static str,
    /// The family whose plain models it has.
    family: &'static str,
    /// Whether the two numbers that are rotated together lie side by side, and not half a head apart.
    pub(super) side_by_side: bool,
    /// Whether queries, keys and values are one tensor.
    pub(super) fused_attention: bool,
    /// Whether the MLP's gate and input are one tensor.
    pub(super) fused_mlp: bool,
    /// Whether other frequencies than powers of a base can be said, by a factor for each.
    pub(super) takes_factors: bool,
    /// Whether its heads make up the width of the model.
    whole_width: bool,
    /// Which biases it has.
    biases: Biases,
    /// Which layers see all of the text: none, or every so manieth, the others a window of it.
    pub(super) windows: Option<usize>,
    activation: Activation,
    /// What it predicts by.
    pub(super) head: OutputHead,
    /// Whether what it makes is hidden states, of an encoder.
    pub(super) encodes: bool,
}

/// Weights of an output projection that an architecture reads.
#[derive(Debug, PartialEq)]
pub(super) enum OutputHead {
    /// Its own, or the embedding where there are none.
    Either,
    /// Its own, which have to be there even if they are the embedding's.
    Own,
    /// The embedding's.
    Tied,
}

/// Where an architecture can have biases, beside norms.
#[derive(Debug, PartialEq)]
enum Biases {
    Nowhere,
    /// On queries, keys and values.
    Inside,
    Everywhere,
    /// And everywhere they have to be.
    Always,
}

/// What most have.
const PLAIN: Arch = Arch {
    name: "llama",
    family: "llama",
    side_by_side: false,
    fused_attention: false,
    fused_mlp: false,
    takes_factors: false,
    whole_width: false,
    biases: Biases::Nowhere,
    windows: None,
    activation: Activation::Silu,
    head: OutputHead::Either,
    encodes: false,
};

const LLAMA: Arch = Arch { side_by_side: true, takes_factors: true, biases: Biases::Everywhere, ..PLAIN };

const GEMMA: Arch = Arch { activation: Activation::GeluTanh, ..PLAIN };

static ARCHES: [Arch; 12] = [
    LLAMA,
    // Windows are what the two differ in, and those are obeyed by a shorter context.
    Arch { family: "mistral", ..LLAMA },
    Arch { name: "smollm3", family: "smollm3", takes_factors: false, biases: Biases::Nowhere, ..LLAMA },
    Arch { name: "qwen2", family: "qwen2", whole_width: true, biases: Biases::Inside, ..PLAIN },
    Arch { name: "qwen3", family: "qwen3", ..PLAIN },
    Arch { name: "gemma2", family: "gemma2", windows: Some(2), head: OutputHead::Tied, ..GEMMA },
    Arch { name: "gemma3", family: "gemma3_text", windows: Some(6), ..GEMMA },
    Arch { name: "phi3", family: "phi3", fused_attention: true, fused_mlp: true, whole_width: true, ..PLAIN },
    Arch { name: "olmo2", family: "olmo2", head: OutputHead::Own, ..PLAIN },
    Arch {
        name: "gptneox",
        family: "gpt_neox",
        head: OutputHead::Own,
        fused_attention: true,
        biases: Biases::Always,
        activation: Activation::Gelu,
        ..PLAIN
    },
    Arch {
        name: "bert",
        family: "bert",
        biases: Biases::Always,
        activation: Activation::Gelu,
        encodes: true,
        ..PLAIN
    },
    Arch {
        name: "gpt2",
        family: "gpt2",
        fused_attention: true,
        biases: Biases::Always,
        activation: Activation::GeluTanh,
        ..PLAIN
    },
];

/// Layers that differ in their heads and channels.
static DECI: Arch = Arch { name: "deci", family: "", ..LLAMA };

/// Every fourth layer of that architecture rotates nothing.
const SMOLLM3_EVERY: usize = 4;

/// The architecture of a plain model.
pub(super) fn of_stock(model: &Model) -> Result<&'static Arch, String> {
    let family = model.family.model_type;
    let Some(arch) = ARCHES.iter().find(|arch| arch.family == family) else {
        return Err(format!("llama.cpp's architectures for {family} models are not written"));
    };
    check(arch, &model.spec)?;
    Ok(arch)
}

/// The architecture of a model whose layers differ.
pub(super) fn of_free(model: &Model) -> Result<&'static Arch, String> {
    let spec = &model.spec;
    let odd = match spec {
        _ if spec.norm != Norm::Rms || spec.layers.iter().any(|layer| layer.block != Block::PreNorm) => {
            "norms"
        }
        _ if spec.qk_norm != QkNorm::None => "norms of queries and keys",
        _ if !spec.gated_mlp => "MLPs",
        _ if spec.score_scale.is_some() || spec.score_cap.is_some() || spec.logit_cap.is_some() => "scores",
        _ if spec.embedding_scale.is_some() || spec.parallel => "blocks",
        _ if spec.layers.iter().any(|layer| layer.rope != Some(0)) => "rotations",
        _ => return check(&DECI, spec).map(|()| &DECI),
    };
    Err(format!(
        "llama.cpp's architecture for layers that differ (deci) has other {odd} than {} models",
        model.family.model_type
    ))
}

fn check(arch: &Arch, spec: &ModelSpec) -> Result<(), String> {
    let name = arch.name;
    let made = if arch.encodes { Objective::Encoder } else { Objective::CausalLm };
    if spec.objective != made {
        return Err(format!(
            "llama.cpp's {name} is a {} model, and this is a {} model",
            made.name(),
            spec.objective.name()
        ));
    }
    if spec.activation != arch.activation {
        return Err(format!("llama.cpp's {name} has another non-linearity than {:?}", spec.activation));
    }
    if arch.whole_width && spec.layers.iter().any(|layer| layer.num_heads * spec.head_dim != spec.hidden_size)
    {
        return Err(format!("heads of llama.cpp's {name} are as wide together as the model"));
    }
    let biased = match arch.biases {
        Biases::Nowhere => spec.qkv_bias || spec.out_bias || spec.mlp_bias,
        Biases::Inside => spec.out_bias || spec.mlp_bias,
        Biases::Everywhere => false,
        Biases::Always => !(spec.qkv_bias && spec.out_bias && spec.mlp_bias),
    };
    if biased {
        return Err(format!("llama.cpp's {name} has biases in other places than this model"));
    }
    if name != "phi3" && spec.ropes.iter().any(|rope| rope.long.is_some()) {
        return Err(format!("llama.cpp's {name} has no rotations for long texts"));
    }
    if arch.head == OutputHead::Tied && !spec.tied_head {
        return Err(format!(
            "llama.cpp's {name} predicts by its embedding, and this model by weights of their own"
        ));
    }
    if arch.takes_factors && spec.ropes.iter().any(|rope| 2 * rope.inv_freq.len() != spec.head_dim) {
        return Err(format!("llama.cpp's {name} rotates heads as a whole, and this model a part of them"));
    }
    let sees_all = |layer: usize, every: usize| (layer + 1).is_multiple_of(every);
    let layers = || spec.layers.iter().enumerate();
    if let Some(every) = arch.windows
        && layers().any(|(layer, of)| of.window.is_none() != sees_all(layer, every))
    {
        return Err(format!(
            "llama.cpp's {name} has windows in all layers but each {every}th, and this model in others"
        ));
    }
    let rotated = |layer: usize| name != "smollm3" || !sees_all(layer, SMOLLM3_EVERY);
    let has_ropes = !spec.ropes.is_empty();
    if has_ropes && layers().any(|(layer, of)| of.rope.is_some() != rotated(layer)) {
        return Err(format!("llama.cpp's {name} rotates heads in other layers than this model"));
    }
    Ok(())
}
