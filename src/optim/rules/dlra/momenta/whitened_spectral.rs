//! `whitened_spectral`: the polar factor of the tangent first moment, whitened before.

use super::TangentMomentum;
use super::cost::MomentumCost;
use super::matrix_moments::MatrixMoments;
use crate::linalg::{inverse_square_root, multiply, polar_newton_schulz_flops, square_roots};
use crate::lowrank::{BasisChange, LowRank, Tangent};
use crate::optim::cost::WeightSize;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use crate::optim::rules::dlra::DlraStep;
use crate::spec::DlraSpec;
use candle_core::{Result, Tensor};

/// Share of the mean eigenvalue that is added before the root, so that directions without gradient
/// are not blown up.
const RELATIVE_EPSILON: f64 = 1e-3;

/// M̃ = E_U^{-¼} M E_V^{-¼}, P̃ = P E_V^{-¼}, Q̃ = Q E_U^{-¼} with the bias-corrected second
/// moments E_V = Â_K and E_U = Â_L of [`MatrixMoments`], then D = 0.2 √max(m, n) times the polar
/// factor of Z̃ = U M̃ Vᵀ + P̃ Vᵀ + U Q̃ᵀ.
///
/// Z̃ is a tangent vector, since columns are only mixed. Its norm drops out of the polar factor, so
/// that it need not be brought back to that of Z. Shampoo's exponents (Gupta et al. 2018) on the
/// rank-wide sides, before the step of `spectral`.
#[derive(Clone, Debug)]
pub(super) struct WhitenedSpectral(MatrixMoments);

impl WhitenedSpectral {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        Ok(Self(MatrixMoments::new(point)?))
    }
}

/// (A + ε (tr A / r) I)^{-¼}.
fn inverse_fourth_root(a: &Tensor) -> Result<Tensor> {
    inverse_square_root(&square_roots(a, RELATIVE_EPSILON)?.root, 0.0)
}

impl TangentMomentum for WhitenedSpectral {
    fn update(
        &mut self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        settings: &DlraSpec,
    ) -> Result<()> {
        self.0.update(point, gradient, settings.beta2)
    }

    fn direction(&self, _: &LowRank, mean: Tangent, _: f64, _: &DlraSpec) -> Result<Tangent> {
        let [k, l] = self.0.means()?;
        let (right, left) = (inverse_fourth_root(&k)?, inverse_fourth_root(&l)?);
        Ok(Tangent {
            m: multiply(&multiply(&left, &mean.m)?, &right)?,
            p: multiply(&mean.p, &right)?,
            q: multiply(&mean.q, &left)?,
        })
    }

    fn core(&self, point: &LowRank, core: &Tensor, hyper: &DlraStep) -> Result<Tensor> {
        hyper.polar(point, core)
    }

    fn transport(&mut self, change: &BasisChange, _: &DlraSpec) -> Result<()> {
        self.0.transport(change)
    }

    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>> {
        Ok(Box::new(Self(self.0.map_leaves(map)?)))
    }

    fn boxed_clone(&self) -> Box<dyn TangentMomentum> {
        Box::new(self.clone())
    }
}

/// Four r × r matrices, their roots, and a polar factor.
pub(super) struct Cost;

impl MomentumCost for Cost {
    fn values(&self, size: WeightSize) -> u64 {
        MatrixMoments::values(size)
    }

    /// The second moments, and the whitening, 2 (m + n) r² + 4 r³.
    fn direction(&self, size: WeightSize) -> u64 {
        MatrixMoments::update_flops(size) + 2 * size.sides() + 4 * size.cube()
    }

    /// Six roots by symmetric eigenvalues, 9 r³ + 2 r³ each (Golub & Van Loan, §8.3), and four
    /// products, 2 r³ each; then the polar factors.
    fn core(&self, size: WeightSize, (rows, columns): (u64, u64), times: u64) -> u64 {
        74 * size.cube() + times * polar_newton_schulz_flops(rows, columns)
    }

    fn transport(&self, size: WeightSize, new: u64) -> u64 {
        MatrixMoments::transport_flops(size, new)
    }
}
