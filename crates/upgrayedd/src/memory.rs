//! What a run holds in memory at most where weights are kept out of it (`--memory`): the layer at work, what a batch has
//! there, and what is solved for. Bytes; the sum of a stage is an upper bound.

use serde::Serialize;
use upgrayedd_nn::LOGITS;

use crate::model::Model;
use crate::score::STRETCHES;
use crate::spec::Objective;
use crate::units::{LayerUnits, Site, Sites};
use crate::weights::{Layout, Weight, Writer};
use crate::{Error, Result};

/// What one stage of a run holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Its name, a verb: measure, score, refit, read and write, learn.
    pub name: &'static str,
    /// At most, in bytes.
    pub bytes: u64,
}

/// What is done to a model.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Tokens of a sequence.
    pub length: usize,
    /// Sequences at once.
    pub batch: usize,
    /// What is scored, pruned and refitted.
    pub units: Sites,
    /// Whether units are scored by a pass over data.
    pub score: bool,
    /// Whether the scores want covariances of what is read and of gradients, as the surgeon's and `auto`'s do.
    pub curvature: bool,
    /// Whether writers are solved for.
    pub refit: bool,
    /// Whether all weights are hashed and written.
    pub write: bool,
    /// Whether another model of its size takes turns with it: what it was, or a reference.
    pub another: bool,
    /// Whether weights learn.
    pub learn: Option<Learn>,
}

impl Work {
    /// A forward pass over so many sequences at once.
    pub fn measuring(length: usize, batch: usize) -> Self {
        Self {
            length,
            batch,
            units: Sites::default(),
            score: false,
            curvature: false,
            refit: false,
            write: false,
            another: false,
            learn: None,
        }
    }
}

/// How weights learn.
#[derive(Debug, Clone, Copy)]
pub struct Learn {
    /// Whether blocks are run again in the backward pass.
    pub checkpointing: bool,
    /// Copies of all weights, or of as many numbers, that are kept beside: of the best state, or to roll back.
    pub copies: u64,
    /// Whether there is a teacher.
    pub teacher: bool,
}

/// The program itself, the text at hand, and what the allocator does not give back.
const PROGRAM: u64 = 384 << 20;
const F32: u64 = 4;
const F64: u64 = 8;
/// Rows that the output projection reads at once, and columns of their logits where those have no gradients.
const LOGIT_ROWS: u64 = 2048;
const LOGIT_COLUMNS: u64 = 2048;
/// Weights and two moments in single precision; gradients beside them while they learn.
const LEARNED: u64 = 12;

/// Sizes of a model that the stages are made of.
#[derive(Clone, Copy)]
struct Sizes {
    length: u64,
    batch: u64,
    width: u64,
    vocab: u64,
    layers: u64,
    heads: u64,
    /// Queries, keys and values of a token.
    attention: u64,
    channels: u64,
    gated: bool,
    /// The largest layer, and everything outside of layers, as files have them.
    layer: u64,
    outside: u64,
    /// Elements of the largest matrix of a layer, of all weights, and of those that files have otherwise.
    matrix: u64,
    parameters: u64,
    rearranged: u64,
    /// Of the widest writer whose units may go: what it reads, the heads' or the channels'.
    features: u64,
    predicts_tokens: bool,
    caps_logits: bool,
}

