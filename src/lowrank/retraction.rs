//! From a point and a tangent vector to a new point: augmented bases, coefficients in them,
//! truncation.
//!
//! Z = Û C V̂ᵀ with Û = [U | Q_P], V̂ = [V | Q_Q] and the core C = [[M, R_Qᵀ], [R_P, 0]], where P =
//! Q_P R_P and Q = Q_Q R_Q. So W + tZ is a small matrix in known bases, and bringing it back to
//! rank r is work on the small matrix. This is the parallel Basis-Update & Galerkin step of one
//! gradient evaluation (Ceruti, Kusch & Lubich 2024), and the truncated-SVD retraction (Absil &
//! Oseledets 2015).

use super::point::{diagonal, diagonals};
use super::{LowRank, Tangent};
use crate::linalg::{
    self, Svds, matrix_shape, multiply, orthonormal_directions_together, sum_of_products,
    weighted_sum,
};
use candle_core::{D, Result, Tensor, bail};

/// The bases that hold a point and a tangent vector at it, and the vector's coefficients in them.
///
/// Û = [U | Q_P]: m × (r + k_P) and V̂ = [V | Q_Q]: n × (r + k_Q), orthonormal, with k_P = min(r, m
/// − r) and k_Q = min(r, n − r) new columns. They are kept as blocks. The point must be the one it
/// was made from.
#[derive(Clone, Debug)]
pub struct Augmentation {
    q_p: Tensor,
    q_q: Tensor,
    core: Tensor,
}

/// A new point in augmented bases.
#[derive(Clone, Debug)]
pub struct Retracted {
    /// The new point, of rank r'.
    pub point: LowRank,
    /// U_newᵀ U: r' × r.
    pub rotation_u: Tensor,
    /// Vᵀ V_new: r × r'.
    pub rotation_v: Tensor,
    /// What was cut off, where an SVD was made of a single matrix.
    pub truncation: Option<Truncation>,
}

/// The norm that a cut is best in, and whose singular values decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutNorm {
    /// ‖W‖_F.
    Frobenius,
    /// ‖A^½ W C^½‖_F with weights A and C, as the Fisher matrix gives them; see
    /// [`Spectrum`](super::Spectrum).
    Weighted,
}

/// A cut in the singular values.
#[derive(Clone, Debug)]
pub struct Truncation {
    /// The norm in which it was made: that of all numbers below.
    pub norm: CutNorm,
    /// All singular values before the cut, in decreasing order.
    pub singular_values: Vec<f64>,
    /// Number r' of those kept.
    pub rank: usize,
    /// (Σ_{i>r'} σᵢ²)^½: the distance between the matrices before and after.
    pub error: f64,
    /// The same over (Σᵢ σᵢ²)^½.
    pub relative_error: f64,
}

impl Augmentation {
    /// The augmented bases and core of a tangent vector at a point.
    ///
    /// # Errors
    /// If the shapes do not fit, or an element is not finite.
    pub fn new(point: &LowRank, direction: &Tangent) -> Result<Self> {
        let mut sides =
            orthonormal_directions_together(&[(&point.u, &direction.p), (&point.v, &direction.q)])?
                .into_iter();
        let (Some((q_p, r_p)), Some((q_q, r_q))) = (sides.next(), sides.next()) else {
            bail!("a point has two sides")
        };
        let (k_p, k_q) = (r_p.dim(D::Minus2)?, r_q.dim(D::Minus2)?);
        let mut core = direction.m.clone();
        if k_q > 0 {
            core = Tensor::cat(&[&core, &r_q.t()?], D::Minus1)?;
        }
        if k_p > 0 {
            core = Tensor::cat(&[&core, &r_p.pad_with_zeros(D::Minus1, 0, k_q)?], D::Minus2)?;
        }
        Ok(Self { q_p, q_q, core })
    }

    pub(super) fn from_directions(q_p: Tensor, q_q: Tensor, core: Tensor) -> Self {
        Self { q_p, q_q, core }
    }

    /// C = [[M, R_Qᵀ], [R_P, 0]]: (r + k_P) × (r + k_Q).
    pub fn core(&self) -> &Tensor {
        &self.core
    }

    /// The new columns Q_P: m × k_P of the left basis.
    pub fn new_left_directions(&self) -> &Tensor {
        &self.q_p
    }

    /// The new columns Q_Q: n × k_Q of the right basis.
    pub fn new_right_directions(&self) -> &Tensor {
        &self.q_q
    }

