//! What a checkpoint's head is for.

use crate::spec::Objective;

/// What a checkpoint's head is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Next-token prediction.
    CausalLm,
    /// Masked-token prediction.
    MaskedLm,
    /// Sequence classification.
    Classifier,
    /// No head.
    Encoder,
}

impl Task {
    /// The task of a model with this objective.
    pub fn of(objective: Objective) -> Self {
        match objective {
            Objective::CausalLm => Self::CausalLm,
            Objective::MaskedLm => Self::MaskedLm,
            Objective::Classifier { .. } | Objective::MultiLabel { .. } => Self::Classifier,
            Objective::Encoder => Self::Encoder,
        }
    }
}
