//! Element-wise second moments of the tangent coordinates (`adam`).

use super::super::DlraStep;
use super::cost::{MomentumCost, small_products};
use super::{TangentMomentum, map_tangent};
use crate::linalg::{multiply, weighted_sum};
use crate::lowrank::{Augmentation, BasisChange, LowRank, Tangent};
use crate::optim::cost::WeightSize;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::LeafMap;
use crate::spec::{DlraSpec, SecondMomentTransport};
use candle_core::{D, Result, Tensor};

/// Element-wise second moments of the tangent coordinates, with the weight each entry has gathered.
///
/// v ← β₂v + (1−β₂)g² is a weighted sum of past g² whose weights add up to c ← β₂c + (1−β₂); v̂ =
/// v/c is its bias-corrected mean. Both travel by the same linear map when the bases change, so
/// directions that are new (c = 0) start their own correction, and mixing old and new ones stays a
/// weighted mean. With a fixed basis c = 1 − β₂ᵗ, Adam's correction.
#[derive(Clone, Debug)]
pub(super) struct Adam {
    /// v_M (r × r), v_P (m × r), v_Q (n × r).
    sum: Tangent,
    /// c_M (r × r), c_P (1 × r), c_Q (1 × r): one weight a column suffices for P and Q.
    weight: Tangent,
}

impl Adam {
    /// Nothing gathered yet.
    pub fn new(point: &LowRank) -> Result<Self> {
        let row = point.s.narrow(D::Minus2, 0, 1)?.zeros_like()?;
        let weight = Tangent { m: point.s.zeros_like()?, p: row.clone(), q: row };
        Ok(Self { sum: Tangent::zeros(point)?, weight })
    }

    /// What a dense matrix's second moments, of weights that add up to `gathered`, are at a point that
    /// it was cut to. Nothing has been gathered for what lies outside a basis that spans its whole
    /// side, where nothing is either.
    pub fn carried(point: &LowRank, second: &Tensor, gathered: f64) -> Result<Self> {
        let rank = point.rank();
        let row = |side: usize| -> Result<Tensor> {
            let outside = (side - rank) as f64 / side as f64;
            point.s.narrow(D::Minus2, 0, 1)?.zeros_like()?.affine(1.0, gathered * outside)
        };
        let weight = Tangent {
            m: point.s.zeros_like()?.affine(1.0, gathered)?,
            p: row(point.rows())?,
            q: row(point.columns())?,
        };
        Ok(Self { sum: Tangent::project_second_moments(point, second)?, weight })
    }

    /// m̂ / (√v̂ + ε) block by block, m̂ = m / `gathered` and v̂ = v/c; the parts are not yet in
    /// the tangent space.
    fn quotient(&self, mean: &Tangent, gathered: f64, epsilon: f64) -> Result<Tangent> {
        let quotient = |mean: &Tensor, sum: &Tensor, weight: &Tensor| -> Result<Tensor> {
            (mean / gathered)? / (sum.broadcast_div(weight)?.sqrt()? + epsilon)?
        };
        Ok(Tangent {
            m: quotient(&mean.m, &self.sum.m, &self.weight.m)?,
            p: quotient(&mean.p, &self.sum.p, &self.weight.p)?,
            q: quotient(&mean.q, &self.sum.q, &self.weight.q)?,
        })
    }

    /// √v as a linear map and squared, with c as it was.
    ///
    /// It adds standard deviations with their signs, so that v comes out too small wherever they
    /// cancel, and the next step too large; it is here to show that.
    fn transport_linearly(&mut self, change: &BasisChange) -> Result<()> {
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
        Ok(())
    }
}

impl TangentMomentum for Adam {
    /// v ← β₂v + (1−β₂)g², c ← β₂c + (1−β₂).
    fn update(
        &mut self,
        _: &LowRank,
        gradient: Scaled<Tangent>,
        settings: &DlraSpec,
    ) -> Result<()> {
        let beta2 = settings.beta2;
        let factor = gradient.square_factor(1.0 - beta2);
        let add_square =
            |sum: &Tensor, g: &Tensor| -> Result<Tensor> { (sum * beta2)? + (g.sqr()? * factor)? };
        let Tangent { m, p, q } = gradient.sum();
        self.sum = Tangent {
            m: add_square(&self.sum.m, m)?,
            p: add_square(&self.sum.p, p)?,
            q: add_square(&self.sum.q, q)?,
        };
        self.weight = self.weight.map_parts(|weight| weight.affine(beta2, 1.0 - beta2))?;
        Ok(())
    }

