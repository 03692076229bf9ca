//! Element-wise second moments of the tangent coordinates (`adam`).

use crate::linalg::multiply;
use crate::lowrank::{Augmentation, BasisChange, LowRank, Tangent};
use crate::spec::SecondMomentTransport;
use candle_core::{D, Result, Tensor};

/// Element-wise second moments of the tangent coordinates, with the weight each entry has gathered.
///
/// v ← β₂v + (1−β₂)g² is a weighted sum of past g² whose weights add up to c ← β₂c + (1−β₂); v̂ =
/// v/c is its bias-corrected mean. Both travel by the same linear map when the bases change, so
/// directions that are new (c = 0) start their own correction, and mixing old and new ones stays a
/// weighted mean. With a fixed basis c = 1 − β₂ᵗ, Adam's correction.
#[derive(Clone, Debug)]
pub(super) struct SecondMoments {
    /// v_M (r × r), v_P (m × r), v_Q (n × r).
    pub sum: Tangent,
    /// c_M (r × r), c_P (1 × r), c_Q (1 × r): one weight a column suffices for P and Q.
    pub weight: Tangent,
}

impl SecondMoments {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        let row = point.s.narrow(D::Minus2, 0, 1)?.zeros_like()?;
        let weight = Tangent { m: point.s.zeros_like()?, p: row.clone(), q: row };
        Ok(Self { sum: Tangent::zeros(point)?, weight })
    }

    /// v ← β₂v + (1−β₂)(scale · g)², c ← β₂c + (1−β₂).
    pub fn update(&mut self, gradient: &Tangent, beta2: f64, scale: f64) -> Result<()> {
        let factor = (1.0 - beta2) * scale * scale;
        let add_square =
            |sum: &Tensor, g: &Tensor| -> Result<Tensor> { (sum * beta2)? + (g.sqr()? * factor)? };
        self.sum = Tangent {
            m: add_square(&self.sum.m, &gradient.m)?,
            p: add_square(&self.sum.p, &gradient.p)?,
            q: add_square(&self.sum.q, &gradient.q)?,
        };
        let age = |weight: &Tensor| weight.affine(beta2, 1.0 - beta2);
        self.weight =
            Tangent { m: age(&self.weight.m)?, p: age(&self.weight.p)?, q: age(&self.weight.q)? };
        Ok(())
    }

    /// m̂ / (√v̂ + ε) block by block, m̂ = m / `gathered` and v̂ = v/c; the parts are not yet in
    /// the tangent space.
    pub fn divide(&self, mean: &Tangent, gathered: f64, epsilon: f64) -> Result<Tangent> {
        let divide = |mean: &Tensor, sum: &Tensor, weight: &Tensor| -> Result<Tensor> {
            (mean / gathered)? / (sum.broadcast_div(weight)?.sqrt()? + epsilon)?
        };
        Ok(Tangent {
            m: divide(&mean.m, &self.sum.m, &self.weight.m)?,
            p: divide(&mean.p, &self.sum.p, &self.weight.p)?,
            q: divide(&mean.q, &self.sum.q, &self.weight.q)?,
        })
    }

    /// Second moments of the coefficients in augmented bases and what each has gathered, (r + k_P)
    /// × (r + k_Q), as variances of independent coordinates; nothing has been gathered where two
    /// new directions meet.
    pub fn of_coefficients(
        &self,
        point: &LowRank,
        augmentation: &Augmentation,
    ) -> Result<(Tensor, Tensor)> {
        let rank = point.rank();
        let rows = |row: &Tensor, count: usize| row.broadcast_as((count, rank))?.contiguous();
        let weight = Tangent {
            m: self.weight.m.clone(),
            p: rows(&self.weight.p, point.rows())?,
            q: rows(&self.weight.q, point.columns())?,
        };
        Ok((augmentation.second_moments_of(&self.sum)?, augmentation.second_moments_of(&weight)?))
    }

    /// Into the new bases: v and c as variances of independent coordinates, or √v as a linear map
    /// and squared, with c as it was.
    ///
    /// The linear rule adds standard deviations with their signs, so that v comes out too small
    /// wherever they cancel, and the next step too large; it is here to show that.
    pub fn transport(&mut self, change: &BasisChange, rule: SecondMomentTransport) -> Result<()> {
        match rule {
            SecondMomentTransport::Variance => {
                self.sum = change.transport_second_moments(&self.sum)?;
                self.weight = change.transport_second_moments(&self.weight)?;
            }
            SecondMomentTransport::Linear => {
                let (left, right) = (change.rotation_u(), change.rotation_v());
                let root = |x: &Tensor| x.sqrt();
                let old = self.weight.m.max_keepdim(D::Minus1)?.max_keepdim(D::Minus2)?;
                self.sum = Tangent {
                    m: multiply(&multiply(left, &root(&self.sum.m)?)?, right)?.sqr()?,
                    p: multiply(&root(&self.sum.p)?, right)?.sqr()?,
                    q: multiply(&root(&self.sum.q)?, &left.t()?)?.sqr()?,
                };
                let m = self.sum.m.ones_like()?.broadcast_mul(&old)?;
                let row = m.narrow(D::Minus2, 0, 1)?.contiguous()?;
                self.weight = Tangent { m, p: row.clone(), q: row };
            }
        }
        Ok(())
    }
}
