//! Scaled dot-product attention with grouped queries, masks and a gate per head (Vaswani et al. 2017; Michel
//! et al. 2019 for gates).

use std::sync::Arc;

use crate::kernels::{AttentionGrads, AttentionShape, EntropyProbe};
use crate::tape::Taken;
use crate::{Result, Tape, Var};

/// `gate_h · softmax(scale · q_h kᵀ) v` for every head.
///
/// `q (B·Tq, H·d)`, `k` and `v (B·Tk, G·d)`; `gates` is `(H)` or `(B, H)`, the latter for gradients per
/// sequence. Scores of all heads never exist at once, and none are kept for the backward pass.
///
/// # Errors
/// Returns [`crate::Error::Interrupted`] if the work is stopped.
///
/// # Panics
/// If the tensors or the mask do not have these shapes, or there are more queries than keys.
pub fn attention(
    tape: &mut Tape<'_>,
    q: &Var,
    k: &Var,
    v: &Var,
    gates: Option<&Var>,
    shape: &Arc<AttentionShape>,
) -> Result<Var> {
    Ok(run(tape, q, k, v, gates, shape, false)?.0)
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
    q: &Var,
    k: &Var,
    v: &Var,
    gates: Option<&Var>,
    shape: &Arc<AttentionShape>,
) -> Result<(Var, EntropyProbe)> {
    let (out, entropy) = run(tape, q, k, v, gates, shape, true)?;
    Ok((out, entropy.unwrap_or_default()))
}

fn run(
    tape: &mut Tape<'_>,
    q: &Var,
    k: &Var,
    v: &Var,
    gates: Option<&Var>,
    shape: &Arc<AttentionShape>,
    entropy: bool,
) -> Result<(Var, Option<EntropyProbe>)> {
    check(q, k, v, gates, shape);
    let result =
        tape.kernels().attention(q.tensor(), k.tensor(), v.tensor(), gates.map(Var::tensor), shape, entropy);
    let (dq, dk, dv, dg) = (q.source(), k.source(), v.source(), gates.and_then(Var::source));
    let (q_saved, k_saved, v_saved) = (q.tensor().clone(), k.tensor().clone(), v.tensor().clone());
    let gates_saved = gates.map(|g| g.tensor().clone());
    let (shape, lse) = (Arc::clone(shape), result.lse);
    let mut inputs = vec![q, k, v];
    inputs.extend(gates);
    let out = tape.record(result.out, &inputs, move |dout, grads| {
        let gate_shape = gates_saved.as_ref().map(|g| g.shape().to_vec()).unwrap_or_default();
        let mut taken = [
            grads.take(dq, q_saved.shape()),
            grads.take(dk, k_saved.shape()),
            grads.take(dv, v_saved.shape()),
            grads.take(dg, &gate_shape),
        ];
        let [q, k, v, gates] = taken.each_mut().map(|t| t.as_mut().map(Taken::sink));
        let sinks = AttentionGrads { q, k, v, gates };
        grads.kernels.attention_grad(
            dout,
            &q_saved,
            &k_saved,
            &v_saved,
            gates_saved.as_ref(),
            &lse,
            &shape,
            sinks,
        );
        taken.into_iter().for_each(|t| grads.put(t));
        Ok(())
    })?;
    Ok((out, result.entropy))
}

fn check(q: &Var, k: &Var, v: &Var, gates: Option<&Var>, shape: &AttentionShape) {
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
    if let Some(mask) = &shape.key_mask {
        assert_eq!(mask.len(), batch * keys, "attention: key mask");
    }
}
