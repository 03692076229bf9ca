//! One budget of parameters for all low-rank weights: the directions with the highest scores are
//! kept until it is spent.

use crate::spec::RankCount;

/// What a weight W: m × n offers.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetCandidate {
    /// Rows plus columns, m + n.
    pub sides: usize,
    /// What counts as its numbers.
    pub count: RankCount,
    /// Score of each direction, of the largest singular value first.
    pub scores: Vec<f64>,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
}

/// Giving up the last directions of a weight, down to this rank, at this score per number freed.
#[derive(Clone, Copy)]
struct Fall {
    rank: usize,
    price: f64,
}

impl BudgetCandidate {
    fn numbers(&self, rank: usize) -> u64 {
        self.count.numbers(self.sides, rank)
    }

    fn freed(&self, from: usize, to: usize) -> u64 {
        self.numbers(from) - self.numbers(to)
    }

    /// The cheapest fall from this rank.
    ///
    /// Of stored numbers, r (m + n + r), every further direction frees fewer and is worth more: it
    /// is the last direction. Of exported ones, r (m + n − r), the first directions to go free the
    /// fewest, next to nothing at full rank, and a fall by many can cost less per number than one
    /// by one: the least over all ranks is the next corner of the convex hull of what the ranks
    /// lose over what they free.
    fn cheapest_fall(&self, from: usize) -> Option<Fall> {
        let lowest = match self.count {
            RankCount::Stored => self.min_rank.max(from.saturating_sub(1)),
            RankCount::Exported => self.min_rank,
        };
        let (mut best, mut lost): (Option<Fall>, f64) = (None, 0.0);
        for rank in (lowest..from).rev() {
            lost += self.scores[rank];
            let price = lost / self.freed(from, rank) as f64;
            if best.is_none_or(|best| price.total_cmp(&best.price).is_lt()) {
                best = Some(Fall { rank, price });
            }
        }
        best
    }
}