impl Sizes {
    fn of(model: &Model, work: Work) -> Self {
        let spec = model.spec();
        let largest = |of: &dyn Fn(&LayerUnits) -> usize| {
            model.units().layers().iter().map(of).max().unwrap_or(0) as u64
        };
        let elements = |weight: &Weight| weight.shape(model.units()).iter().product::<usize>() as u64;
        let weights = || model.params().ids().map(|id| (id, model.weight(id)));
        let writers: Vec<_> = (0..spec.num_layers())
            .flat_map(|layer| Writer::ALL.map(|writer| model.writer(layer, writer).0))
            .collect();
        let bytes = |layer: Option<usize>| -> u64 {
            let of_layer = weights().filter(|(_, weight)| weight.layer == layer);
            of_layer
                .map(|(id, weight)| {
                    // What is solved for, and what files have otherwise, is in single precision.
                    let wide = weight.layout != Layout::Plain || work.refit && writers.contains(&id);
                    elements(weight) * if wide { F32 } else { model.dtype_of(id).size() as u64 }
                })
                .sum()
        };
        let heads = largest(&|l| l.count(Site::Head));
        let channels = largest(&|l| l.count(Site::Channel));
        // Beside blocks heads are scored as beside channels.
        let mixed = work.units.blocks().next().is_some() && work.units.is_mixed();
        let of = |site| if site == Site::Channel { channels } else { heads * spec.head_dim as u64 };
        let sites = if mixed { Sites::FINEST } else { work.units.leaves() };
        Self {
            length: work.length as u64,
            batch: work.batch as u64,
            width: spec.hidden_size as u64,
            vocab: spec.vocab_size as u64,
            layers: spec.num_layers() as u64,
            heads,
            attention: largest(&|l| (l.count(Site::Head) + 2 * l.count(Site::KvGroup)) * spec.head_dim),
            channels,
            gated: spec.gated_mlp,
            layer: (0..spec.num_layers()).map(|layer| bytes(Some(layer))).max().unwrap_or(0),
            outside: bytes(None),
            matrix: weights().filter(|(_, w)| w.layer.is_some()).map(|(_, w)| elements(w)).max().unwrap_or(0),
            parameters: weights().map(|(_, w)| elements(w)).sum(),
            rearranged: weights().filter(|(_, w)| w.layout != Layout::Plain).map(|(_, w)| elements(w)).sum(),
            features: sites.iter().map(of).max().unwrap_or(0),
            predicts_tokens: matches!(spec.objective, Objective::CausalLm | Objective::MaskedLm),
            caps_logits: spec.logit_cap.is_some(),
        }
    }

    /// Of a batch; more than 2³² are more than any machine holds.
    fn tokens(&self) -> u64 {
        self.length.saturating_mul(self.batch).min(1 << 32)
    }

    /// A stream of all tokens.
    fn stream(&self) -> u64 {
        self.tokens() * self.width * F32
    }

    /// What a block has of a batch on its way through.
    fn block(&self) -> u64 {
        let hidden = if self.gated { 3 } else { 2 } * self.channels;
        6 * self.stream() + self.tokens() * F32 * (hidden + 2 * self.attention)
    }

    /// What a block keeps of it for its gradient, and the gradients on their way back.
    fn block_again(&self) -> u64 {
        2 * self.block() + self.matrix * F32
    }

    /// Logits without gradients.
    fn logits(&self) -> u64 {
        match (self.predicts_tokens, self.caps_logits) {
            (false, _) => 0,
            (true, false) => self.tokens().min(LOGIT_ROWS) * self.vocab.min(LOGIT_COLUMNS) * F32,
            (true, true) => self.logits_and_gradients(),
        }
    }

    /// Logits and the output projection in single precision.
    fn logits_and_gradients(&self) -> u64 {
        if self.predicts_tokens { 2 * LOGITS as u64 * F32 + self.width * self.vocab * F32 } else { 0 }
    }

    /// A pass with gradients of gates.
    fn scoring(&self, work: Work, base: u64) -> u64 {
        let of_channels = if work.units.leaves().contains(Site::Channel) {
            self.channels * self.length.min(STRETCHES as u64)
        } else {
            0
        };
        let gates = 2 * F32 * self.layers * self.batch.min(1 << 24) * (self.heads + of_channels);
        let backward =
            base + gates + self.layers * self.stream() + self.block_again().max(self.logits_and_gradients());
        if !work.curvature {
            return backward;
        }
        let writers = work.units.leaves().iter().count() as u64;
        let products = 3 * F32 * self.features.pow(2).max(self.width.pow(2));
        let solved = self.features.pow(2) * (5 * F64 + 4 * F32);
        (backward + self.layers * writers * self.stream() + products).max(base + solved)
    }

