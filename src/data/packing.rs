//! Several examples in a row, so that little of a row is filled up.

use super::permutation::Permutation;
use crate::rng;
use std::collections::BTreeSet;
use std::ops::Range;

/// Which examples share a row, in every epoch.
///
/// Rows are packed by best-fit decreasing (Johnson 1974): from the longest to the shortest, each
/// example goes where it leaves the least room. How many examples of which lengths a row has
/// follows from the lengths alone, so every epoch has the same rows; which of the examples of a
/// length those are is drawn anew, from (seed, epoch).
#[derive(Clone, Debug)]
pub(super) struct Packing {
    /// The examples, the longest first.
    by_length: Vec<usize>,
    /// The places in `by_length` whose examples are of one length.
    lengths: Vec<Range<usize>>,
    /// The places in `by_length` that each row has.
    rows: Vec<Vec<usize>>,
    /// Tokens of all examples.
    tokens: u64,
}

impl Packing {
    /// Rows of at most `room` tokens for examples of these lengths, each from 1 to `room`.
    pub(super) fn new(lengths: &[usize], room: usize) -> Self {
        let mut by_length: Vec<usize> = (0..lengths.len()).collect();
        by_length.sort_by_key(|number| std::cmp::Reverse(lengths[*number]));
        // The room that each row has left, and its number.
        let (mut rows, mut left) = (Vec::<Vec<usize>>::new(), BTreeSet::<(usize, usize)>::new());
        let mut groups: Vec<Range<usize>> = Vec::new();
        for (place, number) in by_length.iter().enumerate() {
            let length = lengths[*number];
            let best = left.range((length, 0)..).next().copied();
            let (room, row) = best.unwrap_or((room, rows.len()));
            left.remove(&(room, row));
            left.insert((room.saturating_sub(length), row));
            match rows.get_mut(row) {
                Some(row) => row.push(place),
                None => rows.push(vec![place]),
            }
            match groups.last_mut() {
                Some(group) if lengths[by_length[group.start]] == length => group.end = place + 1,
                _ => groups.push(place..place + 1),
            }
        }
        let tokens = lengths.iter().map(|length| *length as u64).sum();
        Self { by_length, lengths: groups, rows, tokens }
    }

    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    /// Share of rows of `room` tokens that examples fill.
    pub(super) fn filled(&self, room: usize) -> f64 {
        self.tokens as f64 / (self.rows.len() * room) as f64
    }

    /// The examples in a row, in this epoch of this seed.
    pub(super) fn row(&self, seed: u64, epoch: u64, row: usize) -> Vec<usize> {
        let example = |place: &usize| {
            let length = self.lengths.partition_point(|length| length.end <= *place);
            let Range { start, end } = self.lengths[length].clone();
            let key = rng::key64(seed, "packing", &[epoch, start as u64]);
            let drawn = Permutation::new((end - start) as u64, key).at((place - start) as u64);
            self.by_length[start + drawn as usize]
        };
        self.rows[row].iter().map(example).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_best_fit_is_taken() {
        // 7 and 3, 6 and 4, 5, 5: the 3 goes beside the 7, where it leaves nothing.
        let packing = Packing::new(&[3, 7, 5, 4, 6, 5], 10);
        let rows: Vec<Vec<usize>> = (0..packing.count())
            .map(|row| packing.row(1, 0, row))
            .map(|mut row| {
                row.sort_unstable();
                row
            })
            .collect();
        assert_eq!(rows, [vec![0, 1], vec![3, 4], vec![2, 5]]);
        assert_eq!(packing.filled(10), 1.0);
        assert_eq!(Packing::new(&[4], 16).filled(16), 0.25);
    }

    #[test]
    fn epochs_and_seeds_put_other_examples_together() {
        let lengths: Vec<usize> = (0..200).map(|i| 1 + i % 9).collect();
        let packing = Packing::new(&lengths, 20);
        let all = |seed, epoch| -> Vec<Vec<usize>> {
            (0..packing.count()).map(|row| packing.row(seed, epoch, row)).collect()
        };
        assert_eq!(all(1, 0), all(1, 0));
        assert_ne!(all(1, 0), all(1, 1));
        assert_ne!(all(1, 0), all(2, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every example is in one row, rows hold what they can, and any two are fuller than one.
        #[test]
        fn rows_hold_every_example_once(lengths in proptest::collection::vec(1usize..=32, 1..80), epoch in 0u64..3, seed: u64) {
            let packing = Packing::new(&lengths, 32);
            let rows: Vec<Vec<usize>> = (0..packing.count()).map(|row| packing.row(seed, epoch, row)).collect();
            let sizes: Vec<usize> = rows.iter().map(|row| row.iter().map(|number| lengths[*number]).sum()).collect();
            prop_assert!(sizes.iter().all(|size| (1..=32).contains(size)));
            prop_assert!((1..sizes.len()).all(|i| (0..i).all(|j| sizes[i] + sizes[j] > 32)));
            let mut all: Vec<usize> = rows.concat();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..lengths.len()));
        }
    }
}
