//! Random numbers as pure functions of (seed, purpose, indices): nothing to save, nothing to
//! restore.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::StandardNormal;

/// A generator for one purpose: streams of different purposes or indices are independent, equal
/// ones are equal on every machine.
///
/// The ChaCha key is BLAKE3("lrpt stream v1" ‖ seed ‖ purpose ‖ indices).
pub fn stream(seed: u64, purpose: &str, indices: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(key(seed, purpose, indices))
}

/// The same key as [`stream`]'s, shortened to 64 bits, for counter-based kernels such as dropout
/// masks.
pub fn key64(seed: u64, purpose: &str, indices: &[u64]) -> u64 {
    u64::from_le_bytes(key(seed, purpose, indices)[..8].try_into().expect("eight bytes"))
}

/// `count` standard normal numbers.
pub fn normals(rng: &mut impl Rng, count: usize) -> Vec<f64> {
    rng.sample_iter(StandardNormal).take(count).collect()
}

/// The output function of SplitMix64 (Steele, Lea & Flood 2014): a bijection in which every input
/// bit reaches every output bit.
#[inline(always)]
pub fn split_mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn key(seed: u64, purpose: &str, indices: &[u64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("lrpt stream v1");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(purpose.len() as u64).to_le_bytes());
    hasher.update(purpose.as_bytes());
    for index in indices {
        hasher.update(&index.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, purpose, indices: &[u64]| normals(&mut stream(seed, purpose, indices), 4);
        assert_eq!(draw(1, "init", &[2]), draw(1, "init", &[2]));
        assert_ne!(draw(1, "init", &[2]), draw(1, "init", &[3]));
        assert_ne!(draw(1, "init", &[2]), draw(2, "init", &[2]));
        assert_ne!(draw(1, "init", &[2]), draw(1, "sample", &[2]));
        assert_ne!(key64(1, "a", &[]), key64(1, "b", &[]));
    }

    #[test]
    fn split_mix64_gives_the_published_sequence() {
        // The first numbers of SplitMix64 seeded with 1234567, whose state grows by the golden
        // ratio.
        let at = |n: u64| split_mix64(n.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1234567));
        assert_eq!(at(1), 6457827717110365317);
        assert_eq!(at(2), 3203168211198807973);
    }

    #[test]
    fn normals_are_standard() {
        let x = normals(&mut stream(7, "test", &[]), 40_000);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.03, "{variance}");
    }
}
