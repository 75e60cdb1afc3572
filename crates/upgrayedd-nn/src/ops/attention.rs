//! Scaled dot-product attention with grouped queries, masks and a gate per head (Vaswani et al. 2017; Michel
//! et al. 2019 for gates; Raffel et al. 2020 for what is added by distance).

use std::sync::Arc;

use crate::kernels::{self, AttentionGrads, AttentionShape, EntropyProbe};
use crate::tape::Taken;
use crate::{Result, Tape, Tensor, Var};

/// What attention reads: `q (B·Tq, H·d)`, `k` and `v (B·Tk, G·d)`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// Queries.
    pub q: &'a Var,
    /// Keys.
    pub k: &'a Var,
    /// Values.
    pub v: &'a Var,
    /// `(H)` or `(B, H)`, the latter for gradients per sequence.
    pub gates: Option<&'a Var>,
    /// `(Tq + Tk − 1, columns)`: added to scores by the distance from query to key, from that of the last query
    /// and the first key on; [`AttentionShape::bias_columns`] says whose column is whose.
    pub bias: Option<&'a Var>,
}

/// `gate_h · softmax(scale · q_h kᵀ + bias_h) v` for every head.
///
/// Scores of all heads never exist at once, and none are kept for the backward pass.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the tensors or the mask do not have these shapes, or there are more queries than keys.
pub fn attention(
    tape: &mut Tape<'_>,
    inputs: AttentionInputs<'_>,
    shape: &Arc<AttentionShape>,
) -> Result<Var> {
    Ok(run(tape, inputs, shape, false)?.0)
}

/// [`attention`] that also measures the normalised entropy of each head's attention.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// As [`attention`].
pub fn attention_with_entropy(
    tape: &mut Tape<'_>,
    inputs: AttentionInputs<'_>,
    shape: &Arc<AttentionShape>,
) -> Result<(Var, EntropyProbe)> {
    let (out, entropy) = run(tape, inputs, shape, true)?;
    Ok((out, entropy.unwrap_or_default()))
}

/// The tensors that the backward pass reads once more.
struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Saved {
    fn inputs(&self) -> kernels::AttentionInputs<'_> {
        let Self { q, k, v, gates, bias } = self;
        kernels::AttentionInputs { q, k, v, gates: gates.as_ref(), bias: bias.as_ref() }
    }
}

fn run(
    tape: &mut Tape<'_>,
    inputs: AttentionInputs<'_>,
    shape: &Arc<AttentionShape>,
    entropy: bool,
) -> Result<(Var, Option<EntropyProbe>)> {
    check(inputs, shape);
    let AttentionInputs { q, k, v, gates, bias } = inputs;
    let tensor = |var: &Var| var.tensor().clone();
    let saved =
        Saved { q: tensor(q), k: tensor(k), v: tensor(v), gates: gates.map(tensor), bias: bias.map(tensor) };
    let result = tape.kernels().attention(&saved.inputs(), shape, entropy);
    let sources =
        [q.source(), k.source(), v.source(), gates.and_then(Var::source), bias.and_then(Var::source)];
    let (shape, left) = (Arc::clone(shape), result.left);
    let inputs: Vec<&Var> = [q, k, v].into_iter().chain(gates).chain(bias).collect();
    let out = tape.record(result.out, &inputs, move |dout, grads| {
        let of = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| t.shape().to_vec()).unwrap_or_default();
        let [dq, dk, dv, dg, db] = sources;
        let mut taken = [
            grads.take(dq, saved.q.shape()),
            grads.take(dk, saved.k.shape()),
            grads.take(dv, saved.v.shape()),
            grads.take(dg, &of(&saved.gates)),
            grads.take(db, &of(&saved.bias)),
        ];
        let [q, k, v, gates, bias] = taken.each_mut().map(|t| t.as_mut().map(Taken::sink));
        let sinks = AttentionGrads { q, k, v, gates, bias };
        grads.kernels.attention_grad(dout, &saved.inputs(), &left, &shape, sinks);
        taken.into_iter().for_each(|t| grads.put(t));
        Ok(())
    })?;
    Ok((out, result.entropy))
}

fn check(inputs: AttentionInputs<'_>, shape: &AttentionShape) {
    let AttentionInputs { q, k, v, gates, bias } = inputs;
    let AttentionShape { batch, queries, keys, head_dim, kv_heads, .. } = *shape;
    let heads = shape.heads();
    assert!(queries <= keys && head_dim > 0, "attention: {queries} queries against {keys} keys");
    assert!(
        shape.kv_of.iter().all(|&g| g < kv_heads),
        "attention: a query head reads a missing key/value head"
    );
    assert_eq!(q.tensor().shape(), [batch * queries, heads * head_dim], "attention: queries");
    let rows = k.tensor().rows();
    assert!(
        rows == batch * keys || (batch == 1 && rows >= keys),
        "attention: {rows} key rows for {batch} × {keys}"
    );
    assert_eq!(k.tensor().cols(), kv_heads * head_dim, "attention: key columns");
    assert_eq!(k.tensor().shape(), v.tensor().shape(), "attention: keys and values");
    if let Some(gates) = gates {
        assert!(gates.tensor().len() == heads || gates.tensor().len() == batch * heads, "attention: gates");
    }
    if let Some(bias) = bias {
        let (distances, columns) = (bias.tensor().rows(), bias.tensor().cols());
        assert_eq!(distances, queries + keys - 1, "attention: distances");
        assert_eq!(shape.bias_columns.len(), heads, "attention: columns of the bias");
        assert!(shape.bias_columns.iter().all(|&c| c < columns), "attention: no such column of the bias");
    }
    if let Some(mask) = &shape.key_mask {
        assert_eq!(mask.len(), batch * keys, "attention: key mask");
    }
}
