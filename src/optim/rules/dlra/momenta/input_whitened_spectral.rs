//! `input_whitened_spectral`: the polar factor of the tangent first moment, whitened before by the
//! second moment of the weight's inputs alone.

use super::TangentMomentum;
use super::cost::MomentumCost;
use super::form_mean::FormMean;
use crate::linalg::{multiply, polar_newton_schulz_flops, whitened, whitened_flops};
use crate::lowrank::{BasisChange, LowRank, Tangent};
use crate::optim::cost::WeightSize;
use crate::optim::leaves::LeafMap;
use crate::optim::rules::dlra::DlraStep;
use crate::spec::DlraSpec;
use candle_core::{D, Result, Tensor};

/// M̃ = M H, P̃ = P H, Q̃ = Q with H = (1+γ) c (Ĉ + γcI)^{-1}, Ĉ the bias-corrected decayed mean of
/// zᵀz, z = xV, which the forward pass has, and c = tr Ĉ / r; then D = 0.2 √max(m, n) times the
/// polar factor of Z̃ = U M̃ Vᵀ + P̃ Vᵀ + U Q̃ᵀ.
///
/// Z̃ is (1+γ) c Z (C + γcI)^{-1} for a second moment C = V Ĉ Vᵀ + c (I − VVᵀ) of inputs: what V
/// does not see of them was never measured, and counts as the mean of what it sees. Inputs without
/// a preferred direction leave Z as it is, and a factor of all inputs drops out. Newton-Muon (Du &
/// Su 2026, arXiv:2604.01472) with r × r matrices; it whitens gradients before the momentum, this
/// the momentum.
#[derive(Clone, Debug)]
pub(super) struct InputWhitenedSpectral(FormMean);

impl InputWhitenedSpectral {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        Ok(Self(FormMean::new(&point.s)?))
    }

    /// At a point that a dense matrix was cut to, with what V sees of the decayed sum of xᵀx, n × n,
    /// whose weights add up to `gathered`.
    pub fn carried(point: &LowRank, inputs: &Tensor, gathered: f64) -> Result<Self> {
        let gathered = Tensor::new(&[gathered], inputs.device())?;
        Ok(Self(FormMean::seen(inputs, &gathered, &point.v)?))
    }
}

/// I of this shape, r × r or a stack of such.
fn identity_like(square: &Tensor) -> Result<Tensor> {
    let size = square.dim(D::Minus1)?;
    Tensor::eye(size, square.dtype(), square.device())?.broadcast_as(square.shape())?.contiguous()
}

impl TangentMomentum for InputWhitenedSpectral {
    fn take_inputs(&mut self, inputs: &Tensor, settings: &DlraSpec) -> Result<()> {
        self.0.update(settings.beta2, 1.0 - settings.beta2, inputs)
    }

    fn direction(
        &self,
        _: &LowRank,
        mean: Tangent,
        _: f64,
        settings: &DlraSpec,
    ) -> Result<Tangent> {
        // H itself, so that where tensors are on a device only r × r go to the host.
        let inputs = self.0.mean()?;
        let right = whitened(&identity_like(&inputs)?, &inputs, settings.input_damping)?;
        Ok(Tangent { m: multiply(&mean.m, &right)?, p: multiply(&mean.p, &right)?, q: mean.q })
    }

    fn core(&self, point: &LowRank, core: &Tensor, hyper: &DlraStep) -> Result<Tensor> {
        hyper.polar(point, core)
    }

    fn transport(&mut self, change: &BasisChange, _: &DlraSpec) -> Result<()> {
        let rotation = change.rotation_v();
        self.0.transport(&rotation.t()?, rotation)
    }

    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>> {
        Ok(Box::new(Self(self.0.map_leaves("input_second", map)?)))
    }

    fn boxed_clone(&self) -> Box<dyn TangentMomentum> {
        Box::new(self.clone())
    }
}

/// Two r × r matrices, a root of one, division by the other, and a polar factor.
pub(super) struct Cost;

impl MomentumCost for Cost {
    fn values(&self, size: WeightSize) -> u64 {
        FormMean::values(size)
    }

    /// M H and P H, 2 m r² + 2 r³.
    fn direction(&self, size: WeightSize) -> u64 {
        2 * size.rows * size.rank * size.rank + 2 * size.cube()
    }

    /// The mean's root by symmetric eigenvalues, 9 r³ + 2 r³ (Golub & Van Loan, §8.3), and its two
    /// products, 2 r³ each; H; then the polar factors.
    fn core(&self, size: WeightSize, (rows, columns): (u64, u64), times: u64) -> u64 {
        15 * size.cube()
            + whitened_flops(size.rank, size.rank)
            + times * polar_newton_schulz_flops(rows, columns)
    }

    fn transport(&self, size: WeightSize, new: u64) -> u64 {
        FormMean::transport_flops(size, new)
    }
}