    /// Ŝ = [[(1 − ηλ) S, 0], [0, 0]] − η C: the coefficients of (1 − ηλ) W − η Û C V̂ᵀ, for step η,
    /// weight decay λ and any core C of the right shape.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn coefficients(
        &self,
        point: &LowRank,
        core: &Tensor,
        step: f64,
        decay: f64,
    ) -> Result<Tensor> {
        weighted_sum(1.0 - step * decay, &self.padded(&point.s)?, -step, core)
    }

    /// The point of Û Ŝ V̂ᵀ truncated to the rank that `choose_rank` picks from Ŝ's singular
    /// values, by SVD.
    ///
    /// Ŝ = A Σ Bᵀ; U ← Û A[:, :r'], V ← V̂ B[:, :r'], S ← Σ[:r', :r']: the best approximation of
    /// that rank. The choice is clipped to 1 … min(r + k_P, r + k_Q); one above r keeps augmented
    /// directions. All points of a stack must get the same rank; of a stack of several the cut is
    /// not reported.
    ///
    /// # Errors
    /// If an element is not finite, the SVD does not converge, or the points of a stack get
    /// different ranks.
    pub fn truncate(
        &self,
        point: &LowRank,
        coefficients: &Tensor,
        choose_rank: &dyn Fn(&[f64]) -> usize,
    ) -> Result<Retracted> {
        let Svds { u: a, mut sigma, v: b } = linalg::svds(coefficients)?;
        let ranks: Vec<usize> =
            sigma.iter().map(|sigma| choose_rank(sigma).clamp(1, sigma.len())).collect();
        let rank = ranks.first().copied().unwrap_or(0);
        if ranks.iter().any(|&other| other != rank) {
            bail!("the points of a stack get the ranks {ranks:?}; truncate them one by one")
        }
        let (dtype, device) = (coefficients.dtype(), coefficients.device());
        let kept: Vec<&[f64]> = sigma.iter().map(|sigma| &sigma[..rank]).collect();
        let s = if coefficients.rank() == 2 {
            diagonal(kept[0], dtype, device)?
        } else {
            diagonals(&kept, dtype, device)?
        };
        let truncation = if sigma.len() == 1 {
            sigma.pop().map(|sigma| Truncation::new(CutNorm::Frobenius, sigma, rank))
        } else {
            None
        };
        self.in_bases(
            point,
            &a.narrow(D::Minus1, 0, rank)?,
            s,
            &b.narrow(D::Minus1, 0, rank)?,
            truncation,
        )
    }

    /// A point of rank r close to Û Ŝ V̂ᵀ without an SVD: one subspace iteration started at the old
    /// bases.
    ///
    /// A = qr(Ŝ[:, :r]), Ŝᵀ A = B R; U ← Û A, V ← V̂ B, S ← Rᵀ, with the sign rule of
    /// [`linalg::qr`]. It agrees with the truncated SVD to first order in the step. S is lower
    /// triangular.
    ///
    /// # Errors
    /// If the shapes do not fit, or an element is not finite.
    pub fn retract_subspace(&self, point: &LowRank, coefficients: &Tensor) -> Result<Retracted> {
        let (a, _) = linalg::qr(&coefficients.narrow(D::Minus1, 0, point.rank())?)?;
        let (b, r) = linalg::qr(&multiply(&coefficients.t()?, &a)?)?;
        self.in_bases(point, &a, r.t()?.contiguous()?, &b, None)
    }

    /// U ← Û A, V ← V̂ B. Because UᵀQ_P = 0, the rotations are the top blocks of A and B.
    fn in_bases(
        &self,
        point: &LowRank,
        a: &Tensor,
        s: Tensor,
        b: &Tensor,
        truncation: Option<Truncation>,
    ) -> Result<Retracted> {
        let rank = point.rank();
        let combine = |basis: &Tensor, new: &Tensor, x: &Tensor| -> Result<(Tensor, Tensor)> {
            let (top, bottom) = (
                x.narrow(D::Minus2, 0, rank)?,
                x.narrow(D::Minus2, rank, x.dim(D::Minus2)? - rank)?,
            );
            Ok((sum_of_products(&[(1.0, basis, &top), (1.0, new, &bottom)])?, top))
        };
        let (u, a_top) = combine(&point.u, &self.q_p, a)?;
        let (v, b_top) = combine(&point.v, &self.q_q, b)?;
        Ok(Retracted {
            point: LowRank { u, s, v },
            rotation_u: a_top.t()?,
            rotation_v: b_top,
            truncation,
        })
    }

    /// The same with as many new directions on one side as on the other: the leading ones, by
    /// singular values of R_P or R_Q.
    ///
    /// Only where min(m, n) < 2r ≠ max(m, n) does it leave any out. Û C V̂ᵀ is then no longer the
    /// tangent vector it was made from.
    ///
    /// # Errors
    /// If the SVD does not converge.
    pub fn balanced(&self, point: &LowRank) -> Result<Self> {
        let rank = point.rank();
        let (k_p, k_q) = (self.q_p.dim(1)?, self.q_q.dim(1)?);
        let count = k_p.min(k_q);
        let mut balanced = self.clone();
        if k_p > count {
            let left = linalg::svd(&self.core.narrow(0, rank, k_p)?.narrow(1, 0, rank)?)?
                .u
                .narrow(1, 0, count)?;
            balanced.q_p = multiply(&self.q_p, &left)?;
            let below = multiply(&left.t()?, &self.core.narrow(0, rank, k_p)?)?;
            balanced.core = Tensor::cat(&[&self.core.narrow(0, 0, rank)?, &below], 0)?;
        } else if k_q > count {
            let right = linalg::svd(&self.core.narrow(0, 0, rank)?.narrow(1, rank, k_q)?)?
                .v
                .narrow(1, 0, count)?;
            balanced.q_q = multiply(&self.q_q, &right)?;
            let beside = multiply(&self.core.narrow(1, rank, k_q)?, &right)?;
            balanced.core =
                Tensor::cat(&[&self.core.narrow(1, 0, rank)?.contiguous()?, &beside], 1)?;
        }
        Ok(balanced)
    }

    /// [[S, 0], [0, 0]] in the core's shape.
    pub(super) fn padded(&self, s: &Tensor) -> Result<Tensor> {
        let ((rows, columns), (s_rows, s_columns)) = (matrix_shape(&self.core)?, matrix_shape(s)?);
        if s_rows > rows || s_columns > columns {
            bail!(
                "the augmentation ({rows} x {columns}) was not made from this point of rank \
                 {s_rows}"
            )
        }
        s.pad_with_zeros(D::Minus2, 0, rows - s_rows)?.pad_with_zeros(
            D::Minus1,
            0,
            columns - s_columns,
        )
    }
}

