//! What a model learns: the loss of each objective, and of learning from a teacher.

use std::sync::Arc;

use rand::RngExt;
use upgrayedd_nn::ops::{self, Head, IGNORE, Loss, Teacher};
use upgrayedd_nn::{Result, Tape, Tensor, Var};

use super::batch::{Batch, Distill, Hooks};
use super::state::Model;
use crate::rng;
use crate::spec::Objective;

/// A loss by numbers in the place of outputs.
type ErrorOp = fn(&mut Tape<'_>, &Var, &Tensor, f32) -> Result<Loss>;

impl Model {
    /// The objective's loss over the batch; each counted target's gradient is multiplied by `weight`.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length; if a target is none of those that the model has.
    pub fn loss<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        batch: &Batch,
        weight: f32,
        hooks: &mut Hooks<'_>,
    ) -> Result<Loss> {
        self.loss_from(tape, None, batch, weight, hooks)
    }

    /// The same from the input of a layer on, if one is given.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length; if a target is none of those that the model has; if `start` is not as wide as the
    /// model.
    pub fn loss_from<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        start: Option<(usize, Var)>,
        batch: &Batch,
        weight: f32,
        hooks: &mut Hooks<'_>,
    ) -> Result<Loss> {
        let hidden = match start {
            None => self.hidden(tape, batch, hooks)?,
            Some((layer, x)) => {
                let positions = self.positions_for(batch, 0);
                let x = self.run_layers(tape, layer..self.layers.len(), x, batch, &positions, hooks)?;
                self.final_norm(tape, x)?
            }
        };
        if self.spec.objective == Objective::Encoder {
            let rows = self.predicted_rows(tape, hidden, batch, true)?.0;
            let wanted = match hooks.wanted {
                Some(wanted) => wanted.clone(),
                None => self.reference_rows(batch)?,
            };
            return ops::relative_distance(tape, &rows, &wanted, weight);
        }
        if let Some(error) = self.error() {
            let outputs = self.outputs(tape, hidden, batch)?;
            return error(tape, &outputs, &self.counted_values(batch), weight);
        }
        let (rows, targets) = self.predicted_rows(tape, hidden, batch, false)?;
        let (rows, weights) = self.before_logits(tape, rows)?;
        let weights = (tape.param(weights.weight), weights.bias.map(|b| tape.param(b)));
        let head = Head { weight: &weights.0, bias: weights.1.as_ref(), soft_cap: self.spec.logit_cap };
        ops::cross_entropy(tape, &rows, head, &targets, weight)
    }

    /// What a plain encoder is measured against on this batch; `None` for models with an objective of their
    /// own.
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length.
    pub fn wanted_rows(&self, batch: &Batch) -> Result<Option<Tensor>> {
        (self.spec.objective == Objective::Encoder).then(|| self.reference_rows(batch)).transpose()
    }

    /// The hidden states that a plain encoder's are to agree with: those of its reference, or its own with no
    /// gates but its own.
    fn reference_rows(&self, batch: &Batch) -> Result<Tensor> {
        let reference = self.reference().map_or(self, |r| r);
        let mut tape = Tape::inference(reference.device, &reference.params);
        let hidden = reference.hidden(&mut tape, batch, &mut Hooks::default())?;
        Ok(reference.predicted_rows(&mut tape, hidden, batch, true)?.0.tensor().clone())
    }

    /// What a backward pass starts from for curvature where the loss is a distance, which is zero and flat in
    /// the reference: random signs over the length of each hidden state. The expected square of a gradient
    /// along them is the Gauss-Newton curvature of half the relative distance (Hutchinson 1990).
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length.
    pub fn random_signs<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        batch: &Batch,
        stream: &mut rng::Stream,
        hooks: &mut Hooks<'_>,
    ) -> Result<Vec<(Var, Tensor)>> {
        let hidden = self.hidden(tape, batch, hooks)?;
        let rows = self.predicted_rows(tape, hidden, batch, true)?.0;
        let mut signs = rows.tensor().to_host();
        for row in signs.data_mut().chunks_exact_mut(self.spec.hidden_size) {
            let length = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            let size = if length > 0.0 { (1.0 / length) as f32 } else { 0.0 };
            row.iter_mut().for_each(|v| *v = if stream.random::<bool>() { size } else { -size });
        }
        Ok(vec![(rows, self.device.upload(signs))])
    }

    /// The objective's loss mixed with the divergence from the teacher's predictions (Hinton et al. 2015).
    ///
    /// # Errors
    /// Returns [`upgrayedd_nn::Error::Interrupted`] if the work is stopped.
    ///
    /// # Panics
    /// If a token, a token type or a position of the batch is beyond the model's tables, or its mask has
    /// another length; if a target is none of those that the model has; if the teacher does not read and
    /// predict the same tokens.
    pub fn distillation_loss<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        batch: &Batch,
        weight: f32,
        distill: &Distill<'_>,
    ) -> Result<Loss> {
        let Distill { teacher, temperature, share } = *distill;
        if let Some(error) = self.error() {
            return self.mixed_error(tape, batch, weight, (teacher, share), error);
        }
        let mut theirs = Tape::inference(teacher.device, &teacher.params);
        let x = teacher.hidden(&mut theirs, batch, &mut Hooks::default())?;
        let x = teacher.predicted_rows(&mut theirs, x, batch, true)?.0;
        let (x, ids) = teacher.before_logits(&mut theirs, x)?;
        let bias = ids.bias.map(|b| teacher.params.get(b));
        let teacher_head = Teacher {
            x: x.tensor(),
            weight: teacher.params.get(ids.weight),
            bias,
            soft_cap: teacher.spec.logit_cap,
            temperature,
            share,
        };

        let hidden = self.hidden(tape, batch, &mut Hooks::default())?;
        let (rows, targets) = self.predicted_rows(tape, hidden, batch, true)?;
        let (rows, weights) = self.before_logits(tape, rows)?;
        let weights = (tape.param(weights.weight), weights.bias.map(|b| tape.param(b)));
        let head = Head { weight: &weights.0, bias: weights.1.as_ref(), soft_cap: self.spec.logit_cap };
        ops::distillation(tape, &rows, head, &targets, &teacher_head, weight)
    }

    /// How far outputs are from the numbers in their place, for objectives whose labels are such.
    fn error(&self) -> Option<ErrorOp> {
        match self.spec.objective {
            Objective::Classifier { labels: 1 } => Some(ops::squared_error),
            Objective::MultiLabel { .. } => Some(ops::binary_cross_entropy),
            _ => None,
        }
    }

    /// The error against the labels mixed with that against what the teacher says.
    fn mixed_error<'p>(
        &'p self,
        tape: &mut Tape<'p>,
        batch: &Batch,
        weight: f32,
        (teacher, share): (&Model, f32),
        error: ErrorOp,
    ) -> Result<Loss> {
        let mut theirs = Tape::inference(teacher.device, &teacher.params);
        let hidden = teacher.hidden(&mut theirs, batch, &mut Hooks::default())?;
        let mut theirs = teacher.outputs(&mut theirs, hidden, batch)?.tensor().clone();
        if let Objective::MultiLabel { .. } = self.spec.objective {
            let mut probabilities = theirs.to_host();
            probabilities.data_mut().iter_mut().for_each(|logit| *logit = 1.0 / (1.0 + (-*logit).exp()));
            theirs = self.device.upload(probabilities);
        }
        let hidden = self.hidden(tape, batch, &mut Hooks::default())?;
        let outputs = self.outputs(tape, hidden, batch)?;
        let mut loss = error(tape, &outputs, &self.counted_values(batch), weight * (1.0 - share))?;
        let distance = error(tape, &outputs, &theirs, weight * share)?;
        let parts = [(f64::from(1.0 - share), &loss.sum), (f64::from(share), &distance.sum)];
        loss.sum = ops::combine(self.device, &parts);
        loss.seeds.extend(distance.seeds);
        Ok(loss)
    }

    /// What a classifier says of the sequences that count, `(N, outputs)`.
    fn outputs<'p>(&'p self, tape: &mut Tape<'p>, hidden: Var, batch: &Batch) -> Result<Var> {
        let rows = self.predicted_rows(tape, hidden, batch, true)?.0;
        let (rows, ids) = self.before_logits(tape, rows)?;
        self.linear(tape, &rows, ids)
    }

    /// The rows that predict something, and their targets: logits of other rows are hardly ever computed, or
    /// never if `exact`.
    fn predicted_rows(
        &self,
        tape: &mut Tape<'_>,
        hidden: Var,
        batch: &Batch,
        exact: bool,
    ) -> Result<(Var, Vec<i64>)> {
        let hidden = match self.spec.objective.outputs() {
            Some(_) => self.pool(tape, &hidden, batch)?,
            None => hidden,
        };
        let counted: Vec<u32> =
            (0u32..).zip(&batch.targets).filter(|(_, t)| **t != IGNORE).map(|(i, _)| i).collect();
        // Dropping the last position of each causal sequence alone is not worth a copy.
        if !exact && counted.len() * 16 > batch.targets.len() * 15 {
            return Ok((hidden, batch.targets.clone()));
        }
        let targets = counted.iter().map(|&i| batch.targets[i as usize]).collect();
        Ok((ops::select_rows(tape, &hidden, &Arc::new(counted))?, targets))
    }

    /// What is to be predicted of the sequences that count, `(N, outputs)`.
    fn counted_values(&self, batch: &Batch) -> Tensor {
        let outputs = self.spec.objective.outputs().unwrap_or(1);
        let counted =
            batch.values.chunks_exact(outputs).zip(&batch.targets).filter(|(_, target)| **target != IGNORE);
        let values: Vec<f32> = counted.flat_map(|(values, _)| values).copied().collect();
        self.device.upload(Tensor::from_vec(&[values.len() / outputs, outputs], values))
    }
}
