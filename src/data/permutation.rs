//! A keyed permutation of 0..n that needs no memory: any entry is computed on its own.

use crate::rng::split_mix64;

const ROUNDS: usize = 10;

/// A pseudo-random permutation of `0..size`.
///
/// A Feistel network permutes the numbers of an even count of bits, at least as many as `size`
/// needs; results outside `0..size` are permuted again until they fall inside ("cycle walking",
/// Black & Rogaway 2002), which leaves a permutation of `0..size`. The network covers fewer than 4
/// · `size` numbers (4 for `size` 1), so fewer than 4 walks are needed on average.
#[derive(Clone, Debug)]
pub(super) struct Permutation {
    size: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..size` that belongs to `key`; `size` is at least 1 and below 2⁶².
    pub(super) fn new(size: u64, key: u64) -> Self {
        assert!((1..1 << 62).contains(&size), "a permutation of {size} numbers");
        let bits = 64 - (size - 1).leading_zeros();
        let mut keys = [0; ROUNDS];
        let mut state = key;
        for round_key in &mut keys {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            *round_key = split_mix64(state);
        }
        Self { size, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// The number at `index`.
    pub(super) fn at(&self, index: u64) -> u64 {
        assert!(index < self.size, "index {index} of a permutation of {} numbers", self.size);
        let mut number = self.network(index);
        while number >= self.size {
            number = self.network(number);
        }
        number
    }

    fn network(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (split_mix64(right ^ key) >> (64 - self.half_bits)));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(size: u64, key: u64) -> Vec<u64> {
        let permutation = Permutation::new(size, key);
        (0..size).map(|index| permutation.at(index)).collect()
    }

    fn is_permutation(numbers: &[u64]) -> bool {
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable();
        sorted.iter().copied().eq(0..numbers.len() as u64)
    }

    #[test]
    fn every_small_size_is_permuted() {
        for size in 1..=300 {
            assert!(is_permutation(&all(size, size * 31)), "{size}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_size_and_key_give_a_permutation(size in 1u64..20_000, key: u64) {
            prop_assert!(is_permutation(&all(size, key)));
        }

        #[test]
        fn large_sizes_stay_in_range(size in 1u64 << 40..1 << 61, key: u64, index: u64) {
            prop_assert!(Permutation::new(size, key).at(index % size) < size);
        }
    }

    #[test]
    fn keys_differ_and_positions_are_spread_evenly() {
        assert_ne!(all(1000, 1), all(1000, 2));
        // Where entry 0 of 10 goes, over 10 000 keys: χ² with 9 degrees of freedom is below 27.9
        // with probability 0.999.
        let mut counts = [0f64; 10];
        for key in 0..10_000 {
            counts[Permutation::new(10, key).at(0) as usize] += 1.0;
        }
        let chi_squared: f64 = counts.iter().map(|count| (count - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi_squared < 27.9, "{chi_squared} {counts:?}");
    }
}
