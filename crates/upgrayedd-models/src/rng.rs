//! Random numbers: every use has its own stream, named and derived from the run's seed.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A reproducible stream of random numbers.
pub type Stream = ChaCha8Rng;

/// The stream called `purpose` of a run's seed. Streams of different purposes are independent.
pub fn stream(seed: u64, purpose: &str) -> Stream {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// Normal numbers by Box and Muller's transform.
pub fn normals(rng: &mut impl Rng, count: usize, deviation: f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(count + 1);
    while out.len() < count {
        let (u, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>() * std::f64::consts::TAU);
        let radius = (-2.0 * u.ln()).sqrt() * deviation;
        out.push((radius * angle.cos()) as f32);
        out.push((radius * angle.sin()) as f32);
    }
    out.truncate(count);
    out
}

/// The numbers below `n` in random order (Fisher and Yates).
pub fn permutation(rng: &mut impl Rng, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}
