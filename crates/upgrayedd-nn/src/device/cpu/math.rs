//! Vectorised building blocks: plain loops that the compiler turns into SIMD, compiled for each instruction
//! set.

pub(super) use crate::simd::simd;

/// Elements per parallel task.
pub(super) const CHUNK: usize = 1 << 14;

/// Lanes of the manual accumulators: enough to hide latency on AVX2 and AVX-512.
const LANES: usize = 32;

/// eˣ to about 1 ulp; 0 below −87.3, never infinite.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to an integer that then sits in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.336_54, 88.722_83);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the remainder is exact.
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = r.mul_add(1.987_569_1e-4, 1.398_2e-3);
    let p = r.mul_add(p, 8.333_452e-3);
    let p = r.mul_add(p, 4.166_579_6e-2);
    let p = r.mul_add(p, 1.666_666_6e-1);
    let p = r.mul_add(p, 0.5);
    let p = (r * r).mul_add(p, r) + 1.0;
    // 2ⁿ in two factors: 2⁻¹²⁷ and 2¹²⁸ have no single normal exponent. Shifting leaves nothing of ROUND but
    // the integer beside it; a cast would be done number by number.
    let half = (n * 0.5 + ROUND) - ROUND;
    let two_to = |k: f32| f32::from_bits((k + 127.0 + ROUND).to_bits() << 23);
    let scaled = p * two_to(half) * two_to(n - half);
    if x < -87.336_54 { 0.0 } else { scaled }
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    // Near zero the quotient cancels, so a series takes over.
    let x2 = x * x;
    let series = x * x2.mul_add(x2.mul_add(x2.mul_add(-17.0 / 315.0, 2.0 / 15.0), -1.0 / 3.0), 1.0);
    let quotient = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.2 { series } else { quotient }
}

/// Gauss error function: a rational approximation in x², about 1e-7 everywhere.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let z = x * x;
    let p = z.mul_add(-2.726_142_3e-10, 2.770_681_4e-8);
    let p = z.mul_add(p, -2.101_024e-6);
    let p = z.mul_add(p, -5.692_506_4e-5);
    let p = z.mul_add(p, -7.349_906e-4);
    let p = z.mul_add(p, -2.954_6e-3);
    let p = z.mul_add(p, -1.609_603_3e-2);
    let q = z.mul_add(-1.456_607_2e-5, -2.133_740_6e-4);
    let q = z.mul_add(q, -1.682_827e-3);
    let q = z.mul_add(q, -7.373_329e-3);
    let q = z.mul_add(q, -1.426_473_9e-2);
    x * p / q
}

#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    fold(x, 0.0, |a, v| a + v, |a, b| a + b)
}

#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    fold(x, f32::NEG_INFINITY, |a, v| if v > a { v } else { a }, f32::max)
}

/// Replaces every x by e to the power of x − max. Returns their sum, and Σ (x − max) eˣ⁻ᵐᵃˣ if it is asked
/// for.
#[inline(always)]
pub(super) fn exponentials<const WEIGHTED: bool>(x: &mut [f32], max: f32) -> (f32, f32) {
    let (mut sums, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            (sums[i], weighted[i]) = one_exponential::<WEIGHTED>(&mut chunk[i], max, (sums[i], weighted[i]));
        }
    }
    for (i, value) in rest.iter_mut().enumerate() {
        (sums[i], weighted[i]) = one_exponential::<WEIGHTED>(value, max, (sums[i], weighted[i]));
    }
    (reduce(sums, |a, b| a + b), reduce(weighted, |a, b| a + b))
}

#[inline(always)]
fn one_exponential<const WEIGHTED: bool>(x: &mut f32, max: f32, (sum, weighted): (f32, f32)) -> (f32, f32) {
    let shifted = *x - max;
    let e = exp(shifted);
    *x = e;
    // −∞ · 0 of masked keys must not become NaN.
    (sum + e, if WEIGHTED && e > 0.0 { weighted + e * shifted } else { weighted })
}

#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (a, b) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] = a[i].mul_add(b[i], lanes[i]);
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(a, b)| a * b).sum();
    reduce(lanes, |a, b| a + b) + rest
}

#[inline(always)]
fn fold(x: &[f32], start: f32, step: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = step(lanes[i], chunk[i]);
        }
    }
    let tail = rest.iter().fold(start, |a, &v| step(a, v));
    join(reduce(lanes, &join), tail)
}

#[inline(always)]
fn reduce(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        name: &str,
        f: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        range: f32,
        relative: f64,
        absolute: f64,
    ) {
        for i in -20_000..=20_000 {
            let x = i as f32 / 20_000.0 * range;
            let (got, want) = (
                f64::from(simd(
                    #[inline(always)]
                    || f(x),
                )),
                exact(f64::from(x)),
            );
            assert!(
                (got - want).abs() <= relative * want.abs() + absolute,
                "{name}({x}) = {got}, expected {want}"
            );
        }
    }

    #[test]
    fn elementary_functions_are_accurate_over_their_range() {
        check("exp", exp, f64::exp, 87.0, 2.5e-7, 0.0);
        check("tanh", tanh, f64::tanh, 12.0, 6e-7, 1e-9);
        check("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 80.0, 4e-7, 0.0);
        // erf as the integral of its derivative, by Simpson's rule.
        let erf_exact = |x: f64| {
            let (n, g) = (400, |t: f64| (-t * t).exp() * 2.0 / std::f64::consts::PI.sqrt());
            let h = x / f64::from(n);
            (0..n)
                .map(|i| {
                    let a = f64::from(i) * h;
                    h / 6.0 * (g(a) + 4.0 * g(a + h / 2.0) + g(a + h))
                })
                .sum::<f64>()
        };
        for i in -300..=300 {
            let x = i as f32 / 50.0;
            assert!((f64::from(erf(x)) - erf_exact(f64::from(x))).abs() < 5e-7, "erf({x})");
        }
    }

    #[test]
    fn extremes_do_not_break_exp() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }
}
