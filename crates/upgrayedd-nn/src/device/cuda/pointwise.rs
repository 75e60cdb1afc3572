//! One number after another: sums, activations, rotations, rows that are picked, the AdamW update.

use std::ops::Range;

use super::launch::{Any, Kind, Launch};
use super::open::Cuda;
use crate::Tensor;
use crate::kernels::{Activation, AdamWStep, Lanes, Sink};

impl Cuda {
    pub(super) fn add_assign(&self, a: &mut Tensor, b: &Tensor) {
        let (fours, b) = (self.gpu.fours(a), self.gpu.any(b));
        let a = self.gpu.own(a);
        self.gpu.launch(&Launch::each("add", fours).arg(a).arg(b).arg(a).arg(fours));
    }

    /// In 32 bits: sums of many small ones are what residual streams are.
    pub(super) fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let out = self.gpu.tensor(a.shape(), Kind::F32);
        let launch = Launch::each("add", self.gpu.fours(a)).arg(self.gpu.any(a)).arg(self.gpu.any(b));
        self.gpu.launch(&launch.arg(self.gpu.any(&out)).arg(self.gpu.fours(a)));
        out
    }

    pub(super) fn scale(&self, x: &Tensor, factor: f32, out: Sink<'_>) {
        let from = self.gpu.any(x);
        let out = self.gpu.out(out, from.kind);
        self.gpu.launch(
            &Launch::each("scale", self.gpu.fours(x)).arg(from).arg(factor).arg(out).arg(self.gpu.fours(x)),
        );
    }

    pub(super) fn gate(&self, x: &Tensor, gates: &Tensor, out: Sink<'_>) {
        let from = self.gpu.any(x);
        let out = self.gpu.out(out, from.kind);
        let launch = Launch::each("gate", x.len()).arg(from).arg(self.gpu.any(gates)).arg(out);
        self.gpu.launch(&launch.arg(x.len()).arg(x.rows() / gates.rows().max(1)).arg(x.cols()));
    }

    /// In 32 bits, as gates are.
    pub(super) fn gate_grad(&self, dy: &Tensor, x: &Tensor, dgates: Sink<'_>) {
        let (gates, sequences) = (dgates.tensor.len(), dgates.tensor.rows());
        let out = self.gpu.out(dgates, Kind::F32);
        let launch = Launch::each("gate_grad", gates).arg(self.gpu.any(dy)).arg(self.gpu.any(x)).arg(out);
        self.gpu.launch(&launch.arg(gates).arg(x.rows() / sequences.max(1)).arg(x.cols()));
    }

    pub(super) fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        let fours = self.gpu.fours(x);
        let x = self.gpu.own(x);
        self.gpu.launch(&Launch::each("soft_cap", fours).arg(x).arg(x).arg(cap).arg(fours));
    }

    pub(super) fn soft_cap_grad(&self, dy: &mut Tensor, capped: &Tensor, cap: f32) {
        let (fours, capped) = (self.gpu.fours(dy), self.gpu.any(capped));
        let dy = self.gpu.own(dy);
        let launch = Launch::each("soft_cap_grad", fours).arg(dy).arg(capped).arg(dy);
        self.gpu.launch(&launch.arg(cap).arg(fours));
    }

    pub(super) fn activation(&self, kind: Activation, x: &Tensor, up: Option<&Tensor>) -> Tensor {
        let from = self.gpu.any(x);
        let out = self.gpu.tensor(x.shape(), from.kind);
        let launch = Launch::each("activation", self.gpu.fours(x)).arg(kind as i32).arg(from);
        self.gpu.launch(&launch.arg(self.gpu.maybe(up)).arg(self.gpu.any(&out)).arg(self.gpu.fours(x)));
        out
    }

    pub(super) fn activation_grad(
        &self,
        kind: Activation,
        dy: &Tensor,
        x: &Tensor,
        up: Option<&Tensor>,
        [dx, dup]: [Option<Sink<'_>>; 2],
    ) {
        let (from, up) = (self.gpu.any(x), self.gpu.maybe(up));
        let (dx, dup) = (self.gpu.maybe_out(dx, from.kind), self.gpu.maybe_out(dup, from.kind));
        let launch =
            Launch::each("activation_grad", self.gpu.fours(x)).arg(kind as i32).arg(self.gpu.any(dy));
        self.gpu.launch(&launch.arg(from).arg(up).arg(dx).arg(dup).arg(self.gpu.fours(x)));
    }

    pub(super) fn rope(
        &self,
        x: &Tensor,
        table: &Tensor,
        head_dim: usize,
        positions: &[u32],
        sign: f32,
        out: Sink<'_>,
    ) {
        let positions = self.gpu.list(bytemuck::cast_slice(positions));
        let from = self.gpu.any(x);
        let out = self.gpu.out(out, from.kind);
        let launch = Launch::each("rope", x.len())
            .arg(from)
            .arg(self.gpu.any(table).at)
            .arg(positions.at)
            .arg(out)
            .arg(x.rows())
            .arg(x.cols() as i32)
            .arg(head_dim as i32)
            .arg(table.cols() as i32)
            .arg(sign);
        self.gpu.launch(&launch);
    }

    pub(super) fn gather(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        let out = self.gpu.tensor(&[ids.len(), table.cols()], Kind::F32);
        let list = self.gpu.list(bytemuck::cast_slice(ids));
        let launch = Launch::each("gather", out.len()).arg(self.gpu.any(table)).arg(list.at);
        self.gpu.launch(&launch.arg(self.gpu.any(&out)).arg(ids.len()).arg(table.cols() as i32));
        out
    }

    /// Rows that go to the same place are added by one block, in their order.
    pub(super) fn scatter_add(&self, dy: &Tensor, ids: &[u32], table: Sink<'_>) {
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|row| ids[*row as usize]);
        let mut begins = Vec::new();
        let mut unique: Vec<u32> = Vec::new();
        for (at, row) in order.iter().enumerate() {
            let id = ids[*row as usize];
            if unique.last() != Some(&id) {
                unique.push(id);
                begins.push(at as u32);
            }
        }
        begins.push(order.len() as u32);
        let count = unique.len();
        let plan = self.gpu.list(bytemuck::cast_slice(&[order, begins, unique].concat()));
        let (rows, cols, accumulate) = (dy.rows(), dy.cols(), table.accumulate);
        // Rows that nobody adds to stay as they are, or are zero.
        let to = if accumulate { self.gpu.own(table.tensor) } else { self.gpu.blank(table.tensor) };
        let out = super::launch::Out { at: to.at, base: to.at, kind: to.kind };
        let launch = Launch::new("scatter_add", [count, 1, 1], 256).arg(self.gpu.any(dy)).arg(plan.at);
        self.gpu.launch(&launch.arg(out).arg(rows as i32).arg(count as i32).arg(cols as i32));
    }

    pub(super) fn mean_rows(&self, x: &Tensor, count: usize, mask: Option<&[u8]>) -> Tensor {
        let groups = x.rows() / count.max(1);
        let out = self.gpu.tensor(&[groups, x.cols()], Kind::F32);
        let mask = mask.map(|mask| self.gpu.list(mask));
        let launch = Launch::each("mean_rows", out.len())
            .arg(self.gpu.any(x))
            .arg(mask.as_ref().map_or(0, |mask| mask.at))
            .arg(self.gpu.any(&out))
            .arg(groups)
            .arg(count as i32)
            .arg(x.cols() as i32);
        self.gpu.launch(&launch);
        out
    }

    pub(super) fn mean_rows_grad(&self, dy: &Tensor, count: usize, mask: Option<&[u8]>, dx: Sink<'_>) {
        let (groups, cols) = (dy.rows(), dy.cols());
        let mask = mask.map(|mask| self.gpu.list(mask));
        let out = self.gpu.out(dx, Kind::F32);
        let launch = Launch::each("mean_rows_grad", groups * count * cols)
            .arg(self.gpu.any(dy))
            .arg(mask.as_ref().map_or(0, |mask| mask.at))
            .arg(out)
            .arg(groups)
            .arg(count as i32)
            .arg(cols as i32);
        self.gpu.launch(&launch);
    }

    fn copy(&self, from: Any, to: Any, [first, place, count]: [usize; 3]) {
        let launch = Launch::each("copy_elements", count).arg(from).arg(to);
        self.gpu.launch(&launch.arg(first).arg(place).arg(count));
    }

    pub(super) fn rows(&self, x: &Tensor, rows: Range<usize>) -> Tensor {
        let (from, cols) = (self.gpu.any(x), x.cols());
        if rows == (0..x.rows()) {
            return x.clone().reshaped(&[rows.len(), cols]);
        }
        let out = self.gpu.tensor(&[rows.len(), cols], from.kind);
        self.copy(from, self.gpu.any(&out), [rows.start * cols, 0, rows.len() * cols]);
        out
    }

    pub(super) fn columns(&self, x: &Tensor, columns: &[Range<usize>]) -> Tensor {
        let list: Vec<u32> = columns.iter().cloned().flatten().map(|column| column as u32).collect();
        let from = self.gpu.any(x);
        let out = self.gpu.tensor(&[x.rows(), list.len()], from.kind);
        let columns = self.gpu.list(bytemuck::cast_slice(&list));
        let launch = Launch::each("pick_columns", out.len()).arg(from).arg(columns.at);
        let launch = launch.arg(self.gpu.any(&out)).arg(x.rows());
        self.gpu.launch(&launch.arg(x.cols() as i32).arg(list.len() as i32));
        out
    }

    pub(super) fn write_rows(&self, to: &mut Tensor, first: usize, from: &Tensor) {
        let place = first * from.cols();
        // Kept values have the type of those that come.
        let whole = self.gpu.begin(to, self.gpu.any(from).kind);
        self.copy(self.gpu.any(from), whole, [0, place, from.len()]);
    }

    pub(super) fn adamw(
        &self,
        w: &mut Tensor,
        g: &Tensor,
        m: &mut Tensor,
        v: &mut Tensor,
        step: &AdamWStep<'_>,
    ) {
        let (count, cols) = (w.len(), w.cols());
        // What learns is in 32 bits, whatever type it came in.
        if self.gpu.any(w).kind == Kind::Bf16 {
            *w = w.widened();
        }
        let (weight, small) = self.gpu.own_with_narrow(w);
        let lanes = match step.lanes {
            Lanes::Whole => 0,
            Lanes::Rows => 1,
            Lanes::Cols => 2,
        };
        let launch = Launch::each("adamw", count)
            .arg(weight.at)
            .arg(small)
            .arg(self.gpu.any(g))
            .arg(self.gpu.own(m).at)
            .arg(self.gpu.own(v).at)
            .arg(self.gpu.any(step.vectors).at + (step.first * 4) as u64)
            .arg(step.count as i32)
            .arg(lanes)
            .arg(count)
            .arg(cols as i32)
            .arg(step.beta1)
            .arg(step.beta2)
            .arg(step.eps)
            .arg(step.grad_scale);
        self.gpu.launch(&launch);
    }
}