    /// What each stage holds at most.
    fn stages(&self, work: Work) -> Vec<Stage> {
        let of_learning = |learn: Learn| (LEARNED + F32 * learn.copies) * self.parameters;
        let base = PROGRAM + self.layer + self.outside + work.learn.map_or(0, of_learning);
        let another = if work.another { self.layer + self.outside } else { 0 };
        let forward = base + another + self.block() + self.logits();
        let mut stages = vec![Stage { name: "measure", bytes: forward }];
        if work.score {
            stages.push(Stage { name: "score", bytes: forward.max(self.scoring(work, base)) });
        }
        if work.refit {
            let (n, d) = (self.features, self.width);
            let moments = 2 * F64 * n * (n + d);
            let solved = F64 * n * (2 * n + 3 * d);
            let bytes = base + self.layer + self.block() + 4 * self.stream() + moments + solved;
            stages.push(Stage { name: "refit", bytes });
        }
        if work.write {
            // A matrix or table on its way from a type into another, and all that files have otherwise.
            let copies = 2 * F32 * self.matrix.max(self.vocab * self.width);
            stages.push(Stage { name: "read and write", bytes: base + copies + F32 * self.rearranged });
        }
        if let Some(learn) = work.learn {
            let kept = self.layers * if learn.checkpointing { self.stream() } else { self.block() };
            let teacher = if learn.teacher {
                self.layer + self.outside + self.block() + self.logits_and_gradients()
            } else {
                0
            };
            let at_work = self.block_again().max(self.logits_and_gradients()) + teacher;
            let bytes = PROGRAM + of_learning(learn) + F32 * self.parameters + kept + at_work;
            stages.push(Stage { name: "learn", bytes });
        }
        stages
    }

    /// The stage that holds most.
    fn peak(&self, work: Work) -> Stage {
        let most = self.stages(work).into_iter().max_by_key(|stage| stage.bytes);
        most.unwrap_or(Stage { name: "measure", bytes: 0 })
    }
}

/// What each stage of the work holds at most.
pub fn stages(model: &Model, work: Work) -> Vec<Stage> {
    Sizes::of(model, work).stages(work)
}

/// As many sequences at once, up to those of the work, as stay within `limit` bytes.
///
/// # Errors
/// Returns [`Error::DoesNotFit`] if one sequence at a time is too much. Where weights learn, the batch is not ours to
/// choose: then if the work does not fit as it is.
pub fn fitting_batch(model: &Model, work: Work, limit: u64) -> Result<usize> {
    let sizes = Sizes::of(model, work);
    let most = |batch: usize, work| Sizes { batch: batch as u64, ..sizes }.peak(work).bytes;
    let Some(learn) = work.learn else {
        let (mut fits, mut beyond) = (0, work.batch + 1);
        while beyond - fits > 1 {
            let middle = usize::midpoint(fits, beyond);
            if most(middle, work) <= limit { fits = middle } else { beyond = middle }
        }
        return match fits {
            0 => {
                let least = shown(most(1, work));
                Err(too_much(
                    &sizes,
                    work,
                    limit,
                    &format!("it takes {least} at least, for one sequence at a time"),
                ))
            }
            batch => Ok(batch),
        };
    };
    if most(work.batch, work) <= limit {
        return Ok(work.batch);
    }
    let least = most(1, Work { learn: Some(Learn { checkpointing: true, ..learn }), ..work });
    let unlearned = most(1, Work { learn: None, ..work });
    let less = if least <= limit && learn.checkpointing {
        "a smaller batch_size (with more gradient_accumulation) would fit".to_owned()
    } else if least <= limit {
        "gradient_checkpointing, or with it a smaller batch_size (and more gradient_accumulation), would fit"
            .to_owned()
    } else if unlearned <= limit {
        format!(
            "it takes {} at least, for one sequence at a time with gradient_checkpointing; max_steps_per_cycle 0 (prune, refit and \
             grow without learning) would fit",
            shown(least)
        )
    } else {
        format!("it takes {} at least, for one sequence at a time with gradient_checkpointing", shown(least))
    };
    Err(too_much(&sizes, work, limit, &less))
}

fn too_much(sizes: &Sizes, work: Work, limit: u64, less: &str) -> Error {
    let Stage { name, bytes } = sizes.peak(work);
    Error::does_not_fit(format!(
        "memory is {}, and this model and batch_size {} take {} to {name}: {less}",
        shown(limit),
        work.batch,
        shown(bytes)
    ))
}

/// Bytes for people.
pub fn shown(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}
