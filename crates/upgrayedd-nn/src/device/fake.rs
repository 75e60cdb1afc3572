//! A device whose memory nobody but its kernels can read, for tests: the CPU's kernels behind a wall. Whoever
//! hands it host memory, or reads what it has made, fails; what crosses over on purpose is counted, thread by
//! thread.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use super::cpu::Cpu;
use crate::kernels::{
    Activation, AdamWStep, AttentionGrads, AttentionInputs, AttentionOutput, AttentionShape, Kernels, Number,
    Sink, Value,
};
use crate::tensor::DeviceMemory;
use crate::{Result, Tensor};

/// What has crossed over since the thread began, or [`reset`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Tensors from the host.
    pub tensors_up: usize,
    /// Lists of token ids, positions, targets and masks from the host.
    pub lists_up: usize,
    /// Tensors to the host.
    pub tensors_down: usize,
    /// Times at which the host has waited for numbers.
    pub reads: usize,
}

thread_local! {
    static TRANSFERS: Cell<Transfers> = const {
        Cell::new(Transfers { tensors_up: 0, lists_up: 0, tensors_down: 0, reads: 0 })
    };
}

/// This thread's count.
pub fn transfers() -> Transfers {
    TRANSFERS.get()
}

/// Begins to count anew.
pub fn reset() {
    TRANSFERS.set(Transfers::default());
}

fn count(f: impl FnOnce(&mut Transfers)) {
    let mut transfers = TRANSFERS.get();
    f(&mut transfers);
    TRANSFERS.set(transfers);
}

#[derive(Debug)]
struct Elements(Tensor);

#[derive(Debug)]
struct OneNumber(f64);

impl DeviceMemory for Elements {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn to_host(&self) -> Vec<f32> {
        count(|t| t.tensors_down += 1);
        self.0.data().to_vec()
    }
    fn number(&self) -> f64 {
        unreachable!("elements are no number")
    }
    fn settle(&self) -> Result<()> {
        Ok(())
    }
    fn widened(&self) -> Option<Arc<dyn DeviceMemory>> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl DeviceMemory for OneNumber {
    fn len(&self) -> usize {
        1
    }
    fn to_host(&self) -> Vec<f32> {
        unreachable!("a number is no tensor")
    }
    fn number(&self) -> f64 {
        count(|t| t.reads += 1);
        self.0
    }
    fn settle(&self) -> Result<()> {
        Ok(())
    }
    fn widened(&self) -> Option<Arc<dyn DeviceMemory>> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn on_device(tensor: Tensor) -> Tensor {
    let shape = tensor.shape().to_vec();
    Tensor::on_device(&shape, Arc::new(Elements(tensor)))
}

/// What the device's kernels see.
fn inside(tensor: &Tensor) -> Tensor {
    let memory = tensor.device_memory().unwrap_or_else(|| unreachable!("a kernel was handed host memory"));
    let elements =
        memory.as_any().downcast_ref::<Elements>().unwrap_or_else(|| unreachable!("another device's memory"));
    elements.0.clone().reshaped(tensor.shape())
}

/// Lets a kernel read what attention reads.
fn attend<T>(inputs: &AttentionInputs<'_>, f: impl FnOnce(&AttentionInputs<'_>) -> T) -> T {
    let [q, k, v] = [inputs.q, inputs.k, inputs.v].map(inside);
    let (gates, bias) = (maybe(inputs.gates), maybe(inputs.bias));
    f(&AttentionInputs { q: &q, k: &k, v: &v, gates: gates.as_ref(), bias: bias.as_ref() })
}

fn maybe(tensor: Option<&Tensor>) -> Option<Tensor> {
    tensor.map(inside)
}

/// Lets a kernel write into device memory.
fn write<T>(tensor: &mut Tensor, f: impl FnOnce(&mut Tensor) -> T) -> T {
    let mut inner = inside(tensor);
    let result = f(&mut inner);
    *tensor = on_device(inner);
    result
}

fn through(sink: Sink<'_>, f: impl FnOnce(Sink<'_>)) {
    let accumulate = sink.accumulate;
    write(sink.tensor, |tensor| f(Sink { tensor, accumulate }));
}

fn through_all<const N: usize>(sinks: [Option<Sink<'_>>; N], f: impl FnOnce([Option<Sink<'_>>; N])) {
    let mut inner =
        sinks.each_ref().map(|sink| sink.as_ref().map(|sink| (inside(sink.tensor), sink.accumulate)));
    f(inner
        .each_mut()
        .map(|inner| inner.as_mut().map(|(tensor, accumulate)| Sink { tensor, accumulate: *accumulate })));
    for (sink, inner) in sinks.into_iter().zip(inner) {
        if let (Some(sink), Some((tensor, _))) = (sink, inner) {
            *sink.tensor = on_device(tensor);
        }
    }
}

fn number(number: Number) -> Number {
    Number(Value::Device(Arc::new(OneNumber(number.read()))))
}

