//! What a rule costs, counted by the rule itself: numbers that it keeps and holds, operations of its
//! own products.

use crate::spec::{CyclePhase, DenseOptimizerSpec, LowRankOptimizerSpec, MatrixOptimizerSpec};
use crate::spec::{OptimizerPlan, WeightForm};

/// An m × n weight of rank r; r is 0 where the weight is full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightSize {
    /// m.
    pub rows: u64,
    /// n.
    pub columns: u64,
    /// r.
    pub rank: u64,
}

impl WeightSize {
    /// (m + n) r².
    pub fn sides(self) -> u64 {
        (self.rows + self.columns) * self.rank * self.rank
    }

    /// r³.
    pub fn cube(self) -> u64 {
        self.rank * self.rank * self.rank
    }

    /// min(m, n) and max(m, n).
    pub fn short_and_long(self) -> (u64, u64) {
        (self.rows.min(self.columns), self.rows.max(self.columns))
    }

    /// Operations of the thin SVD of a dense m × n matrix, 14 a² b + 8 a³ for a ≤ b the sides
    /// (Golub & Van Loan, §8.6).
    pub fn dense_svd_flops(self) -> u64 {
        let (short, long) = self.short_and_long();
        14 * short * short * long + 8 * short * short * short
    }

    /// Numbers of f32 that take the room of that SVD in f64: two copies of the matrix and both
    /// bases.
    pub fn dense_svd_values(self) -> u64 {
        let (short, long) = self.short_and_long();
        2 * (2 * short * long + (short + long) * short)
    }
}

/// A weight that a rule moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovedWeight {
    /// Its sides and rank.
    pub size: WeightSize,
    /// Numbers that it stores and that move.
    pub values: u64,
}

/// What a rule costs beside the weight and its gradient.
pub trait RuleCost {
    /// Numbers kept from step to step.
    fn kept(&self, weight: MovedWeight) -> u64;

    /// Numbers that a step holds for every weight, beside the old ones, before it changes any.
    fn proposed(&self, _: MovedWeight) -> u64 {
        0
    }

    /// Numbers that a step needs while it works on one weight.
    fn in_hand(&self, _: MovedWeight) -> u64 {
        0
    }

    /// Numbers of the second moment of the weight's inputs, where every backward pass measures it for
    /// this rule.
    fn input_moment(&self, _: MovedWeight) -> u64 {
        0
    }

    /// Operations of the rule's own products in a step on all these weights; where steps differ,
    /// of one in this phase of a cycle, or the mean.
    fn flops(&self, _: &[MovedWeight], _: Option<CyclePhase>) -> u64 {
        0
    }
}

/// The rule that moves a weight of this form, which is that of what is trained.
pub fn rule_cost(plan: &OptimizerPlan, form: WeightForm) -> &dyn RuleCost {
    let DenseOptimizerSpec::Adamw(dense) = &plan.dense;
    match (form, &plan.matrices, &plan.low_rank) {
        (WeightForm::Dense, Some(MatrixOptimizerSpec::Muon(muon)), _) => muon,
        (WeightForm::Dense, Some(MatrixOptimizerSpec::Galore(galore)), _) => galore,
        (WeightForm::Dense | WeightForm::Adapter { .. }, ..) | (_, _, None) => dense,
        (_, _, Some(LowRankOptimizerSpec::Dlra(dlra))) => dlra,
        (_, _, Some(LowRankOptimizerSpec::Adamw(adamw))) => adamw,
        (_, _, Some(LowRankOptimizerSpec::HeavyBall(heavy_ball))) => heavy_ball,
        (_, _, Some(LowRankOptimizerSpec::Loro(loro))) => loro,
    }
}
