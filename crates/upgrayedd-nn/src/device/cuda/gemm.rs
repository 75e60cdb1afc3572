//! Matrix products in cuBLAS' terms: matrices are column-major there, so a row-major one is its own transpose.

use super::launch::{Any, Kind};

/// D = op(A) op(B) + β D + bias, with D `(m, n)` and all matrices column-major; `bias (m)` is added to every
/// column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gemm {
    pub(super) shape: Shape,
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) d: u64,
    /// 0 for none; of D's type.
    pub(super) bias: u64,
}

/// All of a product but its pointers: what an algorithm is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) transpose_a: bool,
    pub(super) transpose_b: bool,
    /// Elements from column to column.
    pub(super) lda: usize,
    pub(super) ldb: usize,
    pub(super) ldd: usize,
    pub(super) inputs: Kind,
    pub(super) output: Kind,
    /// Whether β is 1, else 0.
    pub(super) accumulate: bool,
    pub(super) bias: bool,
    /// Whether inputs of 32 bits may be rounded to TF32.
    pub(super) tf32: bool,
}

/// What is multiplied, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) enum Product {
    /// `y (N, O) = x (N, I) · w (O, I)ᵀ`.
    Linear,
    /// `dx (N, I) = dy (N, O) · w (O, I)`.
    GradInput,
    /// `dw (O, I) = dy (N, O)ᵀ · x (N, I)`.
    GradWeight,
}

/// A product of row-major `left` and `right` into `out`: `x, w`; `dy, w`; or `dy, x`.
pub(super) fn gemm(
    product: Product,
    [n, i, o]: [usize; 3],
    [left, right, out]: [Any; 3],
    pitch: usize,
    (accumulate, bias, tf32): (bool, u64, bool),
) -> Gemm {
    // Row-major out is D transposed, so the operands change places: D = rightᵀ-ish · leftᵀ-ish.
    let (m, columns, k, transpose_a, transpose_b, lda, ldb, ldd) = match product {
        Product::Linear => (o, n, i, true, false, i, i, pitch),
        Product::GradInput => (i, n, o, false, false, i, pitch, i),
        Product::GradWeight => (i, o, n, false, true, i, pitch, i),
    };
    let shape = Shape {
        m,
        n: columns,
        k,
        transpose_a,
        transpose_b,
        lda,
        ldb,
        ldd,
        inputs: left.kind,
        output: out.kind,
        accumulate,
        bias: bias != 0,
        tf32,
    };
    Gemm { shape, a: right.at, b: left.at, d: out.at, bias }
}