fn value(number: &Number) -> f64 {
    match &number.0 {
        Value::Host(value) => *value,
        Value::Device(memory) => {
            let number = memory.as_any().downcast_ref::<OneNumber>();
            number.unwrap_or_else(|| unreachable!("another device's number")).0
        }
    }
}

/// Counts a list that is handed to a kernel.
fn list<T>(list: &[T]) -> &[T] {
    count(|t| t.lists_up += 1);
    list
}

/// The device.
pub(crate) struct Fake;

impl Kernels for Fake {
    fn empty(&self, shape: &[usize]) -> Tensor {
        on_device(Cpu.empty(shape))
    }
    fn zeros(&self, shape: &[usize]) -> Tensor {
        on_device(Cpu.zeros(shape))
    }
    fn upload(&self, tensor: Tensor) -> Tensor {
        if tensor.device_memory().is_some() {
            return tensor;
        }
        count(|t| t.tensors_up += 1);
        on_device(tensor.to_host())
    }
    fn check(&self) -> Result<()> {
        Ok(())
    }
    fn for_products(&self, weight: &Tensor) -> Tensor {
        weight.clone()
    }
    fn multiply(&self, a: &Tensor, b: &Tensor) -> Tensor {
        on_device(Cpu.multiply(&inside(a), &inside(b)))
    }
    fn read(&self, numbers: &[&Number]) -> Vec<f64> {
        count(|t| t.reads += 1);
        numbers.iter().map(|number| value(number)).collect()
    }
    fn add_assign(&self, a: &mut Tensor, b: &Tensor) {
        write(a, |a| Cpu.add_assign(a, &inside(b)));
    }
    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        on_device(Cpu.add(&inside(a), &inside(b)))
    }
    fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        on_device(Cpu.linear(&inside(x), &inside(w), maybe(bias).as_ref()))
    }
    fn linear_grad_input(&self, dy: &Tensor, w: &Tensor, dx: Sink<'_>) {
        through(dx, |dx| Cpu.linear_grad_input(&inside(dy), &inside(w), dx));
    }
    fn linear_grad_weight(&self, dy: &Tensor, x: &Tensor, dw: Sink<'_>) {
        through(dw, |dw| Cpu.linear_grad_weight(&inside(dy), &inside(x), dw));
    }
    fn linear_grad_input_rows(&self, dy: &Tensor, w: &Tensor, dx: &mut Tensor, first: usize) {
        write(dx, |dx| Cpu.linear_grad_input_rows(&inside(dy), &inside(w), dx, first));
    }
    fn gram(&self, x: &Tensor) -> Tensor {
        on_device(Cpu.gram(&inside(x)))
    }
    fn sum_rows(&self, dy: &Tensor, db: Sink<'_>) {
        through(db, |db| Cpu.sum_rows(&inside(dy), db));
    }
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> (Tensor, Tensor) {
        let (out, stats) = Cpu.layer_norm(&inside(x), &inside(weight), maybe(bias).as_ref(), eps);
        (on_device(out), on_device(stats))
    }
    fn layer_norm_grad(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        stats: &Tensor,
        grads: [Option<Sink<'_>>; 3],
    ) {
        through_all(grads, |grads| {
            Cpu.layer_norm_grad(&inside(dy), &inside(x), &inside(weight), &inside(stats), grads)
        });
    }
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, offset: f32, eps: f32) -> (Tensor, Tensor) {
        let (out, stats) = Cpu.rms_norm(&inside(x), &inside(weight), offset, eps);
        (on_device(out), on_device(stats))
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
        through_all(grads, |grads| {
            Cpu.rms_norm_grad(&inside(dy), &inside(x), &inside(weight), offset, &inside(stats), grads)
        });
    }
    fn rope(&self, x: &Tensor, table: &Tensor, head_dim: usize, positions: &[u32], sign: f32, out: Sink<'_>) {
        through(out, |out| Cpu.rope(&inside(x), &inside(table), head_dim, list(positions), sign, out));
    }
    fn attention(
        &self,
        inputs: &AttentionInputs<'_>,
        shape: &AttentionShape,
        entropy: bool,
    ) -> AttentionOutput {
        if let Some(mask) = &shape.key_mask {
            list(mask);
        }
        let done = attend(inputs, |inputs| Cpu.attention(inputs, shape, entropy));
        let left = done.left.into_iter().map(on_device).collect();
        AttentionOutput { out: on_device(done.out), left, entropy: done.entropy }
    }
    fn attention_grad(
        &self,
        dout: &Tensor,
        inputs: &AttentionInputs<'_>,
        left: &[Tensor],
        shape: &AttentionShape,
        grads: AttentionGrads<'_>,
    ) {
        let AttentionGrads { q, k, v, gates, bias } = grads;
        through_all([q, k, v, gates, bias], |[q, k, v, gates, bias]| {
            let grads = AttentionGrads { q, k, v, gates, bias };
            let left: Vec<Tensor> = left.iter().map(inside).collect();
            attend(inputs, |inputs| Cpu.attention_grad(&inside(dout), inputs, &left, shape, grads));
        });
    }
    fn activation(&self, kind: Activation, x: &Tensor, up: Option<&Tensor>) -> Tensor {
        on_device(Cpu.activation(kind, &inside(x), maybe(up).as_ref()))
    }
    fn activation_grad(
        &self,
        kind: Activation,
        dy: &Tensor,
        x: &Tensor,
        up: Option<&Tensor>,
        grads: [Option<Sink<'_>>; 2],
    ) {
        through_all(grads, |grads| {
            Cpu.activation_grad(kind, &inside(dy), &inside(x), maybe(up).as_ref(), grads)
        });
    }
    fn scale(&self, x: &Tensor, factor: f32, out: Sink<'_>) {
        through(out, |out| Cpu.scale(&inside(x), factor, out));
    }
    fn gate(&self, x: &Tensor, gates: &Tensor, out: Sink<'_>) {
        through(out, |out| Cpu.gate(&inside(x), &inside(gates), out));
    }
    fn gate_grad(&self, dy: &Tensor, x: &Tensor, dgates: Sink<'_>) {
        through(dgates, |dgates| Cpu.gate_grad(&inside(dy), &inside(x), dgates));
    }
    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        write(x, |x| Cpu.soft_cap(x, cap));
    }
    fn soft_cap_grad(&self, dy: &mut Tensor, capped: &Tensor, cap: f32) {
        write(dy, |dy| Cpu.soft_cap_grad(dy, &inside(capped), cap));
    }
    fn gather(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        on_device(Cpu.gather(&inside(table), list(ids)))
    }
    fn scatter_add(&self, dy: &Tensor, ids: &[u32], table: Sink<'_>) {
        through(table, |table| Cpu.scatter_add(&inside(dy), list(ids), table));
    }
    fn mean_rows(&self, x: &Tensor, count: usize, mask: Option<&[u8]>) -> Tensor {
        on_device(Cpu.mean_rows(&inside(x), count, mask.map(list)))
    }
    fn mean_rows_grad(&self, dy: &Tensor, count: usize, mask: Option<&[u8]>, dx: Sink<'_>) {
        through(dx, |dx| Cpu.mean_rows_grad(&inside(dy), count, mask.map(list), dx));
    }
    fn rows(&self, x: &Tensor, rows: Range<usize>) -> Tensor {
        on_device(Cpu.rows(&inside(x), rows))
    }
    fn columns(&self, x: &Tensor, columns: &[Range<usize>]) -> Tensor {
        on_device(Cpu.columns(&inside(x), columns))
    }
    fn write_rows(&self, to: &mut Tensor, first: usize, from: &Tensor) {
        write(to, |to| Cpu.write_rows(to, first, &inside(from)));
    }
    fn combine(&self, parts: &[(f64, &Number)]) -> Number {
        let values: Vec<(f64, Number)> =
            parts.iter().map(|(factor, n)| (*factor, Number(Value::Host(value(n))))).collect();
        number(Cpu.combine(&values.iter().map(|(factor, n)| (*factor, n)).collect::<Vec<_>>()))
    }
    fn sum_of_squares(&self, tensors: &[&Tensor]) -> Number {
        let tensors: Vec<Tensor> = tensors.iter().map(|x| inside(x)).collect();
        number(Cpu.sum_of_squares(&tensors.iter().collect::<Vec<_>>()))
    }
    fn rows_of_logits(&self, vocabulary: usize) -> usize {
        Cpu.rows_of_logits(vocabulary)
    }
    fn negative_log_likelihood(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        targets: &[i64],
    ) -> Number {
        number(Cpu.negative_log_likelihood(&inside(x), &inside(w), maybe(bias).as_ref(), list(targets)))
    }
    fn cross_entropy(&self, logits: &mut Tensor, targets: &[i64], weight: f32, with_grad: bool) -> Number {
        number(write(logits, |logits| Cpu.cross_entropy(logits, list(targets), weight, with_grad)))
    }
    fn kl_divergence(
        &self,
        student: &mut Tensor,
        teacher: &Tensor,
        temperature: f32,
        weight: f32,
        with_grad: bool,
    ) -> Number {
        number(write(student, |student| {
            Cpu.kl_divergence(student, &inside(teacher), temperature, weight, with_grad)
        }))
    }
    fn relative_distance(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        number(write(x, |x| Cpu.relative_distance(x, &inside(reference), weight)))
    }
    fn squared_error(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        number(write(x, |x| Cpu.squared_error(x, &inside(reference), weight)))
    }
    fn binary_cross_entropy(&self, x: &mut Tensor, reference: &Tensor, weight: f32) -> Number {
        number(write(x, |x| Cpu.binary_cross_entropy(x, &inside(reference), weight)))
    }
    fn adamw(&self, w: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep<'_>) {
        let vectors = inside(step.vectors);
        let step = AdamWStep { vectors: &vectors, ..*step };
        write(w, |w| write(m, |m| write(v, |v| Cpu.adamw(w, &inside(g), m, v, &step))));
    }
}
