//! NVIDIA GPUs: kernels of our own in CUDA C, products by cuBLASLt, both found when a device is opened.

mod attention;
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
mod gemm;
mod gpu;
mod launch;
mod linear;
mod loss;
mod memory;
mod norm;
mod open;
mod pointwise;

use std::ops::Range;

#[cfg(feature = "emulator")]
pub use emulated::{set_limit, set_order};
pub use gpu::Traffic;

pub(crate) use self::open::Cuda;
use crate::kernels::{
    Activation, AdamWStep, AttentionGrads, AttentionInputs, AttentionOutput, AttentionShape, Kernels, Number,
    Sink,
};
use crate::{Result, Tensor};

impl Kernels for Cuda {
    fn check(&self) -> Result<()> {
        self.gpu.check()
    }
    fn empty(&self, shape: &[usize]) -> Tensor {
        self.gpu.later(shape)
    }
    fn zeros(&self, shape: &[usize]) -> Tensor {
        self.gpu.zeros(shape)
    }
    fn upload(&self, tensor: Tensor) -> Tensor {
        self.gpu.upload_tensor(tensor)
    }
    fn for_products(&self, weight: &Tensor) -> Tensor {
        weight.clone()
    }
    fn read(&self, numbers: &[&Number]) -> Vec<f64> {
        self.read(numbers)
    }
    fn add_assign(&self, a: &mut Tensor, b: &Tensor) {
        self.add_assign(a, b);
    }
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.add(a, b)
    }
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.linear(x, w, bias)
    }
    fn logits(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        self.logits(x, w, bias)
    }
    fn linear_grad_input(&self, dy: &Tensor, w: &Tensor, dx: Sink<'_>) {
        self.linear_grad_input(dy, w, dx);
    }
    fn linear_grad_weight(&self, dy: &Tensor, x: &Tensor, dw: Sink<'_>) {
        self.linear_grad_weight(dy, x, dw);
    }
    fn linear_grad_input_rows(&self, dy: &Tensor, w: &Tensor, dx: &mut Tensor, first: usize) {
        self.linear_grad_input_rows(dy, w, dx, first);
    }
    fn gram(&self, x: &Tensor) -> Tensor {
        self.gram(x)
    }
    fn multiply(&self, a: &Tensor, b: &Tensor) -> Tensor {
        self.multiply(a, b)
    }
    fn sum_rows(&self, dy: &Tensor, db: Sink<'_>) {
        self.sum_rows(dy, db);
    }
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> (Tensor, Tensor) {
        self.norm(x, weight, bias, (0.0, eps), true)
    }
    fn layer_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        stats: &Tensor,
        grads: [Option<Sink<'_>>; 3],
    ) {
        self.norm_grad(&norm::Norm { dy, x, weight, offset: 0.0, stats, centred: true }, grads);
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, offset: f32, eps: f32) -> (Tensor, Tensor) {
        self.norm(x, weight, None, (offset, eps), false)
    }
    fn rms_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        offset: f32,
        stats: &Tensor,
        [dx, dw]: [Option<Sink<'_>>; 2],
    ) {
        self.norm_grad(&norm::Norm { dy, x, weight, offset, stats, centred: false }, [dx, dw, None]);
    }
    fn rope(&self, x: &Tensor, table: &Tensor, head_dim: usize, positions: &[u32], sign: f32, out: Sink<'_>) {
        self.rope(x, table, head_dim, positions, sign, out);
    }
    fn attention(
        &self,
        inputs: &AttentionInputs<'_>,
        shape: &AttentionShape,
        entropy: bool,
    ) -> AttentionOutput {
        self.attention(inputs, shape, entropy)
    }
    fn attention_grad(
        &self,
        dout: &Tensor,
        inputs: &AttentionInputs<'_>,
        left: &[Tensor],
        shape: &AttentionShape,
        grads: AttentionGrads<'_>,
    ) {
        self.attention_grad(dout, inputs, left, shape, grads);
    }
    fn activation(&self, kind: Activation, x: &Tensor, up: Option<&Tensor>) -> Tensor {
        self.activation(kind, x, up)
    }
    fn activation_grad(
        &self,
        kind: Activation,
        dy: &Tensor,
        x: &Tensor,
        up: Option<&Tensor>,
        grads: [Option<Sink<'_>>; 2],
    ) {
        self.activation_grad(kind, dy, x, up, grads);
    }
    fn scale(&self, x: &Tensor, factor: f32, out: Sink<'_>) {
        self.scale(x, factor, out);
    }
    fn gate(&self, x: &Tensor, gates: &Tensor, out: Sink<'_>) {
        self.gate(x, gates, out);
    }
    fn gate_grad(&self, dy: &Tensor, x: &Tensor, dgates: Sink<'_>) {
        self.gate_grad(dy, x, dgates);
    }
    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        self.soft_cap(x, cap);
    }
    fn soft_cap_grad(&self, dy: &mut Tensor, capped: &Tensor, cap: f32) {
        self.soft_cap_grad(dy, capped, cap);
    }
    fn gather(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        self.gather(table, ids)
    }
    fn scatter_add(&self, dy: &Tensor, ids: &[u32], table: Sink<'_>) {
        self.scatter_add(dy, ids, table);
    }
    fn mean_rows(&self, x: &Tensor, count: usize, mask: Option<&[u8]>) -> Tensor {
        self.mean_rows(x, count, mask)
    }
    fn mean_rows_grad(&self, dy: &Tensor, count: usize, mask: Option<&[u8]>, dx: Sink<'_>) {
        self.mean_rows_grad(dy, count, mask, dx);
    }
    fn rows(&self, x: &Tensor, rows: Range<usize>) -> Tensor {
        self.rows(x, rows)
    }
    fn columns(&self, x: &Tensor, columns: &[Range<usize>]) -> Tensor {
        self.columns(x, columns)
    }
    fn write_rows(&self, to: &mut Tensor, first: usize, from: &Tensor) {
        self.write_rows(to, first, from);
    }
    fn combine(&self, parts: &[(f64, &Number)]) -> Number {
        self.combine(parts)
    }
    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Number {
        self.sum_of_squares(tensors)
    }
    fn rows_of_logits(&self, vocabulary: usize) -> usize {
        loss::rows_of_logits(vocabulary)
    }
    fn negative_log_likelihood(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        targets: &[i64],
    ) -> Number {
        self.cross_entropy(&mut self.logits(x, w, bias), targets, 0.0, false)
    }
    fn cross_entropy(&self, logits: &mut Tensor, targets: &[i64], weight: f32, with_grad: bool) -> Number {
        self.cross_entropy(logits, targets, weight, with_grad)
    }
    fn kl_divergence(
        &self,
        student: &mut Tensor,
        teacher: &Tensor,
        temperature: f32,
        weight: f32,
        with_grad: bool,
    ) -> Number {
        self.kl_divergence(student, teacher, temperature, weight, with_grad)
    }
    fn relative_distance(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        self.distance(loss::Distance::Relative, x, reference, weight)
    }
    fn squared_error(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        self.distance(loss::Distance::Squared, x, reference, weight)
    }
    fn binary_cross_entropy(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        self.distance(loss::Distance::Binary, x, reference, weight)
    }
    fn own(&self, tensor: &mut Tensor) {
        self.gpu.own_with_narrow(tensor);
    }
    fn adamw(&self, w: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep<'_>) {
        self.adamw(w, g, m, v, step);
    }
}
