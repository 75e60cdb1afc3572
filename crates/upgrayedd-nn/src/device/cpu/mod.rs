//! The CPU: `f32` kernels on `gemm`, `rayon` and loops the compiler vectorises. Work is cut by shape, and where
//! products are cut finer for many threads, no bit depends on it.

mod attention;
mod linear;
mod loss;
mod math;
mod matmul;
mod norm;
mod pointwise;

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::{
    Activation, AdamWStep, AttentionGrads, AttentionInputs, AttentionOutput, AttentionShape, Kernels, Number,
    Sink, Value,
};
use crate::profile::Tasks;
use crate::{Result, Tensor};

/// The host's processor.
pub(crate) struct Cpu;

fn number(value: f64) -> Number {
    Number(Value::Host(value))
}

/// Logits that may exist at once on the CPU where they have gradients (16 MiB).
pub const LOGITS: usize = 4 << 20;

/// Σ x² by pieces in a fixed order.
fn sum_of_squares(x: &[f32]) -> f64 {
    let piece = |x: &[f32]| {
        f64::from(math::simd(
            #[inline(always)]
            || math::dot(x, x),
        ))
    };
    let parts: Vec<f64> = x.par_chunks(1 << 16).map_tasks(|x| x.chunks(1 << 10).map(piece).sum());
    parts.iter().sum()
}