/// The ranks that keep the highest scores per number while all weights together have at most
/// `budget` numbers.
///
/// Starting from every offered direction, the weight whose cheapest fall costs the lowest score
/// per number freed takes it, until the budget holds: the price at which that is so is the Lagrange
/// multiplier of the budget. The last fall goes only as far as the budget asks. Directions go from
/// the smallest singular value up, so a weight keeps its leading ones. Equal prices go by the
/// weights' order. No weight goes below its `min_rank`, even if the budget is not met then.
pub fn allocate(budget: u64, candidates: &[BudgetCandidate]) -> Vec<usize> {
    let mut ranks: Vec<usize> = candidates.iter().map(|c| c.scores.len().min(c.max_rank)).collect();
    let mut spent: u64 =
        candidates.iter().zip(&ranks).map(|(candidate, &rank)| candidate.numbers(rank)).sum();
    let mut falls: Vec<Option<Fall>> =
        candidates.iter().zip(&ranks).map(|(c, &rank)| c.cheapest_fall(rank)).collect();
    while spent > budget {
        let possible = falls.iter().enumerate().filter_map(|(i, fall)| Some((i, (*fall)?)));
        let least = possible.min_by(|(_, a), (_, b)| a.price.total_cmp(&b.price));
        let Some((least, fall)) = least else { break };
        let (candidate, from) = (&candidates[least], ranks[least]);
        let excess = spent - budget;
        let enough = (fall.rank..from).rev().find(|&to| candidate.freed(from, to) >= excess);
        ranks[least] = enough.unwrap_or(fall.rank);
        spent -= candidate.freed(from, ranks[least]);
        falls[least] = candidate.cheapest_fall(ranks[least]);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(sides: usize, scores: &[f64]) -> BudgetCandidate {
        let count = RankCount::Stored;
        BudgetCandidate { sides, count, scores: scores.to_vec(), min_rank: 1, max_rank: 99 }
    }

    #[test]
    fn the_weakest_directions_go_first_whatever_weight_they_are_in() {
        let candidates = [
            candidate(10, &[9.0, 8.0, 7.0]),
            candidate(10, &[3.0, 2.0, 0.1]),
            candidate(10, &[6.0, 0.2, 0.15]),
        ];
        assert_eq!(allocate(1000, &candidates), [3, 3, 3]);
        // 3 × 39 = 117 numbers; the ranks 3, 2, 1 store 39 + 24 + 11 = 74.
        assert_eq!(allocate(80, &candidates), [3, 2, 1]);
    }

    #[test]
    fn a_direction_that_costs_more_must_be_worth_more() {
        let candidates = [candidate(100, &[5.0, 1.5]), candidate(10, &[5.0, 1.0])];
        assert_eq!(allocate(300, &candidates).iter().sum::<usize>(), 4);
        assert_eq!(allocate(200, &candidates), [1, 2]);
    }

    #[test]
    fn the_smallest_rank_holds_even_if_the_budget_does_not() {
        let candidates = [BudgetCandidate { min_rank: 2, ..candidate(10, &[1.0, 0.5, 0.1]) }];
        assert_eq!(allocate(1, &candidates), [2]);
    }

    /// W of rank 3 as it is has 15 numbers of 15, of rank 2 has 12, of rank 1 has 7. One direction
    /// of the first costs 0.9 for 3 numbers and both cost 1.9 for 8, less a number.
    #[test]
    fn of_exported_numbers_a_fall_by_many_may_be_cheapest() {
        let count = RankCount::Exported;
        let candidates = [
            BudgetCandidate { count, max_rank: 3, ..candidate(8, &[9.0, 1.0, 0.9]) },
            BudgetCandidate { count, max_rank: 3, ..candidate(8, &[9.0, 9.0, 0.8]) },
        ];
        assert_eq!(count.numbers(8, 3), 15);
        assert_eq!(allocate(30, &candidates), [3, 3]);
        assert_eq!(allocate(23, &candidates), [1, 3]);
        // The fall goes only as far as the budget asks.
        assert_eq!(allocate(28, &candidates), [2, 3]);
        assert_eq!(allocate(20, &candidates), [1, 2]);
    }

    proptest! {
        /// There is a price λ at which every weight but the last to fall minimises its loss plus λ
        /// times its numbers, over all ranks: the condition of a constrained minimum.
        #[test]
        fn exported_numbers_have_one_price(
            spectra in prop::collection::vec(prop::collection::vec(0.001f64..1.0, 2..9), 1..5),
            share in 0.1f64..1.0,
        ) {
            let candidates: Vec<BudgetCandidate> = spectra.into_iter().map(|mut scores| {
                scores.sort_by(|a, b| b.total_cmp(a));
                let (sides, max_rank) = (2 * scores.len() + 3, scores.len());
                let count = RankCount::Exported;
                BudgetCandidate { count, max_rank, ..candidate(sides, &scores) }
            }).collect();
            let full: u64 = candidates.iter().map(|c| c.numbers(c.scores.len())).sum();
            let least: u64 = candidates.iter().map(|c| c.numbers(1)).sum();
            let budget = least.max((full as f64 * share) as u64);
            let ranks = allocate(budget, &candidates);
            let spent: u64 = candidates.iter().zip(&ranks).map(|(c, &rank)| c.numbers(rank)).sum();
            prop_assert!(spent <= budget);
            let lost = |c: &BudgetCandidate, rank: usize| c.scores[rank..].iter().sum::<f64>();
            let mut prices = vec![0.0];
            for c in &candidates {
                for (low, high) in (1..=c.scores.len()).flat_map(|h| (1..h).map(move |l| (l, h))) {
                    prices.push((lost(c, low) - lost(c, high)) / c.freed(high, low) as f64);
                }
            }
            let is_least = |c: &BudgetCandidate, rank: usize, price: f64| {
                let sum = |rank: usize| lost(c, rank) + price * c.numbers(rank) as f64;
                (1..=c.scores.len()).all(|other| sum(rank) <= sum(other) + 1e-9)
            };
            let not_least = |price: f64| {
                candidates.iter().zip(&ranks).filter(|(c, rank)| !is_least(c, **rank, price)).count()
            };
            prop_assert!(prices.iter().any(|price| not_least(*price) <= 1), "{ranks:?}");
        }

        /// The budget is kept, one more direction anywhere would break it or was worth no more than
        /// what remains per parameter.
        #[test]
        fn keeps_the_budget_and_spends_it(
            spectra in prop::collection::vec((prop::collection::vec(0.01f64..1.0, 1..12), 5usize..40), 1..6),
            share in 0.2f64..1.0,
        ) {
            let candidates: Vec<BudgetCandidate> = spectra.into_iter().map(|(mut scores, sides)| {
                scores.sort_by(|a, b| b.total_cmp(a));
                candidate(sides, &scores)
            }).collect();
            let full: u64 = candidates.iter().map(|c| c.numbers(c.scores.len())).sum();
            let least: u64 = candidates.iter().map(|c| c.numbers(1)).sum();
            let budget = least.max((full as f64 * share) as u64);
            let ranks = allocate(budget, &candidates);
            let spent: u64 = candidates.iter().zip(&ranks).map(|(c, &rank)| c.numbers(rank)).sum();
            prop_assert!(spent <= budget);
            // Less is unspent than the costliest single direction.
            let costliest = candidates.iter().map(|c| c.sides + 2 * c.scores.len()).max().unwrap_or(0) as u64;
            prop_assert!(spent == full || budget - spent < costliest, "{spent} of {budget}");
        }
    }
}