    /// The quotient, projected back to the tangent space.
    fn direction(
        &self,
        point: &LowRank,
        mean: Tangent,
        gathered: f64,
        settings: &DlraSpec,
    ) -> Result<Tangent> {
        self.quotient(&mean, gathered, settings.epsilon)?.project_complement(point)
    }

    /// As variances of independent coordinates; nothing has been gathered where two new directions
    /// meet.
    fn coefficient_moments(
        &self,
        point: &LowRank,
        augmentation: &Augmentation,
    ) -> Result<Option<CoefficientMoments>> {
        let rank = point.rank();
        let rows = |row: &Tensor, count: usize| row.broadcast_as((count, rank))?.contiguous();
        let weight = Tangent {
            m: self.weight.m.clone(),
            p: rows(&self.weight.p, point.rows())?,
            q: rows(&self.weight.q, point.columns())?,
        };
        Ok(Some(CoefficientMoments {
            sum: augmentation.second_moments_of(&self.sum)?,
            weight: augmentation.second_moments_of(&weight)?,
        }))
    }

    /// Into the new bases: v and c as variances of independent coordinates, or linearly.
    fn transport(&mut self, change: &BasisChange, settings: &DlraSpec) -> Result<()> {
        match settings.second_moment_transport {
            SecondMomentTransport::Linear => self.transport_linearly(change),
            SecondMomentTransport::Variance => {
                self.sum = change.transport_second_moments(&self.sum)?;
                self.weight = change.transport_second_moments(&self.weight)?;
                Ok(())
            }
        }
    }

    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Box<dyn TangentMomentum>> {
        let sum = map_tangent("second", &self.sum, map)?;
        Ok(Box::new(Self { sum, weight: map_tangent("second_weight", &self.weight, map)? }))
    }

    fn boxed_clone(&self) -> Box<dyn TangentMomentum> {
        Box::new(self.clone())
    }
}

/// Second moments of the coefficients Ŝ in augmented bases, (r + k_P) × (r + k_Q), while
/// `augmented_bug` steps them.
#[derive(Clone, Debug)]
pub(in super::super) struct CoefficientMoments {
    sum: Tensor,
    weight: Tensor,
}

impl CoefficientMoments {
    /// Takes in a gradient by Ŝ and returns Adam's quotient of a mean of gradients whose weights
    /// so far add up to `gathered`.
    pub fn direction(
        &mut self,
        mean: Tensor,
        gradient: Scaled<Tensor>,
        hyper: &DlraStep,
        gathered: f64,
    ) -> Result<Tensor> {
        let DlraSpec { beta2, epsilon, .. } = *hyper.settings;
        let factor = gradient.square_factor(1.0 - beta2);
        self.sum = weighted_sum(beta2, &self.sum, factor, &gradient.sum().sqr()?)?;
        self.weight = self.weight.affine(beta2, 1.0 - beta2)?;
        (mean / gathered)? / ((&self.sum / &self.weight)?.sqrt()? + epsilon)?
    }
}

/// Second moments of every tangent coordinate.
pub(super) struct Cost;

impl MomentumCost for Cost {
    /// As many as the first moment has: r² + (m + n) r.
    fn values(&self, size: WeightSize) -> u64 {
        (size.rows + size.columns) * size.rank + size.rank * size.rank
    }

    /// The return to the tangent space, 4 (m + n) r².
    fn direction(&self, size: WeightSize) -> u64 {
        4 * size.sides()
    }

    /// As variances, from r to k columns: what enters and leaves each basis, 4 (m + n) r k, found
    /// for the sums and again for their weights; the sums, 6 (m + n) r k, and the r × r and r × k
    /// products of both, 4 r² k + 4 r k² each. In all 14 (m + n) r² + 16 r³ where the rank stays.
    fn transport(&self, size: WeightSize, new: u64) -> u64 {
        14 * (size.rows + size.columns) * size.rank * new + 8 * small_products(size.rank, new)
    }

    fn has_coefficient_moments(&self) -> bool {
        true
    }
}
