//! Working on the coefficients with the augmented bases held: points, gradients and tangent vectors
//! in Û and V̂.

use super::{Augmentation, LowRank, Tangent};
use crate::linalg::{multiply, sum_of_products};
use candle_core::{Result, Tensor, bail};

impl Augmentation {
    /// The point's own coefficients in the augmented bases, [[S, 0], [0, 0]]: (r + k_P) × (r +
    /// k_Q).
    ///
    /// # Errors
    /// If the augmentation was not made from this point.
    pub fn augmented_coefficients(&self, point: &LowRank) -> Result<Tensor> {
        self.padded(&point.s)
    }

    /// Û Ŝ V̂ᵀ as a point of its own, at which a network can be evaluated.
    ///
    /// Where the sides have different numbers of new directions (min(m, n) < 2r ≠ max(m, n)) the
    /// smaller basis is filled up with columns of zeros and Ŝ with zeros, so that S is square: W
    /// and every gradient by Ŝ are what they were, but that basis is then not orthonormal.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn point_at(&self, point: &LowRank, coefficients: &Tensor) -> Result<LowRank> {
        let (rows, columns) = coefficients.dims2()?;
        if [rows, columns] != self.core().dims() {
            bail!("{rows} x {columns} coefficients in an augmentation of {:?}", self.core().dims())
        }
        let size = rows.max(columns);
        let widened = |basis: &Tensor, new: &Tensor| -> Result<Tensor> {
            let (known, added) = (basis.dim(1)?, new.dim(1)?);
            let whole = if added > 0 { Tensor::cat(&[basis, new], 1)? } else { basis.clone() };
            whole.pad_with_zeros(1, 0, size - known - added)
        };
        let s =
            coefficients.pad_with_zeros(0, 0, size - rows)?.pad_with_zeros(1, 0, size - columns)?;
        let (u, v) = (
            widened(&point.u, self.new_left_directions())?,
            widened(&point.v, self.new_right_directions())?,
        );
        Ok(LowRank { u: u.contiguous()?, s: s.contiguous()?, v: v.contiguous()? })
    }

    /// Ûᵀ G V̂: (r + k_P) × (r + k_Q), the gradient by Ŝ, from the K-gradient G V̂ that a backward
    /// pass at [`Self::point_at`] gives.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn coefficient_gradient(&self, point: &LowRank, k: &Tensor) -> Result<Tensor> {
        let k = k.narrow(1, 0, self.core().dim(1)?)?;
        let top = multiply(&point.u.t()?, &k)?;
        match self.new_left_directions().dim(1)? {
            0 => Ok(top),
            _ => Tensor::cat(&[&top, &multiply(&self.new_left_directions().t()?, &k)?], 0),
        }
    }

    /// Ûᵀ Z V̂ = [[M, QᵀQ_Q], [Q_PᵀP, 0]] of any tangent vector at the point: what of it lies in
    /// the augmented bases.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn coefficients_of(&self, vector: &Tangent) -> Result<Tensor> {
        let (q_p, q_q) = (self.new_left_directions(), self.new_right_directions());
        let (k_p, k_q) = (q_p.dim(1)?, q_q.dim(1)?);
        let mut coefficients = vector.m.clone();
        if k_q > 0 {
            coefficients = Tensor::cat(&[&coefficients, &multiply(&vector.q.t()?, q_q)?], 1)?;
        }
        if k_p > 0 {
            let below = multiply(&q_p.t()?, &vector.p)?.pad_with_zeros(1, 0, k_q)?;
            coefficients = Tensor::cat(&[&coefficients, &below], 0)?;
        }
        Ok(coefficients)
    }

    /// The same for variances of independent coordinates, v_M, v_P and v_Q, with 0 for Q_P-Q_Q:
    /// squares of the directions take the place of the directions.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn second_moments_of(&self, second: &Tangent) -> Result<Tensor> {
        let squared = Self::from_directions(
            self.new_left_directions().sqr()?,
            self.new_right_directions().sqr()?,
            self.core().clone(),
        );
        squared.coefficients_of(second)
    }

    /// The orthogonal projection of Û C V̂ᵀ to the tangent space at another point.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn project(&self, point: &LowRank, coefficients: &Tensor, at: &LowRank) -> Result<Tangent> {
        let rank = point.rank();
        let from = |basis: &Tensor, new: &Tensor, other: &Tensor| -> Result<Tensor> {
            let top = multiply(&basis.t()?, other)?;
            if new.dim(1)? > 0 {
                Tensor::cat(&[&top, &multiply(&new.t()?, other)?], 0)
            } else {
                Ok(top)
            }
        };
        let onto = |basis: &Tensor, new: &Tensor, x: &Tensor| -> Result<Tensor> {
            let (top, bottom) = (x.narrow(0, 0, rank)?, x.narrow(0, rank, x.dim(0)? - rank)?);
            sum_of_products(&[(1.0, basis, &top), (1.0, new, &bottom)])
        };
        let (q_p, q_q) = (self.new_left_directions(), self.new_right_directions());
        let k = onto(&point.u, q_p, &multiply(coefficients, &from(&point.v, q_q, &at.v)?)?)?;
        let l = onto(&point.v, q_q, &multiply(&coefficients.t()?, &from(&point.u, q_p, &at.u)?)?)?;
        Tangent::from_outer_gradients(at, &k, &l)
    }
}
