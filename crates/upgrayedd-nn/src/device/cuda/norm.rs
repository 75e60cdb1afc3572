//! Layer norm and root-mean-square norm.

use super::launch::{Kind, Launch};
use super::open::Cuda;
use crate::Tensor;
use crate::kernels::Sink;

/// What a norm's backward pass reads.
pub(super) struct Norm<'a> {
    pub(super) dy: &'a Tensor,
    pub(super) x: &'a Tensor,
    pub(super) weight: &'a Tensor,
    /// Added to the weight.
    pub(super) offset: f32,
    pub(super) stats: &'a Tensor,
    /// Layer norm, else root-mean-square norm.
    pub(super) centred: bool,
}

impl Cuda {
    pub(super) fn norm(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        (offset, eps): (f32, f32),
        centred: bool,
    ) -> (Tensor, Tensor) {
        let cols = weight.len();
        let rows = x.len() / cols.max(1);
        let out = self.gpu.tensor(x.shape(), self.small());
        let stats = self.gpu.tensor(&[rows, if centred { 2 } else { 1 }], Kind::F32);
        let launch = Launch::new("norm", [rows.div_ceil(4), 1, 1], 128)
            .arg(self.gpu.any(x))
            .arg(self.gpu.any(weight))
            .arg(self.gpu.maybe(bias))
            .arg(self.gpu.any(&out))
            .arg(self.gpu.any(&stats).at)
            .arg(rows)
            .arg(cols as i32)
            .arg(offset)
            .arg(eps)
            .arg(i32::from(centred));
        self.gpu.launch(&launch);
        (out, stats)
    }

    pub(super) fn norm_grad(&self, norm: &Norm<'_>, [dx, dw, db]: [Option<Sink<'_>>; 3]) {
        let Norm { weight, offset, centred, .. } = *norm;
        let cols = weight.len();
        let rows = norm.x.len() / cols.max(1);
        let (dy, x, stats) = (self.gpu.any(norm.dy), self.gpu.any(norm.x), self.gpu.any(norm.stats).at);
        // Sums over rows first: dx may take the place of dy.
        if let Some(dw) = dw {
            self.sum_by_parts(rows, cols, dw, |grid, each, partial| {
                Launch::new("norm_weight_grad", grid, 128)
                    .arg(dy)
                    .arg(x)
                    .arg(stats)
                    .arg(partial)
                    .arg(rows)
                    .arg(cols as i32)
                    .arg(each)
                    .arg(i32::from(centred))
            });
        }
        if let Some(db) = db {
            self.sum_rows(norm.dy, db);
        }
        if let Some(dx) = dx {
            let out = self.gpu.out(dx, x.kind);
            let launch = Launch::new("norm_grad", [rows.div_ceil(4), 1, 1], 128)
                .arg(dy)
                .arg(x)
                .arg(self.gpu.any(weight))
                .arg(stats)
                .arg(out)
                .arg(rows)
                .arg(cols as i32)
                .arg(offset)
                .arg(i32::from(centred));
            self.gpu.launch(&launch);
        }
    }
}
