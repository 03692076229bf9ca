//! `spectral`: the polar factor of the tangent first moment, Muon on the manifold.

use super::super::DlraStep;
use super::TangentMomentum;
use super::cost::MomentumCost;
use crate::linalg::polar_newton_schulz_flops;
use crate::lowrank::LowRank;
use crate::optim::cost::WeightSize;
use crate::optim::leaves::LeafMap;
use candle_core::{Result, Tensor};

/// D = 0.2 √max(m, n) Û polar(core) V̂ᵀ, with the core of the tangent first moment in the augmented
/// bases; independent of how the factors are scaled or rotated.
#[derive(Clone, Debug)]
pub(super) struct Spectral;

impl TangentMomentum for Spectral {
    fn core(&self, point: &LowRank, core: &Tensor, hyper: &DlraStep) -> Result<Tensor> {
        hyper.polar(point, core)
    }

    fn map_leaves(&self, _: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>> {
        Ok(self.boxed_clone())
    }

    fn boxed_clone(&self) -> Box<dyn TangentMomentum> {
        Box::new(self.clone())
    }
}

/// Polar factors of the core.
pub(super) struct Cost;

impl MomentumCost for Cost {
    fn core(&self, _: WeightSize, (rows, columns): (u64, u64), times: u64) -> u64 {
        times * polar_newton_schulz_flops(rows, columns)
    }
}
