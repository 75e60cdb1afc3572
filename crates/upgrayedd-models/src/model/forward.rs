//! The forward pass of every family, as its spec says.

use std::ops::Range;
use std::sync::Arc;

use upgrayedd_nn::ops;
use upgrayedd_nn::{Result, Tape, Tensor, Var};

use super::batch::{Batch, Hooks, LayerVars};
use super::state::{LinearIds, Model};
use crate::spec::{Norm, Pooling, Positions};
use crate::weights::{Kind, Part, Writer};

impl Model {
    pub(super) fn linear(&self, tape: &mut Tape<'_>, x: &Var, ids: LinearIds) -> Result<Var> {
        let weight = tape.param(ids.weight);
        let bias = ids.bias.map(|b| tape.param(b));
        ops::linear(tape, x, &weight, bias.as_ref())
    }

    fn norm(&self, tape: &mut Tape<'_>, x: &Var, ids: LinearIds) -> Result<Var> {
        let weight = tape.param(ids.weight);
        let (bias, eps) = (ids.bias.map(|b| tape.param(b)), self.spec.norm_eps);
        match self.spec.norm {
            Norm::Layer => ops::layer_norm(tape, x, &weight, bias.as_ref(), eps),
            Norm::Rms => ops::rms_norm(tape, x, &weight, 0.0, eps),
            Norm::RmsAroundOne => ops::rms_norm(tape, x, &weight, 1.0, eps),
        }
    }

    /// `x` under a norm, if there is one.
    pub(super) fn normed(&self, tape: &mut Tape<'_>, x: Var, norm: Option<LinearIds>) -> Result<Var> {
        norm.map_or(Ok(x.clone()), |ids| self.norm(tape, &x, ids))
    }

    fn outside(&self, part: Part) -> Option<LinearIds> {
        let id = |kind| self.find(None, part, kind);
        Some(LinearIds { weight: id(Kind::Weight)?, bias: id(Kind::Bias) })
    }

    /// The position of each token of a batch that continues `past` others: its place in the sequence, or its
    /// row in the table of learned positions.
    pub fn positions_for(&self, batch: &Batch, past: usize) -> Arc<Vec<u32>> {
        let first = (self.spec.first_position + past) as u32;
        let counts = |at: usize| match (self.spec.positions, &batch.mask) {
            (Positions::WithoutToken(padding), _) => batch.tokens[at] != padding,
            (Positions::Unmasked, Some(mask)) => mask[at] != 0,
            _ => true,
        };
        let mut rows = Vec::with_capacity(batch.batch * batch.len);
        for sequence in 0..batch.batch {
            let mut next = first;
            for at in sequence * batch.len..(sequence + 1) * batch.len {
                rows.push(if counts(at) { next } else { first - 1 });
                next += u32::from(counts(at));
            }
        }
        Arc::new(rows)
    }

