//! When and how a low-rank weight changes its rank (algorithms.md §4).

/// Rank policy of one weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankPolicy {
    /// The rank stays.
    Fixed,
    /// Grow, settle, truncate by tolerance, over and over.
    Tolerance(ToleranceCycle),
}

/// Cycles of growth and truncation.
///
/// A direction of size η never survives a truncation at τ right after its birth, so ranks change in cycles: at a growth the augmented
/// directions are kept, trained for `settle` steps, and only then does one truncation by τ decide what stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToleranceCycle {
    /// Relative Frobenius tolerance τ.
    pub tau: f64,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
    /// Steps between two growths.
    pub grow_every: u64,
    /// Steps from a growth to its truncation.
    pub settle: u64,
    /// Ranks added by a growth.
    pub grow_by: usize,
    /// Step of the first growth.
    pub start: u64,
    /// Last step at which a rank may change.
    pub freeze: u64,
}

/// What a step does to the rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankDecision {
    /// The rank stays.
    Keep,
    /// Keep this many of the augmented directions.
    Grow {
        /// The new rank, at most twice the old one.
        rank: usize,
    },
    /// Truncate by tolerance.
    Truncate {
        /// Relative Frobenius tolerance τ.
        tau: f64,
        /// Smallest rank.
        min_rank: usize,
        /// Largest rank.
        max_rank: usize,
    },
}

impl RankPolicy {
    /// The decision at a step (counted from 1) for a weight of this rank.
    ///
    /// A growth happens only if its truncation still falls before `freeze`, so no run ends with untested directions.
    pub fn decide(&self, step: u64, rank: usize) -> RankDecision {
        let RankPolicy::Tolerance(cycle) = self else { return RankDecision::Keep };
        if step < cycle.start || step > cycle.freeze {
            return RankDecision::Keep;
        }
        let phase = (step - cycle.start) % cycle.grow_every;
        let grown = (rank + cycle.grow_by).min(2 * rank).min(cycle.max_rank);
        if phase == 0 && grown > rank && step + cycle.settle <= cycle.freeze {
            RankDecision::Grow { rank: grown }
        } else if phase == cycle.settle {
            RankDecision::Truncate { tau: cycle.tau, min_rank: cycle.min_rank, max_rank: cycle.max_rank }
        } else {
            RankDecision::Keep
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CYCLE: ToleranceCycle =
        ToleranceCycle { tau: 0.1, min_rank: 4, max_rank: 40, grow_every: 10, settle: 6, grow_by: 16, start: 20, freeze: 47 };

    fn changes(policy: RankPolicy, rank: usize) -> Vec<(u64, RankDecision)> {
        (1..=100).map(|step| (step, policy.decide(step, rank))).filter(|(_, decision)| *decision != RankDecision::Keep).collect()
    }

    #[test]
    fn fixed_never_changes() {
        assert!(changes(RankPolicy::Fixed, 8).is_empty());
    }

    #[test]
    fn cycles_grow_settle_truncate_and_freeze() {
        let truncate = RankDecision::Truncate { tau: 0.1, min_rank: 4, max_rank: 40 };
        let grow = RankDecision::Grow { rank: 24 };
        let expected = vec![(20, grow), (26, truncate), (30, grow), (36, truncate), (40, grow), (46, truncate)];
        assert_eq!(changes(RankPolicy::Tolerance(CYCLE), 8).iter().map(|c| c.0).collect::<Vec<_>>(), vec![20, 26, 30, 36, 40, 46]);
        assert_eq!(changes(RankPolicy::Tolerance(ToleranceCycle { grow_by: 8, ..CYCLE }), 16), expected);
    }

    #[test]
    fn no_growth_without_its_truncation() {
        let cycle = ToleranceCycle { freeze: 45, ..CYCLE };
        assert_eq!(changes(RankPolicy::Tolerance(cycle), 8).last().map(|c| c.0), Some(36));
    }

    #[test]
    fn growth_is_at_most_doubling_and_at_most_the_maximum() {
        assert_eq!(RankPolicy::Tolerance(CYCLE).decide(20, 5), RankDecision::Grow { rank: 10 });
        assert_eq!(RankPolicy::Tolerance(CYCLE).decide(20, 30), RankDecision::Grow { rank: 40 });
        assert_eq!(RankPolicy::Tolerance(CYCLE).decide(20, 40), RankDecision::Keep);
    }
}
