//! `matrix_adam`: the tangent first moment over r × r second moments of the K- and L-gradient.

use super::TangentMomentum;
use super::cost::MomentumCost;
use super::matrix_moments::MatrixMoments;
use crate::linalg::{inverse_square_root, multiply, weighted_sum};
use crate::lowrank::{BasisChange, LowRank, Tangent};
use crate::optim::cost::WeightSize;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use crate::spec::DlraSpec;
use candle_core::Result;

/// Share of the mean eigenvalue that is added before the inverse root, so that directions without
/// gradient are not blown up.
const RELATIVE_EPSILON: f64 = 1e-3;

/// In the spirit of Shampoo (Gupta et al. 2018) with exponent −½ on the rank-wide sides only.
#[derive(Clone, Debug)]
pub(super) struct MatrixAdam(MatrixMoments);

impl MatrixAdam {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        Ok(Self(MatrixMoments::new(point)?))
    }
}

impl TangentMomentum for MatrixAdam {
    fn update(
        &mut self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        settings: &DlraSpec,
    ) -> Result<()> {
        self.0.update(point, gradient, settings.beta2)
    }

    /// D_M = ½ (m̂ R + L m̂), D_P = p̂ R, D_Q = q̂ L with R = (Â_K + ε)^{-½}, L = (Â_L + ε)^{-½}: a
    /// tangent vector, since columns are only mixed.
    fn direction(
        &self,
        _: &LowRank,
        mean: Tangent,
        gathered: f64,
        _: &DlraSpec,
    ) -> Result<Tangent> {
        let [k, l] = self.0.means()?;
        let right = inverse_square_root(&k, RELATIVE_EPSILON)?;
        let left = inverse_square_root(&l, RELATIVE_EPSILON)?;
        let (half, whole) = (0.5 / gathered, 1.0 / gathered);
        Ok(Tangent {
            m: weighted_sum(half, &multiply(&mean.m, &right)?, half, &multiply(&left, &mean.m)?)?,
            p: (multiply(&mean.p, &right)? * whole)?,
            q: (multiply(&mean.q, &left)? * whole)?,
        })
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

/// Four r × r matrices and their inverse roots.
pub(super) struct Cost;

impl MomentumCost for Cost {
    fn values(&self, size: WeightSize) -> u64 {
        MatrixMoments::values(size)
    }

    /// The second moments, and the direction, 2 (m + n) r² + 4 r³.
    fn direction(&self, size: WeightSize) -> u64 {
        MatrixMoments::update_flops(size) + 2 * size.sides() + 4 * size.cube()
    }

    /// Four inverse roots by symmetric eigenvalues, 9 r³ + 2 r³ each (Golub & Van Loan, §8.3), and
    /// four products, 2 r³ each.
    fn core(&self, size: WeightSize, _: (u64, u64), _: u64) -> u64 {
        52 * size.cube()
    }

    fn transport(&self, size: WeightSize, new: u64) -> u64 {
        MatrixMoments::transport_flops(size, new)
    }
}
