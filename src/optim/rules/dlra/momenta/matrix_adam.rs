//! Second moments of the K- and L-gradient as r × r matrices (`matrix_adam`).

use super::TangentMomentum;
use super::cost::{MomentumCost, WeightSize, small_products};
use crate::linalg::{inverse_square_root, multiply, weighted_sum};
use crate::lowrank::{BasisChange, LowRank, Tangent};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use crate::spec::DlraSpec;
use candle_core::{Result, Tensor};

/// Share of the mean eigenvalue that is added before the inverse root, so that directions without
/// gradient are not blown up.
const RELATIVE_EPSILON: f64 = 1e-3;

/// Decayed means of (GV)ᵀ(GV)/m, which scales the columns that belong to V, and of (GᵀU)ᵀ(GᵀU)/n,
/// for U.
///
/// A ← β₂A + (1−β₂)(GV)ᵀ(GV)/m and its gathered weight C ← β₂C + (1−β₂)I travel as quadratic forms,
/// A ← RᵀAR and C ← RᵀCR with R = V₀ᵀV, which is exact: a second moment of coordinates in new bases
/// is that form. Â = C^{-½} A C^{-½} is the bias-corrected mean, A/(1−β₂ᵗ) in fixed bases;
/// directions that are new since the last rank change have gathered less and are corrected for that
/// alone. Nothing depends on how the bases are rotated. In the spirit of Shampoo (Gupta et al.
/// 2018) with exponent −½ on the rank-wide sides only.
#[derive(Clone, Debug)]
pub(super) struct MatrixAdam {
    /// Of the K-gradient, r × r in V's coordinates.
    k: Tensor,
    k_weight: Tensor,
    /// Of the L-gradient, r × r in U's coordinates.
    l: Tensor,
    l_weight: Tensor,
}

impl MatrixAdam {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        let zeros = point.s.zeros_like()?;
        Ok(Self { k: zeros.clone(), k_weight: zeros.clone(), l: zeros.clone(), l_weight: zeros })
    }
}

impl TangentMomentum for MatrixAdam {
    /// (GV)ᵀ(GV) = MᵀM + PᵀP and (GᵀU)ᵀ(GᵀU) = MMᵀ + QᵀQ.
    fn update(
        &mut self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        settings: &DlraSpec,
    ) -> Result<()> {
        let beta2 = settings.beta2;
        let Tangent { m, p, q } = gradient.sum();
        let form = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            multiply(&a.t()?, a)? + multiply(&b.t()?, b)?
        };
        let weight = gradient.square_factor(1.0 - beta2);
        self.k = weighted_sum(beta2, &self.k, weight / point.rows() as f64, &form(m, p)?)?;
        let l = form(&m.t()?.contiguous()?, q)?;
        self.l = weighted_sum(beta2, &self.l, weight / point.columns() as f64, &l)?;
        let identity = Tensor::eye(point.rank(), m.dtype(), m.device())?.broadcast_as(m.shape())?;
        self.k_weight = weighted_sum(beta2, &self.k_weight, 1.0 - beta2, &identity)?;
        self.l_weight = weighted_sum(beta2, &self.l_weight, 1.0 - beta2, &identity)?;
        Ok(())
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
        let root = |sum: &Tensor, weight: &Tensor| -> Result<Tensor> {
            let whiten = inverse_square_root(weight, 0.0)?;
            inverse_square_root(&multiply(&multiply(&whiten, sum)?, &whiten)?, RELATIVE_EPSILON)
        };
        let (right, left) = (root(&self.k, &self.k_weight)?, root(&self.l, &self.l_weight)?);
        let (half, whole) = (0.5 / gathered, 1.0 / gathered);
        Ok(Tangent {
            m: weighted_sum(half, &multiply(&mean.m, &right)?, half, &multiply(&left, &mean.m)?)?,
            p: (multiply(&mean.p, &right)? * whole)?,
            q: (multiply(&mean.q, &left)? * whole)?,
        })
    }

    /// As quadratic forms.
    fn transport(&mut self, change: &BasisChange, _: &DlraSpec) -> Result<()> {
        let (left, right) = (change.rotation_u(), change.rotation_v());
        let right_t = right.t()?;
        let form = |a: &Tensor, x: &Tensor, b: &Tensor| multiply(&multiply(a, x)?, b);
        self.k = form(&right_t, &self.k, right)?;
        self.k_weight = form(&right_t, &self.k_weight, right)?;
        self.l = form(left, &self.l, &left.t()?)?;
        self.l_weight = form(left, &self.l_weight, &left.t()?)?;
        Ok(())
    }

    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>> {
        Ok(Box::new(Self {
            k: map.tensor("k_second", &self.k)?,
            k_weight: map.tensor("k_second_weight", &self.k_weight)?,
            l: map.tensor("l_second", &self.l)?,
            l_weight: map.tensor("l_second_weight", &self.l_weight)?,
        }))
    }

    fn boxed_clone(&self) -> Box<dyn TangentMomentum> {
        Box::new(self.clone())
    }
}

/// Four r × r matrices and their inverse roots.
pub(super) struct Cost;

impl MomentumCost for Cost {
    /// Two second moments and the weights that they have gathered: 4 r².
    fn values(&self, size: WeightSize) -> u64 {
        4 * size.rank * size.rank
    }

    /// The second moments, 2 (m + n) r² + 4 r³, and the direction, 2 (m + n) r² + 4 r³.
    fn direction(&self, size: WeightSize) -> u64 {
        4 * size.sides() + 8 * size.cube()
    }

    /// Four inverse roots by symmetric eigenvalues, 9 r³ + 2 r³ each (Golub & Van Loan, §8.3), and
    /// four products, 2 r³ each.
    fn core(&self, size: WeightSize, _: (u64, u64), _: u64) -> u64 {
        52 * size.cube()
    }

    fn transport(&self, size: WeightSize, new: u64) -> u64 {
        8 * small_products(size.rank, new)
    }
}
