//! Which checkpoints may go.

/// The steps to delete of those that exist: all but the newest `keep_last` and the best.
///
/// The newest stays even for `keep_last` = 0. The result is in ascending order.
pub fn to_delete(existing_steps: &[u64], keep_last: usize, best: Option<u64>) -> Vec<u64> {
    let mut steps = existing_steps.to_vec();
    steps.sort_unstable();
    steps.dedup();
    steps.truncate(steps.len().saturating_sub(keep_last.max(1)));
    steps.retain(|&step| Some(step) != best);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples() {
        assert!(to_delete(&[], 2, None).is_empty());
        assert!(to_delete(&[100], 0, None).is_empty());
        assert!(to_delete(&[100, 200], 5, Some(999)).is_empty());
        assert_eq!(to_delete(&[300, 100, 200], 2, None), [100]);
        assert_eq!(to_delete(&[300, 100, 200, 400], 1, Some(200)), [100, 300]);
    }

    proptest! {
        #[test]
        fn the_newest_and_the_best_stay(
            steps in prop::collection::btree_set(0u64..50, 1..12),
            keep_last in 0usize..6,
            best in prop::option::of(0u64..50),
        ) {
            let steps: Vec<u64> = steps.into_iter().collect();
            let deleted = to_delete(&steps, keep_last, best);
            let kept: Vec<u64> = steps.iter().copied().filter(|step| !deleted.contains(step)).collect();
            prop_assert!(deleted.iter().all(|step| steps.contains(step) && Some(*step) != best));
            let newest = &steps[steps.len() - keep_last.clamp(1, steps.len())..];
            prop_assert!(newest.iter().all(|step| kept.contains(step)));
            // Nothing is kept without a reason.
            prop_assert!(kept.iter().all(|step| newest.contains(step) || Some(*step) == best));
        }
    }
}