impl Truncation {
    /// The cut of these singular values (in decreasing order, of this norm) to this rank.
    pub(super) fn new(in_norm: CutNorm, singular_values: Vec<f64>, rank: usize) -> Self {
        let total = norm(&singular_values);
        let error = norm(&singular_values[rank..]);
        let relative_error = if total > 0.0 { error / total } else { 0.0 };
        Self { norm: in_norm, singular_values, rank, error, relative_error }
    }
}

/// The smallest r' ≥ 1 with (Σ_{i>r'} σᵢ²)^½ ≤ τ (Σᵢ σᵢ²)^½, for singular values in decreasing
/// order.
pub fn tolerance_rank(singular_values: &[f64], tau: f64) -> usize {
    let allowed = tau * norm(singular_values);
    // Summed from the smallest value up, which loses the least; squares are scaled so that tiny
    // values do not underflow.
    let scale = singular_values.first().copied().unwrap_or(0.0);
    if scale == 0.0 {
        return 1;
    }
    let (mut rank, mut tail) = (singular_values.len(), 0.0);
    while rank > 1 {
        tail += (singular_values[rank - 1] / scale).powi(2);
        if tail.sqrt() * scale > allowed {
            break;
        }
        rank -= 1;
    }
    rank
}

/// W + t Z truncated to the rank of W by SVD: the closest point to W + t Z.
///
/// # Errors
/// If an element is not finite, or the SVD does not converge.
pub fn retract(point: &LowRank, tangent: &Tangent, step: f64) -> Result<LowRank> {
    let augmentation = Augmentation::new(point, tangent)?;
    let coefficients = augmentation.coefficients(point, augmentation.core(), -step, 0.0)?;
    Ok(augmentation.truncate(point, &coefficients, &|_| point.rank())?.point)
}

/// W + t Z brought back to the rank of W by [`Augmentation::retract_subspace`].
///
/// # Errors
/// If an element is not finite.
pub fn retract_subspace(point: &LowRank, tangent: &Tangent, step: f64) -> Result<LowRank> {
    let augmentation = Augmentation::new(point, tangent)?;
    let coefficients = augmentation.coefficients(point, augmentation.core(), -step, 0.0)?;
    Ok(augmentation.retract_subspace(point, &coefficients)?.point)
}

/// Euclidean norm, scaled by the largest value so that squares neither overflow nor underflow.
fn norm(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(0.0, f64::max);
    if largest == 0.0 {
        return 0.0;
    }
    largest * values.iter().rev().map(|value| (value / largest).powi(2)).sum::<f64>().sqrt()
}
