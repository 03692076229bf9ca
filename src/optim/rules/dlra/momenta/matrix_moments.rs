//! Second moments of the K- and L-gradient as r × r matrices, for the momenta that use them.

use super::form_mean::FormMean;
use crate::linalg::multiply;
use crate::lowrank::{BasisChange, LowRank, Tangent};
use crate::optim::cost::WeightSize;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use candle_core::{Result, Tensor};

/// Decayed means of (GV)ᵀ(GV)/m, which scales the columns that belong to V, and of (GᵀU)ᵀ(GᵀU)/n,
/// for U, as [`FormMean`]s with β₂.
#[derive(Clone, Debug)]
pub(super) struct MatrixMoments {
    /// Of the K-gradient, r × r in V's coordinates.
    k: FormMean,
    /// Of the L-gradient, r × r in U's coordinates.
    l: FormMean,
}

impl MatrixMoments {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        Ok(Self { k: FormMean::new(&point.s)?, l: FormMean::new(&point.s)? })
    }

    /// (GV)ᵀ(GV) = MᵀM + PᵀP and (GᵀU)ᵀ(GᵀU) = MMᵀ + QᵀQ.
    pub fn update(&mut self, point: &LowRank, gradient: Scaled<Tangent>, beta2: f64) -> Result<()> {
        let Tangent { m, p, q } = gradient.sum();
        let form = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            multiply(&a.t()?, a)? + multiply(&b.t()?, b)?
        };
        let weight = gradient.square_factor(1.0 - beta2);
        self.k.update(beta2, weight / point.rows() as f64, &form(m, p)?)?;
        let l = form(&m.t()?.contiguous()?, q)?;
        self.l.update(beta2, weight / point.columns() as f64, &l)
    }

    /// The bias-corrected means Â_K, in V's coordinates, and Â_L, in U's.
    pub fn means(&self) -> Result<[Tensor; 2]> {
        Ok([self.k.mean()?, self.l.mean()?])
    }

    /// As quadratic forms.
    pub fn transport(&mut self, change: &BasisChange) -> Result<()> {
        let (left, right) = (change.rotation_u(), change.rotation_v());
        self.k.transport(&right.t()?, right)?;
        self.l.transport(left, &left.t()?)
    }

    /// The leaves `k_second`, `k_second_weight`, `l_second` and `l_second_weight`.
    pub fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let k = self.k.map_leaves("k_second", map)?;
        Ok(Self { k, l: self.l.map_leaves("l_second", map)? })
    }

    /// Two second moments and the weights that they have gathered: 4 r².
    pub fn values(size: WeightSize) -> u64 {
        2 * FormMean::values(size)
    }

    /// Operations of [`Self::update`], 2 (m + n) r² + 4 r³.
    pub fn update_flops(size: WeightSize) -> u64 {
        2 * size.sides() + 4 * size.cube()
    }

    /// Operations of [`Self::transport`] to rank `new`: four quadratic forms.
    pub fn transport_flops(size: WeightSize, new: u64) -> u64 {
        2 * FormMean::transport_flops(size, new)
    }
}
