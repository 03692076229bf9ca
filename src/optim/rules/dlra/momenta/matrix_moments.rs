//! Second moments of the K- and L-gradient as r × r matrices, for the momenta that use them.

use super::cost::small_products;
use crate::linalg::{inverse_square_root, multiply, weighted_sum};
use crate::lowrank::{BasisChange, LowRank, Tangent};
use crate::optim::cost::WeightSize;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use candle_core::{Result, Tensor};

/// Decayed means of (GV)ᵀ(GV)/m, which scales the columns that belong to V, and of (GᵀU)ᵀ(GᵀU)/n,
/// for U.
///
/// A ← β₂A + (1−β₂)(GV)ᵀ(GV)/m and its gathered weight C ← β₂C + (1−β₂)I travel as quadratic forms,
/// A ← RᵀAR and C ← RᵀCR with R = V₀ᵀV, which is exact: a second moment of coordinates in new bases
/// is that form. Â = C^{-½} A C^{-½} is the bias-corrected mean, A/(1−β₂ᵗ) in fixed bases;
/// directions that are new since the last rank change have gathered less and are corrected for that
/// alone. Nothing depends on how the bases are rotated.
#[derive(Clone, Debug)]
pub(super) struct MatrixMoments {
    /// Of the K-gradient, r × r in V's coordinates.
    k: Tensor,
    k_weight: Tensor,
    /// Of the L-gradient, r × r in U's coordinates.
    l: Tensor,
    l_weight: Tensor,
}

impl MatrixMoments {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        let zeros = point.s.zeros_like()?;
        Ok(Self { k: zeros.clone(), k_weight: zeros.clone(), l: zeros.clone(), l_weight: zeros })
    }

    /// (GV)ᵀ(GV) = MᵀM + PᵀP and (GᵀU)ᵀ(GᵀU) = MMᵀ + QᵀQ.
    pub fn update(&mut self, point: &LowRank, gradient: Scaled<Tangent>, beta2: f64) -> Result<()> {
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

    /// The bias-corrected means Â_K, in V's coordinates, and Â_L, in U's.
    pub fn means(&self) -> Result<[Tensor; 2]> {
        let mean = |sum: &Tensor, weight: &Tensor| -> Result<Tensor> {
            let whiten = inverse_square_root(weight, 0.0)?;
            multiply(&multiply(&whiten, sum)?, &whiten)
        };
        Ok([mean(&self.k, &self.k_weight)?, mean(&self.l, &self.l_weight)?])
    }

    /// As quadratic forms.
    pub fn transport(&mut self, change: &BasisChange) -> Result<()> {
        let (left, right) = (change.rotation_u(), change.rotation_v());
        let right_t = right.t()?;
        let form = |a: &Tensor, x: &Tensor, b: &Tensor| multiply(&multiply(a, x)?, b);
        self.k = form(&right_t, &self.k, right)?;
        self.k_weight = form(&right_t, &self.k_weight, right)?;
        self.l = form(left, &self.l, &left.t()?)?;
        self.l_weight = form(left, &self.l_weight, &left.t()?)?;
        Ok(())
    }

    /// The leaves `k_second`, `k_second_weight`, `l_second` and `l_second_weight`.
    pub fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        Ok(Self {
            k: map.tensor("k_second", &self.k)?,
            k_weight: map.tensor("k_second_weight", &self.k_weight)?,
            l: map.tensor("l_second", &self.l)?,
            l_weight: map.tensor("l_second_weight", &self.l_weight)?,
        })
    }

    /// Two second moments and the weights that they have gathered: 4 r².
    pub fn values(size: WeightSize) -> u64 {
        4 * size.rank * size.rank
    }

    /// Operations of [`Self::update`], 2 (m + n) r² + 4 r³.
    pub fn update_flops(size: WeightSize) -> u64 {
        2 * size.sides() + 4 * size.cube()
    }

    /// Operations of [`Self::transport`] to rank `new`: four quadratic forms.
    pub fn transport_flops(size: WeightSize, new: u64) -> u64 {
        8 * small_products(size.rank, new)
    }
}
