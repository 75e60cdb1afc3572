//! Products of matrices.

use super::gemm::{Product, gemm};
use super::launch::{Any, Kind, Launch, Words};
use super::open::Cuda;
use crate::Tensor;
use crate::kernels::{Precision, Sink};

impl Cuda {
    fn product(
        &self,
        product: Product,
        size: [usize; 3],
        [left, right]: [&Tensor; 2],
        operands: Kind,
        (out, accumulate): (Any, bool),
    ) {
        let pitch = if matches!(product, Product::Linear) { size[2] } else { self.gpu.pitch(left) };
        let (left, right) = (self.gpu.as_kind(left, operands), self.gpu.as_kind(right, operands));
        self.multiply_by(product, size, [left.any, right.any, out], pitch, (accumulate, 0));
    }

    fn multiply_by(
        &self,
        product: Product,
        size: [usize; 3],
        operands: [Any; 3],
        pitch: usize,
        (accumulate, bias): (bool, u64),
    ) {
        let tf32 = self.gpu.precision != Precision::F32;
        if size.iter().all(|extent| *extent > 0) {
            self.gpu.multiply(&gemm(product, size, operands, pitch, (accumulate, bias, tf32)));
        }
    }

    pub(super) fn linear(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let y = self.gpu.tensor(&[x.rows(), w.rows()], self.small());
        self.linear_into(x, w, bias, y)
    }

    pub(super) fn logits(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let y = self.gpu.padded([x.rows(), w.rows()], self.small());
        self.linear_into(x, w, bias, y)
    }

    fn linear_into(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, y: Tensor) -> Tensor {
        let (n, i, pitch) = (x.rows(), x.cols(), self.gpu.pitch(&y));
        let read = |t: &Tensor| {
            if pitch > w.rows() { self.gpu.with_tail(t) } else { self.gpu.as_kind(t, self.small()) }
        };
        let (bias, w) = (bias.map(read), read(w));
        let bias = bias.as_ref().map_or(0, |bias| bias.any.at);
        let x = self.gpu.as_kind(x, self.small());
        let operands = [x.any, w.any, self.gpu.any(&y)];
        self.multiply_by(Product::Linear, [n, i, pitch], operands, pitch, (false, bias));
        y
    }

    pub(super) fn linear_grad_input(&self, dy: &Tensor, w: &Tensor, dx: Sink<'_>) {
        let (n, i, o) = (dy.rows(), w.cols(), w.rows());
        let accumulate = dx.accumulate;
        let out = if accumulate {
            self.gpu.own(dx.tensor)
        } else {
            let out = self.gpu.out(dx, self.small());
            Any { at: out.at, kind: out.kind }
        };
        self.product(Product::GradInput, [n, i, o], [dy, w], self.small(), (out, accumulate));
    }

    pub(super) fn linear_grad_input_rows(&self, dy: &Tensor, w: &Tensor, dx: &mut Tensor, first: usize) {
        let (n, i, o) = (dy.rows(), w.cols(), w.rows());
        let whole = self.gpu.begin(dx, self.small());
        let out = Any { at: whole.at + (first * i * whole.kind.size()) as u64, kind: whole.kind };
        let pitch = self.gpu.pitch(dy);
        if pitch == o {
            return self.product(Product::GradInput, [n, i, o], [dy, w], self.small(), (out, false));
        }
        // Zeros meet zeros beyond the vocabulary.
        let w = self.gpu.with_tail(w);
        let operands = [self.gpu.any(dy), w.any, out];
        self.multiply_by(Product::GradInput, [n, i, pitch], operands, pitch, (false, 0));
    }

    pub(super) fn linear_grad_weight(&self, dy: &Tensor, x: &Tensor, dw: Sink<'_>) {
        let (n, i, o) = (dy.rows(), x.cols(), dy.cols());
        let accumulate = dw.accumulate;
        let out = if accumulate {
            self.gpu.own(dw.tensor)
        } else {
            let out = self.gpu.out(dw, Kind::F32);
            Any { at: out.at, kind: out.kind }
        };
        self.product(Product::GradWeight, [n, i, o], [dy, x], self.small(), (out, accumulate));
    }

    pub(super) fn gram(&self, x: &Tensor) -> Tensor {
        let (n, i) = (x.rows(), x.cols());
        let out = self.gpu.tensor(&[i, i], Kind::F32);
        let at = self.gpu.any(&out);
        // Values that are in 16 bits anyway lose nothing.
        let operands = self.gpu.any(x).kind;
        self.product(Product::GradWeight, [n, i, i], [x, x], operands, (at, false));
        self.gpu.launch(&Launch::each("mirror", i * i).arg(at.at).arg(i as i32));
        out
    }

    /// `a bᵀ`, in single precision whatever that of the device is.
    pub(super) fn multiply(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let (n, i, o) = (a.rows(), a.cols(), b.rows());
        let out = self.gpu.tensor(&[n, o], Kind::F32);
        self.product(Product::Linear, [n, i, o], [a, b], Kind::F32, (self.gpu.any(&out), false));
        out
    }

    pub(super) fn sum_rows(&self, dy: &Tensor, db: Sink<'_>) {
        let (rows, cols, pitch) = (dy.rows(), dy.cols(), self.gpu.pitch(dy));
        let dy = self.gpu.any(dy);
        self.sum_by_parts(rows, cols, db, |grid, each, partial| {
            Launch::new("sum_rows", grid, 128)
                .arg(dy)
                .arg(partial)
                .arg(rows)
                .arg(cols as i32)
                .arg(pitch)
                .arg(each)
        });
    }

    /// Sums over rows, first of parts whose size follows from the shape, then of these.
    pub(super) fn sum_by_parts(
        &self,
        rows: usize,
        cols: usize,
        sink: Sink<'_>,
        launch: impl FnOnce([usize; 3], i32, u64) -> Launch,
    ) {
        let each = rows.div_ceil(256).max(32);
        let parts = rows.div_ceil(each);
        let out = self.gpu.out(sink, Kind::F32);
        let partial = self.gpu.block(parts * cols * 4);
        self.gpu.launch(&launch([cols.div_ceil(128), parts, 1], each as i32, partial.at));
        let sum = Launch::new("sum_parts", [cols.div_ceil(128), 1, 1], 128);
        self.gpu.launch(&sum.arg(partial.at).arg(out).arg(parts as i32).arg(cols as i32));
    }
}

/// Pairs of 32 bits, two a word.
pub(super) fn halves(values: &[u32]) -> Words {
    Words(
        values
            .chunks(2)
            .map(|pair| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32)
            .collect(),
    )
}
