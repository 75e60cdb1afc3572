//! Matrix products on the `gemm` crate. Only the partition of the output depends on the threads, so the bits do not.

#![allow(unsafe_code, reason = "gemm takes raw pointers; every view is checked against its slice first")]

use gemm::Parallelism;

/// A strided matrix over a slice: element `(r, c)` lies at `r · rs + c · cs`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) rs: usize,
    pub(super) cs: usize,
}

impl<'a> View<'a> {
    /// Row-major with rows `stride` apart.
    pub(super) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, rs: stride, cs: 1 }
    }

    pub(super) fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }
}

/// Whether a product uses the whole rayon pool or runs inside one of its tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    All,
    One,
}

fn last_index(rows: usize, cols: usize, rs: usize, cs: usize) -> usize {
    (rows.max(1) - 1) * rs + (cols.max(1) - 1) * cs
}

/// `dst (m × n, rows dst_stride apart) = [dst +] alpha · lhs (m × k) · rhs (k × n)`.
#[expect(clippy::too_many_arguments, reason = "BLAS's own signature")]
pub(super) fn matmul(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    lhs: View<'_>,
    rhs: View<'_>,
    accumulate: bool,
    dst: &mut [f32],
    dst_stride: usize,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(last_index(m, n, dst_stride, 1) < dst.len(), "matmul: destination too short");
    if k == 0 {
        if !accumulate {
            dst.chunks_mut(dst_stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    assert!(last_index(m, k, lhs.rs, lhs.cs) < lhs.data.len(), "matmul: left operand too short");
    assert!(last_index(k, n, rhs.rs, rhs.cs) < rhs.data.len(), "matmul: right operand too short");
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::One => Parallelism::None,
    };
    // SAFETY: the asserts above keep every element inside its slice; `dst` is borrowed mutably and so overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.cs as isize,
            lhs.rs as isize,
            rhs.data.as_ptr(),
            rhs.cs as isize,
            rhs.rs as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
