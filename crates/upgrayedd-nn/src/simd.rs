//! Loops for this processor.

/// What the loops and products of this processor are compiled for: results differ in their last bits from one to another.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        #[cfg(not(avx2_only))]
        if pulp::x86::V4::is_available() {
            return "AVX-512";
        }
        if pulp::x86::V3::is_available() {
            return "AVX2";
        }
    }
    std::env::consts::ARCH
}

/// Runs `f` compiled for the best instruction set of this processor (AVX-512, AVX2 with FMA, or plain).
/// Closures inside must be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
