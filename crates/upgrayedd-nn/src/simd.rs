//! Loops for this processor.

/// Runs `f` compiled for the best instruction set of this processor (AVX-512, AVX2 with FMA, or plain).
/// Closures inside must be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
