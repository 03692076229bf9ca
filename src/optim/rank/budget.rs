//! One budget of parameters for all low-rank weights: the directions with the highest scores are
//! kept until it is spent.

/// What a weight W: m × n offers.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetCandidate {
    /// Rows plus columns, m + n.
    pub sides: usize,
    /// Score of each direction, of the largest singular value first.
    pub scores: Vec<f64>,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
}

impl BudgetCandidate {
    /// Numbers stored at rank r: r (m + n + r).
    fn parameters(&self, rank: usize) -> u64 {
        (rank * (self.sides + rank)) as u64
    }
}

/// The ranks that keep the highest scores per parameter while all weights together store at most
/// `budget` numbers.
///
/// Starting from every offered direction, the last direction of the weight where it has the lowest
/// score per parameter freed, m + n + 2r − 1 of them at rank r, is given up until the budget holds.
/// Directions go from the smallest singular value up, so a weight keeps its leading ones. Equal
/// scores go by the weights' order. No weight goes below its `min_rank`, even if the budget is not
/// met then.
pub fn allocate(budget: u64, candidates: &[BudgetCandidate]) -> Vec<usize> {
    let mut ranks: Vec<usize> = candidates.iter().map(|c| c.scores.len().min(c.max_rank)).collect();
    let mut spent: u64 =
        candidates.iter().zip(&ranks).map(|(candidate, &rank)| candidate.parameters(rank)).sum();
    while spent > budget {
        let shrinkable = (0..ranks.len()).filter(|&i| ranks[i] > candidates[i].min_rank);
        let worth = |i: usize| {
            let freed = candidates[i].parameters(ranks[i]) - candidates[i].parameters(ranks[i] - 1);
            candidates[i].scores[ranks[i] - 1] / freed as f64
        };
        let Some(least) = shrinkable.min_by(|&a, &b| worth(a).total_cmp(&worth(b))) else { break };
        spent -= candidates[least].parameters(ranks[least])
            - candidates[least].parameters(ranks[least] - 1);
        ranks[least] -= 1;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(sides: usize, scores: &[f64]) -> BudgetCandidate {
        BudgetCandidate { sides, scores: scores.to_vec(), min_rank: 1, max_rank: 99 }
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

    proptest! {
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
            let full: u64 = candidates.iter().map(|c| c.parameters(c.scores.len())).sum();
            let least: u64 = candidates.iter().map(|c| c.parameters(1)).sum();
            let budget = least.max((full as f64 * share) as u64);
            let ranks = allocate(budget, &candidates);
            let spent: u64 = candidates.iter().zip(&ranks).map(|(c, &rank)| c.parameters(rank)).sum();
            prop_assert!(spent <= budget);
            // Less is unspent than the costliest single direction.
            let costliest = candidates.iter().map(|c| c.sides + 2 * c.scores.len()).max().unwrap_or(0) as u64;
            prop_assert!(spent == full || budget - spent < costliest, "{spent} of {budget}");
        }
    }
}
