//! `heavy_ball`: the direction is the tangent first moment itself.

use super::TangentMomentum;
use super::cost::MomentumCost;
use crate::optim::leaves::LeafMap;

/// m ← β₁m + g, D = m: the SGD-with-momentum form. The paper's V ← (1−γ)V − λ∇L, W ← W + λV is this
/// with β₁ = 1−γ and η = λ² (Schotthöfer, Klein & Kusch 2025, arXiv:2506.17475).
#[derive(Clone, Debug)]
pub(super) struct HeavyBall;

impl TangentMomentum for HeavyBall {
    fn gradient_weight(&self, _: f64) -> f64 {
        1.0
    }

    fn map_leaves(&self, _: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>> {
        Ok(self.boxed_clone())
    }

    fn boxed_clone(&self) -> Box<dyn TangentMomentum> {
        Box::new(self.clone())
    }
}

/// Nothing beside the first moment.
pub(super) struct Cost;

impl MomentumCost for Cost {}
