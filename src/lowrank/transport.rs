//! Carrying tangent vectors from one point to another.

use super::{LowRank, Tangent};
use crate::linalg::{add_product, multiply, sum_of_products};
use candle_core::{Result, Tensor};

/// A move from bases U₀, V₀ (rank r₀) to U, V (rank r), with the rotations between them.
#[derive(Clone, Debug)]
pub struct BasisChange {
    old: LowRank,
    new: LowRank,
    rotation_u: Tensor,
    rotation_v: Tensor,
}

impl BasisChange {
    /// From point to point, with the rotations computed.
    ///
    /// # Errors
    /// If the points have different shapes.
    pub fn between(old: &LowRank, new: &LowRank) -> Result<Self> {
        let rotation_u = multiply(&new.u.t()?, &old.u)?;
        let rotation_v = multiply(&old.v.t()?, &new.v)?;
        Ok(Self::from_rotations(old, new, rotation_u, rotation_v))
    }

    /// From point to point, with UᵀU₀: r × r₀ and V₀ᵀV: r₀ × r already known, as after a retraction.
    pub fn from_rotations(old: &LowRank, new: &LowRank, rotation_u: Tensor, rotation_v: Tensor) -> Self {
        Self { old: old.clone(), new: new.clone(), rotation_u, rotation_v }
    }

    /// R_U = UᵀU₀: r × r₀.
    pub fn rotation_u(&self) -> &Tensor {
        &self.rotation_u
    }

    /// R_V = V₀ᵀV: r₀ × r.
    pub fn rotation_v(&self) -> &Tensor {
        &self.rotation_v
    }

    /// Vector transport by projection: the tangent vector at the new point closest to Z = U₀ M V₀ᵀ + P V₀ᵀ + U₀ Qᵀ.
    ///
    /// Z V  = U₀ (M R_V + QᵀV) + P R_V,  Zᵀ U = V₀ (R_U M + UᵀP)ᵀ + Q R_Uᵀ,
    /// M ← Uᵀ Z V,  P ← Z V − U M,  Q ← Zᵀ U − V Mᵀ,
    ///
    /// where UᵀZV = R_U (M R_V + QᵀV) + (UᵀP) R_V takes r × r products only. In all 8 (m + n) r² operations for r = r₀; Z is never formed.
    ///
    /// # Errors
    /// If the vector's shapes are not those of the old point.
    pub fn transport(&self, vector: &Tangent) -> Result<Tangent> {
        let (Self { old, new, rotation_u, rotation_v }, Tangent { m, p, q }) = (self, vector);
        let from_p = multiply(&new.u.t()?, p)?;
        let from_q = multiply(&q.t()?, &new.v)?;
        let right = add_product(1.0, &from_q, 1.0, m, rotation_v)?;
        let left = add_product(1.0, &from_p, 1.0, rotation_u, m)?;
        let new_m = sum_of_products(&[(1.0, rotation_u, &right), (1.0, &from_p, rotation_v)])?;
        let new_p = sum_of_products(&[(1.0, &old.u, &right), (1.0, p, rotation_v), (-1.0, &new.u, &new_m)])?;
        let new_q = sum_of_products(&[(1.0, &old.v, &left.t()?), (1.0, q, &rotation_u.t()?), (-1.0, &new.v, &new_m.t()?)])?;
        Ok(Tangent { m: new_m, p: new_p, q: new_q })
    }

    /// Element-wise second moments of (M, P, Q), carried as variances of independent coordinates.
    ///
    /// v_M ← (R_U∘R_U) v_M (R_V∘R_V),  v_P ← v_P (R_V∘R_V),  v_Q ← v_Q (R_U∘R_U)ᵀ. Not negative if the old ones are not. P's and Q's part may have any
    /// number of rows: each row is carried by itself.
    ///
    /// # Errors
    /// If the column counts are not those of the old point.
    pub fn transport_second_moments(&self, second: &Tangent) -> Result<Tangent> {
        let (square_u, square_v) = (self.rotation_u.sqr()?, self.rotation_v.sqr()?);
        Ok(Tangent {
            m: multiply(&multiply(&square_u, &second.m)?, &square_v)?,
            p: multiply(&second.p, &square_v)?,
            q: multiply(&second.q, &square_u.t()?)?,
        })
    }
}
