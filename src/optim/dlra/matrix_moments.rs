//! Second moments of the K- and L-gradient as r × r matrices (`matrix_adam`).

use crate::linalg::{inverse_square_root, multiply, weighted_sum};
use crate::lowrank::{BasisChange, LowRank, Tangent};
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

    /// Takes in a gradient: (GV)ᵀ(GV) = MᵀM + PᵀP and (GᵀU)ᵀ(GᵀU) = MMᵀ + QᵀQ.
    pub fn update(
        &mut self,
        point: &LowRank,
        gradient: &Tangent,
        beta2: f64,
        scale: f64,
    ) -> Result<()> {
        let Tangent { m, p, q } = gradient;
        let form = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
            multiply(&a.t()?, a)? + multiply(&b.t()?, b)?
        };
        let weight = (1.0 - beta2) * scale * scale;
        self.k = weighted_sum(beta2, &self.k, weight / point.rows() as f64, &form(m, p)?)?;
        self.l = weighted_sum(
            beta2,
            &self.l,
            weight / point.columns() as f64,
            &form(&m.t()?.contiguous()?, q)?,
        )?;
        let identity = Tensor::eye(point.rank(), m.dtype(), m.device())?.broadcast_as(m.shape())?;
        self.k_weight = weighted_sum(beta2, &self.k_weight, 1.0 - beta2, &identity)?;
        self.l_weight = weighted_sum(beta2, &self.l_weight, 1.0 - beta2, &identity)?;
        Ok(())
    }

    /// D_M = ½ (m̂ R + L m̂), D_P = p̂ R, D_Q = q̂ L with R = (Â_K + ε)^{-½}, L = (Â_L + ε)^{-½}: a
    /// tangent vector, since columns are only mixed.
    pub fn precondition(&self, mean: &Tangent, gathered: f64) -> Result<Tangent> {
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

    /// Into the new bases.
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

    /// The same with every tensor, in the order of [`Self::named`], replaced by what `change` makes
    /// of it.
    pub fn map_leaves(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            k: change(&self.k)?,
            k_weight: change(&self.k_weight)?,
            l: change(&self.l)?,
            l_weight: change(&self.l_weight)?,
        })
    }

    /// State tensors by name.
    pub fn named(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("k_second", &self.k),
            ("k_second_weight", &self.k_weight),
            ("l_second", &self.l),
            ("l_second_weight", &self.l_weight),
        ]
    }

    /// The state read back, leaf by leaf.
    pub fn read(
        &self,
        mut take: impl FnMut(&str, &Tensor) -> anyhow::Result<Tensor>,
    ) -> anyhow::Result<Self> {
        let mut leaf = |index: usize| {
            let (name, like) = self.named()[index];
            take(name, like)
        };
        Ok(Self { k: leaf(0)?, k_weight: leaf(1)?, l: leaf(2)?, l_weight: leaf(3)? })
    }
}
