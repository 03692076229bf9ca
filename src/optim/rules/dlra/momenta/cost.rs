//! What a momentum costs beside the first moment, counted by the momentum itself.

use crate::optim::cost::WeightSize;

/// Numbers and floating-point operations that a momentum adds for one weight; nothing unless said.
pub trait MomentumCost: Sync {
    /// Numbers kept beside the first moment.
    fn values(&self, _: WeightSize) -> u64 {
        0
    }

    /// Operations from the gradient to the direction.
    fn direction(&self, _: WeightSize) -> u64 {
        0
    }

    /// Operations of what becomes of the a × b core, of which a step has `times`, and of roots that
    /// are taken once a step.
    fn core(&self, _: WeightSize, _core: (u64, u64), _times: u64) -> u64 {
        0
    }

    /// Operations into bases of rank `new`.
    fn transport(&self, _: WeightSize, _new: u64) -> u64 {
        0
    }

    /// Whether the coefficients of `augmented_bug` have second moments of their own.
    fn has_coefficient_moments(&self) -> bool {
        false
    }
}

/// r² k + r k², which counts the products of r × r with r × k and of r × k with k × k.
pub(super) fn small_products(rank: u64, new: u64) -> u64 {
    rank * rank * new + rank * new * new
}
