//! Carrying tangent vectors from one point to another.

use super::{LowRank, Tangent};
use crate::linalg::{add_product, multiply, sum_of_products};
use candle_core::{D, Result, Tensor};

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

    /// From point to point, with UᵀU₀: r × r₀ and V₀ᵀV: r₀ × r already known, as after a
    /// retraction.
    pub fn from_rotations(
        old: &LowRank,
        new: &LowRank,
        rotation_u: Tensor,
        rotation_v: Tensor,
    ) -> Self {
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

    /// Vector transport by projection: the tangent vector at the new point closest to Z = U₀ M V₀ᵀ
    /// + P V₀ᵀ + U₀ Qᵀ.
    ///
    /// Z V  = U₀ (M R_V + QᵀV) + P R_V,  Zᵀ U = V₀ (R_U M + UᵀP)ᵀ + Q R_Uᵀ,
    /// M ← Uᵀ Z V,  P ← Z V − U M,  Q ← Zᵀ U − V Mᵀ,
    ///
    /// where UᵀZV = R_U (M R_V + QᵀV) + (UᵀP) R_V takes r × r products only. In all 8 (m + n) r²
    /// operations for r = r₀; Z is never formed.
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
        let new_p = sum_of_products(&[
            (1.0, &old.u, &right),
            (1.0, p, rotation_v),
            (-1.0, &new.u, &new_m),
        ])?;
        let new_q = sum_of_products(&[
            (1.0, &old.v, &left.t()?),
            (1.0, q, &rotation_u.t()?),
            (-1.0, &new.v, &new_m.t()?),
        ])?;
        Ok(Tangent { m: new_m, p: new_p, q: new_q })
    }

    /// Element-wise second moments of (M, P, Q), carried as variances of independent coordinates
    /// through [`Self::transport`].
    ///
    /// With squares taken element by element, R_U² = R_U∘R_U and so on, the parts of the bases
    /// outside each other, E_U = U − U₀ R_Uᵀ (entering) and L_U = U₀ − U R_U (leaving), and what
    /// the rows of P keep, k_U = 1 − the row sums of E_U² (V and Q alike):
    ///
    /// X = v_M R_V² + v_Qᵀ E_V²,  Y = R_U² v_M + (E_U²)ᵀ v_P, v_M ← R_U² X + (E_U²)ᵀ v_P R_V²,  v_P
    /// ← L_U² X + k_U ∘ (v_P R_V²),  v_Q ← L_V² Yᵀ + k_V ∘ (v_Q (R_U²)ᵀ).
    ///
    /// As the bases turn, the first moment's M moves into P and Q and back; so must the second
    /// moments, or a large first moment meets a second moment that never saw it, and the step
    /// explodes. Never negative, and their sum never grows. P's and Q's part may have one row only,
    /// the same number for every row: then its new row is the mean over the rows.
    ///
    /// # Errors
    /// If the shapes are not those of the old point or a single row.
    pub fn transport_second_moments(&self, second: &Tangent) -> Result<Tangent> {
        let Self { old, new, rotation_u, rotation_v } = self;
        let (Tangent { m, p, q }, square_u, square_v) =
            (second, rotation_u.sqr()?, rotation_v.sqr()?);
        let u = Exchange::new(&old.u, &new.u, rotation_u, p)?;
        let v = Exchange::new(&old.v, &new.v, &rotation_v.t()?, q)?;
        let from_p = multiply(&u.entering.t()?, p)?;
        let right = sum_of_products(&[(1.0, m, &square_v), (1.0, &q.t()?, &v.entering)])?;
        let left = add_product(1.0, &from_p, 1.0, &square_u, m)?;
        Ok(Tangent {
            m: sum_of_products(&[(1.0, &square_u, &right), (1.0, &from_p, &square_v)])?,
            p: (multiply(&u.leaving, &right)? + multiply(p, &square_v)?.broadcast_mul(&u.kept)?)?,
            q: (multiply(&v.leaving, &left.t()?)?
                + multiply(q, &square_u.t()?)?.broadcast_mul(&v.kept)?)?,
        })
    }
}

/// What moves between the blocks of second moments on one side as the basis turns.
struct Exchange {
    /// E∘E, m × r: how much of each row the new basis takes in.
    entering: Tensor,
    /// L∘L, m × r₀: where the part of the old basis goes that the new one leaves out.
    leaving: Tensor,
    /// What each row keeps, m × 1.
    kept: Tensor,
}

impl Exchange {
    /// From basis to basis with the rotation UᵀU₀, for second moments of as many rows as `part`, or
    /// one.
    fn new(old: &Tensor, new: &Tensor, rotation: &Tensor, part: &Tensor) -> Result<Self> {
        let entering = add_product(1.0, new, -1.0, old, &rotation.t()?)?.sqr()?;
        let leaving = add_product(1.0, old, -1.0, new, rotation)?.sqr()?;
        // Rounding may take a row a little below zero where nothing is kept.
        let kept = entering.sum_keepdim(D::Minus1)?.affine(-1.0, 1.0)?.clamp(0.0, 1.0)?;
        if part.dim(D::Minus2)? == entering.dim(D::Minus2)? {
            return Ok(Self { entering, leaving, kept });
        }
        Ok(Self {
            entering: entering.sum_keepdim(D::Minus2)?,
            leaving: leaving.mean_keepdim(D::Minus2)?,
            kept: kept.mean_keepdim(D::Minus2)?,
        })
    }
}