    /// The last hidden states, `(batch · len, d)`, after the final norm.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length; if `hooks.cache` has no room for it.
    pub fn hidden<'p>(&'p self, tape: &mut Tape<'p>, batch: &Batch, hooks: &mut Hooks<'_>) -> Result<Var> {
        let past = hooks.cache.as_ref().map_or(0, |c| c.len);
        let positions = self.positions_for(batch, past);
        let x = self.embed(tape, batch, &positions)?;
        let x = self.run_layers(tape, 0..self.layers.len(), x, batch, &positions, hooks)?;
        if let Some(cache) = &mut hooks.cache {
            cache.len += batch.len;
        }
        self.final_norm(tape, x)
    }

    /// Runs as far as the last layer's attention, for hooks that see nothing beyond it.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length.
    pub fn attend(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Result<()> {
        let mut tape = Tape::inference(self.device, &self.params);
        let positions = self.positions_for(batch, 0);
        let x = self.embed(&mut tape, batch, &positions)?;
        let Some(last) = self.layers.len().checked_sub(1) else { return Ok(()) };
        let x = self.run_layers(&mut tape, 0..last, x, batch, &positions, hooks)?;
        let vars = hooks.at(last);
        let gates = vars.gates(Writer::Attention);
        self.attention_context(&mut tape, last, &x, gates, batch, &positions, hooks)?;
        self.let_go(last);
        Ok(())
    }

    /// Some of the layers.
    pub(super) fn run_layers<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        layers: Range<usize>,
        mut x: Var,
        batch: &Batch,
        positions: &Arc<Vec<u32>>,
        hooks: &mut Hooks<'_>,
    ) -> Result<Var> {
        let recomputed = tape.has_segments().then(|| Arc::new(batch.clone()));
        for layer in layers {
            if let Some(inputs) = hooks.inputs.as_deref_mut() {
                inputs.push(x.tensor().clone());
            }
            let vars = hooks.at(layer);
            x = match recomputed.clone() {
                None => self.layer(tape, layer, x, &vars, batch, positions, hooks)?,
                Some(kept_batch) => {
                    let above = (layer + 1).min(self.layers.len() - 1);
                    let positions_again = positions.clone();
                    let inputs: Vec<Var> = std::iter::once(x).chain(vars.vars().cloned()).collect();
                    // What the hooks see, they see once.
                    let first = |tape: &mut Tape<'_>, inputs: &[Var]| {
                        let given = vars.with(&inputs[1..]);
                        self.layer(tape, layer, inputs[0].clone(), &given, batch, positions, hooks)
                    };
                    let vars = vars.clone();
                    tape.segment(&inputs, first, move |tape, inputs| {
                        let (x, given, nothing) =
                            (inputs[0].clone(), vars.with(&inputs[1..]), &mut Hooks::default());
                        self.let_go(above);
                        self.layer(tape, layer, x, &given, &kept_batch, &positions_again, nothing)
                    })?
                }
            };
            self.let_go(layer);
        }
        Ok(x)
    }

    pub(super) fn final_norm(&self, tape: &mut Tape<'_>, x: Var) -> Result<Var> {
        self.normed(tape, x, self.outside(Part::FinalNorm))
    }

    /// The residual stream before the first layer, `(batch · len, d)`.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position is beyond the model's tables.
    pub fn embed(&self, tape: &mut Tape<'_>, batch: &Batch, positions: &Arc<Vec<u32>>) -> Result<Var> {
        let mut sum: Option<Var> = None;
        let types = || batch.types.clone().unwrap_or_else(|| Arc::new(vec![0; batch.tokens.len()]));
        for (part, ids) in [
            (Part::Tokens, batch.tokens.clone()),
            (Part::Positions, positions.clone()),
            (Part::Types, types()),
        ] {
            let Some(id) = self.find(None, part, Kind::Weight) else { continue };
            let table = tape.param(id);
            let mut rows = ops::embedding(tape, &table, &ids)?;
            if let (Part::Tokens, Some(factor)) = (part, self.spec.embedding_scale) {
                rows = ops::scale(tape, &rows, self.dtype_of(id).round(factor))?;
            }
            sum = Some(match sum {
                Some(sum) => ops::add(tape, &sum, &rows)?,
                None => rows,
            });
        }
        let Some(sum) = sum else { unreachable!("every family has token embeddings") };
        self.normed(tape, sum, self.outside(Part::EmbedNorm))
    }

    /// One layer, with gates that overrule its own and what is added to what its writers make.
    #[expect(clippy::too_many_arguments, reason = "a batch, where it is, and what is wanted of it")]
    fn layer(
        &self,
        tape: &mut Tape<'_>,
        index: usize,
        x: Var,
        vars: &LayerVars,
        batch: &Batch,
        positions: &Arc<Vec<u32>>,
        hooks: &mut Hooks<'_>,
    ) -> Result<Var> {
        let gates = vars.gates(Writer::Attention);
        let context = self.attention_context(tape, index, &x, gates, batch, positions, hooks)?;
        let (x, read) = self.after_attention(tape, index, x, context, vars)?;
        let hidden = self.mlp_hidden(tape, index, &read, vars.gates(Writer::Mlp), hooks)?;
        drop(read);
        self.write(tape, index, Writer::Mlp, &x, hidden, vars)
    }

    /// What stands between hidden states and the output projection, and the projection itself.
    pub(super) fn before_logits(&self, tape: &mut Tape<'_>, mut x: Var) -> Result<(Var, LinearIds)> {
        if let Some(ids) = self.outside(Part::HeadTransform) {
            x = self.linear(tape, &x, ids)?;
            x = ops::activation(tape, self.spec.head_activation, &x)?;
        }
        x = self.normed(tape, x, self.outside(Part::HeadNorm))?;
        if let (Some(_), Some(ids)) = (self.spec.objective.outputs(), self.outside(Part::Pooler)) {
            x = self.linear(tape, &x, ids)?;
            x = ops::activation(tape, self.spec.pooler_activation, &x)?;
        }
        let tied =
            [Part::Head, Part::Tokens].into_iter().find_map(|part| self.find(None, part, Kind::Weight));
        let Some(weight) = tied else { unreachable!("every family has token embeddings") };
        Ok((x, LinearIds { weight, bias: self.find(None, Part::Head, Kind::Bias) }))
    }

    /// Logits of every position `(batch · len, V)`, or of every sequence `(batch, labels)` for a classifier.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length.
    pub fn logits(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Result<Tensor> {
        let mut tape = Tape::inference(self.device, &self.params);
        let mut hidden = self.hidden(&mut tape, batch, hooks)?;
        if self.spec.objective.outputs().is_some() {
            hidden = self.pool(&mut tape, &hidden, batch)?;
        }
        self.predict(&mut tape, hidden)
    }

    /// What a classifier looks at of each sequence, `(batch, d)`.
    pub(super) fn pool(&self, tape: &mut Tape<'_>, hidden: &Var, batch: &Batch) -> Result<Var> {
        match self.spec.pooling {
            Pooling::Mean => ops::mean_rows(tape, hidden, batch.len, batch.mask.as_deref()),
            Pooling::First => {
                let first = Arc::new((0..batch.batch as u32).map(|b| b * batch.len as u32).collect());
                ops::select_rows(tape, hidden, &first)
            }
        }
    }

    /// Logits of the batch's last position only, `(batch, V)`.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length; if `hooks.cache` has no room for it.
    pub fn last_logits(&self, batch: &Batch, hooks: &mut Hooks<'_>) -> Result<Tensor> {
        let mut tape = Tape::inference(self.device, &self.params);
        let hidden = self.hidden(&mut tape, batch, hooks)?;
        let last = Arc::new((1..=batch.batch).map(|b| (b * batch.len - 1) as u32).collect());
        let hidden = ops::select_rows(&mut tape, &hidden, &last)?;
        self.predict(&mut tape, hidden)
    }

    fn predict(&self, tape: &mut Tape<'_>, hidden: Var) -> Result<Tensor> {
        let (x, ids) = self.before_logits(tape, hidden)?;
        let mut logits = self.linear(tape, &x, ids)?;
        if let Some(cap) = self.spec.logit_cap {
            logits = ops::soft_cap(tape, &logits, cap)?;
        }
        let read = logits.tensor().to_host();
        self.device.settle()?;
        Ok(read)
    }
}