impl Kernels for Cpu {
    fn empty(&self, shape: &[usize]) -> Tensor {
        Tensor::scratch(shape)
    }
    fn zeros(&self, shape: &[usize]) -> Tensor {
        Tensor::lasting_zeros(shape)
    }
    fn upload(&self, tensor: Tensor) -> Tensor {
        if tensor.is_on_device() { tensor.to_host() } else { tensor }
    }
    fn check(&self) -> Result<()> {
        Ok(())
    }
    fn for_products(&self, weight: &Tensor) -> Tensor {
        weight.widened()
    }
    fn multiply(&self, a: &Tensor, b: &Tensor) -> Tensor {
        linear::forward(a, b, None)
    }
    fn read(&self, numbers: &[&Number]) -> Vec<f64> {
        numbers.iter().map(|number| number.read()).collect()
    }
    fn add_assign(&self, a: &mut Tensor, b: &Tensor) {
        pointwise::add_assign(a, b);
    }
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        pointwise::add(a, b)
    }
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        linear::forward(x, w, bias)
    }
    fn linear_grad_input(&self, dy: &Tensor, w: &Tensor, dx: Sink<'_>) {
        linear::grad_input(dy, w, dx);
    }
    fn linear_grad_weight(&self, dy: &Tensor, x: &Tensor, dw: Sink<'_>) {
        linear::grad_weight(dy, x, dw);
    }
    fn linear_grad_input_rows(&self, dy: &Tensor, w: &Tensor, dx: &mut Tensor, first: usize) {
        linear::grad_input_rows(dy, w, dx, first);
    }
    fn gram(&self, x: &Tensor) -> Tensor {
        linear::gram(x)
    }
    fn sum_rows(&self, dy: &Tensor, db: Sink<'_>) {
        linear::sum_rows(dy, db);
    }
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> (Tensor, Tensor) {
        norm::layer_norm(x, weight, bias, eps)
    }
    fn layer_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        stats: &Tensor,
        grads: [Option<Sink<'_>>; 3],
    ) {
        norm::layer_norm_grad(dy, x, weight, stats, grads);
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, offset: f32, eps: f32) -> (Tensor, Tensor) {
        norm::rms_norm(x, weight, offset, eps)
    }
    fn rms_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        offset: f32,
        stats: &Tensor,
        grads: [Option<Sink<'_>>; 2],
    ) {
        norm::rms_norm_grad(dy, x, weight, offset, stats, grads);
    }
    fn rope(&self, x: &Tensor, table: &Tensor, head_dim: usize, positions: &[u32], sign: f32, out: Sink<'_>) {
        pointwise::rope(x, table, head_dim, positions, sign, out);
    }
    fn attention(
        &self,
        inputs: &AttentionInputs<'_>,
        shape: &AttentionShape,
        entropy: bool,
    ) -> AttentionOutput {
        attention::forward(inputs, shape, entropy)
    }
    fn attention_grad(
        &self,
        dout: &Tensor,
        inputs: &AttentionInputs<'_>,
        left: &[Tensor],
        shape: &AttentionShape,
        grads: AttentionGrads<'_>,
    ) {
        attention::Backward { dout, inputs, lse: &left[0], shape }.run(grads);
    }
    fn activation(&self, kind: Activation, x: &Tensor, up: Option<&Tensor>) -> Tensor {
        pointwise::activation(kind, x, up)
    }
    fn activation_grad(
        &self,
        kind: Activation,
        dy: &Tensor,
        x: &Tensor,
        up: Option<&Tensor>,
        grads: [Option<Sink<'_>>; 2],
    ) {
        pointwise::activation_grad(kind, dy, x, up, grads);
    }
    fn scale(&self, x: &Tensor, factor: f32, out: Sink<'_>) {
        pointwise::scale(x, factor, out);
    }
    fn gate(&self, x: &Tensor, gates: &Tensor, out: Sink<'_>) {
        pointwise::gate(x, gates, out);
    }
    fn gate_grad(&self, dy: &Tensor, x: &Tensor, dgates: Sink<'_>) {
        pointwise::gate_grad(dy, x, dgates);
    }
    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        pointwise::soft_cap(x, cap);
    }
    fn soft_cap_grad(&self, dy: &mut Tensor, capped: &Tensor, cap: f32) {
        pointwise::soft_cap_grad(dy, capped, cap);
    }
    fn gather(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        pointwise::gather(table, ids)
    }
    fn scatter_add(&self, dy: &Tensor, ids: &[u32], table: Sink<'_>) {
        pointwise::scatter_add(dy, ids, table);
    }
    fn mean_rows(&self, x: &Tensor, count: usize, mask: Option<&[u8]>) -> Tensor {
        pointwise::mean_rows(x, count, mask)
    }
    fn mean_rows_grad(&self, dy: &Tensor, count: usize, mask: Option<&[u8]>, dx: Sink<'_>) {
        pointwise::mean_rows_grad(dy, count, mask, dx);
    }
    fn rows(&self, x: &Tensor, rows: Range<usize>) -> Tensor {
        pointwise::rows(x, rows)
    }
    fn columns(&self, x: &Tensor, columns: &[Range<usize>]) -> Tensor {
        pointwise::columns(x, columns)
    }
    fn write_rows(&self, to: &mut Tensor, first: usize, from: &Tensor) {
        let at = first * from.cols();
        to.data_mut()[at..at + from.len()].copy_from_slice(from.data());
    }
    fn combine(&self, parts: &[(f64, &Number)]) -> Number {
        number(parts.iter().map(|(factor, number)| factor * number.read()).sum())
    }
    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Number {
        number(tensors.iter().map(|x| sum_of_squares(x.data())).sum())
    }
    fn rows_of_logits(&self, vocabulary: usize) -> usize {
        LOGITS / vocabulary
    }
    fn negative_log_likelihood(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        targets: &[i64],
    ) -> Number {
        number(loss::negative_log_likelihood(x, w, bias, targets))
    }
    fn cross_entropy(&self, logits: &mut Tensor, targets: &[i64], weight: f32, with_grad: bool) -> Number {
        number(loss::cross_entropy(logits, targets, weight, with_grad))
    }
    fn kl_divergence(
        &self,
        student: &mut Tensor,
        teacher: &Tensor,
        temperature: f32,
        weight: f32,
        with_grad: bool,
    ) -> Number {
        number(loss::kl_divergence(student, teacher, temperature, weight, with_grad))
    }
    fn relative_distance(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        number(loss::relative_distance(x, reference, weight))
    }
    fn squared_error(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        number(loss::squared_error(x, reference, weight))
    }
    fn binary_cross_entropy(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        number(loss::binary_cross_entropy(x, reference, weight))
    }
    fn adamw(&self, w: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep<'_>) {
        pointwise::adamw(w, g, m, v, step);
    }
}
