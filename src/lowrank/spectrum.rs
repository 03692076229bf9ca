//! Cutting the rank of a point by its singular values, in the Frobenius norm or in a weighted one.

use super::point::diagonal;
use super::{CutNorm, LowRank, Retracted, Truncation};
use crate::linalg::{self, Svd, multiply, square_roots};
use candle_core::{Result, Tensor};

/// Share of the mean eigenvalue that is added to a Gram matrix, so that directions without data
/// keep a weight.
const RELATIVE_DAMPING: f64 = 1e-3;

/// A point's singular values in a norm ‖A^½ (·) C^½‖_F with weights A: m × m and C: n × n, and the
/// directions they belong to.
///
/// Only Uᵀ A U and Vᵀ C V are needed: A^½ W C^½ has the singular values of S̃ = (UᵀAU)^½ S
/// (VᵀCV)^½, and the best approximation of rank r' in this norm is U (UᵀAU)^{-½} [S̃]_r'
/// (VᵀCV)^{-½} Vᵀ, with [·]_r' the truncated SVD. With A = C = I it is the truncated SVD of W. With
/// C the second moment of a layer's inputs and A that of its output gradients, σ̃ᵢ² is twice the
/// loss that giving up a direction costs to second order, in the Kronecker-factored approximation
/// of the Fisher matrix (K-FAC, Martens & Grosse 2015, arXiv:1503.05671, §3; input weights alone:
/// SVD-LLM, Wang et al. 2025, arXiv:2403.07378).
#[derive(Clone, Debug)]
pub struct Spectrum {
    left: Option<Tensor>,
    right: Option<Tensor>,
    svd: Svd,
}

impl Spectrum {
    /// In the Frobenius norm.
    ///
    /// # Errors
    /// If S is not finite, or the SVD does not converge.
    pub fn new(point: &LowRank) -> Result<Self> {
        Ok(Self { left: None, right: None, svd: linalg::svd(&point.s)? })
    }

    /// In the norm of UᵀAU and VᵀCV: r × r, symmetric positive semidefinite, each with 10⁻³ of its
    /// mean eigenvalue added and eigenvalues that rounding made negative set to zero.
    ///
    /// # Errors
    /// As for [`Self::new`], or if a weight is not r × r.
    pub fn weighted(point: &LowRank, left: &Tensor, right: &Tensor) -> Result<Self> {
        let (left, right) =
            (square_roots(left, RELATIVE_DAMPING)?, square_roots(right, RELATIVE_DAMPING)?);
        let whitened = multiply(&multiply(&left.root, &point.s)?, &right.root)?;
        Ok(Self {
            left: Some(left.inverse),
            right: Some(right.inverse),
            svd: linalg::svd(&whitened)?,
        })
    }

    /// Of a dense W: m × n, with its thin SVD, a point of full rank: in the norm of A: m × m and C: n
    /// × n or, without, in the Frobenius norm.
    ///
    /// The singular values of A^½ W C^½ need no root of A or C: they are those of the point in the
    /// norm of UᵀAU and VᵀCV, whose bases span what W reaches.
    ///
    /// # Errors
    /// As for [`Self::weighted`].
    pub fn of_dense(w: &Tensor, moments: Option<[&Tensor; 2]>) -> Result<(LowRank, Self)> {
        let (rows, columns) = w.dims2()?;
        let point = LowRank::from_dense(w, rows.min(columns))?;
        let seen = |gram: &Tensor, basis: &Tensor| {
            multiply(&basis.t()?, &multiply(&gram.to_dtype(basis.dtype())?, basis)?)
        };
        let spectrum = match moments {
            None => Self::new(&point)?,
            Some([left, right]) => {
                Self::weighted(&point, &seen(left, &point.u)?, &seen(right, &point.v)?)?
            }
        };
        Ok((point, spectrum))
    }

    /// The singular values in decreasing order.
    pub fn singular_values(&self) -> &[f64] {
        &self.svd.sigma
    }

    /// The closest point of this rank, from 1 to the point's; S is diagonal.
    ///
    /// # Errors
    /// If the spectrum is not this point's, or an SVD does not converge.
    pub fn truncate(&self, point: &LowRank, rank: usize) -> Result<Retracted> {
        let Svd { u: p, sigma, v: q } = &self.svd;
        let rank = rank.clamp(1, sigma.len());
        let (p, q) = (p.narrow(1, 0, rank)?, q.narrow(1, 0, rank)?);
        let kept = diagonal(&sigma[..rank], point.s.dtype(), point.s.device())?;
        let (norm, a, s, b) = match (&self.left, &self.right) {
            (Some(left), Some(right)) => {
                // (left p) Σ (right q)ᵀ with orthonormal columns instead: QR of both sides, and an
                // SVD of what is between them.
                let (a, r_a) = linalg::qr(&multiply(left, &p)?)?;
                let (b, r_b) = linalg::qr(&multiply(right, &q)?)?;
                let between = linalg::svd(&multiply(&multiply(&r_a, &kept)?, &r_b.t()?)?)?;
                let s = diagonal(&between.sigma, point.s.dtype(), point.s.device())?;
                (CutNorm::Weighted, multiply(&a, &between.u)?, s, multiply(&b, &between.v)?)
            }
            _ => (CutNorm::Frobenius, p, kept, q),
        };
        let new = LowRank { u: multiply(&point.u, &a)?, s, v: multiply(&point.v, &b)? };
        Ok(Retracted {
            point: new,
            rotation_u: a.t()?,
            rotation_v: b,
            truncation: Some(Truncation::new(norm, sigma.clone(), rank)),
        })
    }
}

/// The singular values of a dense matrix, in decreasing order.
///
/// # Errors
/// If it is no matrix or not finite, or the SVD does not converge.
pub fn singular_values(w: &Tensor) -> Result<Vec<f64>> {
    Ok(linalg::svd(w)?.sigma)
}

/// ‖W − W'‖_F of a point W = U S Vᵀ and what a cut of its spectrum made of it, W' = (U a) S'
/// (V b)ᵀ: ‖S − a S' bᵀ‖_F, in whatever norm the cut was.
///
/// # Errors
/// If the cut is of a point of another rank.
pub fn distance_to_cut(point: &LowRank, cut: &Retracted) -> Result<f64> {
    let kept = multiply(&multiply(&cut.rotation_u.t()?, &cut.point.s)?, &cut.rotation_v.t()?)?;
    linalg::frobenius_norm(&(&point.s - kept)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::frobenius_norm;
    use crate::rng;
    use candle_core::{DType, Device};

    fn normal(rows: usize, columns: usize, draw: u64) -> Tensor {
        let numbers = rng::normals(&mut rng::stream(17, "spectrum", &[draw]), rows * columns);
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
    }

    fn point() -> LowRank {
        LowRank::from_dense(&normal(12, 9, 0), 6).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        frobenius_norm(&(a - b).unwrap()).unwrap()
    }

    #[test]
    fn unweighted_it_is_the_truncated_svd() {
        let point = point();
        let cut = Spectrum::new(&point).unwrap().truncate(&point, 3).unwrap();
        let best = LowRank::from_dense(&point.to_dense().unwrap(), 3).unwrap();
        assert!(distance(&cut.point.to_dense().unwrap(), &best.to_dense().unwrap()) < 1e-12);
        assert!(cut.point.orthonormality_defect().unwrap() < 1e-12);
        let truncation = cut.truncation.unwrap();
        assert_eq!(truncation.norm, CutNorm::Frobenius);
        let error = distance(&cut.point.to_dense().unwrap(), &point.to_dense().unwrap());
        assert!((truncation.error - error).abs() < 1e-12);
    }

    #[test]
    fn equal_weights_change_nothing() {
        let point = point();
        let identity = Tensor::eye(6, DType::F64, &Device::Cpu).unwrap();
        let weighted = Spectrum::weighted(&point, &identity, &(&identity * 4.0).unwrap())
            .unwrap()
            .truncate(&point, 3)
            .unwrap();
        let plain = Spectrum::new(&point).unwrap().truncate(&point, 3).unwrap();
        assert!(
            distance(&weighted.point.to_dense().unwrap(), &plain.point.to_dense().unwrap()) < 1e-12
        );
    }

    /// The dense statement: ‖(W − W') X‖ over inputs X and ‖D (W − W')‖ over output gradients D,
    /// both weights at once, is smaller than for the plain truncation, and is the discarded tail.
    #[test]
    fn the_discarded_tail_is_the_weighted_error_and_the_least() {
        let point = point();
        let (inputs, gradients) = (normal(40, 9, 1), normal(40, 12, 2));
        // Strongly uneven data, as activations are.
        let uneven = |x: Tensor| {
            let columns = x.dim(1).unwrap();
            let scale: Vec<f64> = (0..columns).map(|i| 10f64.powi(-(i as i32) / 2)).collect();
            x.broadcast_mul(&Tensor::from_vec(scale, (1, columns), &Device::Cpu).unwrap()).unwrap()
        };
        let (inputs, gradients) = (uneven(inputs), uneven(gradients));
        let gram = |x: Tensor| x.t().unwrap().matmul(&x).unwrap();
        let left = gram(gradients.matmul(&point.u).unwrap());
        let right = gram(inputs.matmul(&point.v).unwrap());
        let spectrum = Spectrum::weighted(&point, &left, &right).unwrap();
        let cut = spectrum.truncate(&point, 3).unwrap();
        let dense = point.to_dense().unwrap();
        // The error as the norm of D (W − W') Xᵀ, with the damping as more rows of data.
        let with_damping = |x: &Tensor, basis: &Tensor, gram: &Tensor| {
            let trace =
                linalg::inner(gram, &Tensor::eye(6, DType::F64, &Device::Cpu).unwrap()).unwrap();
            let rows = (basis.t().unwrap() * (RELATIVE_DAMPING * trace / 6.0).sqrt()).unwrap();
            Tensor::cat(&[x, &rows.contiguous().unwrap()], 0).unwrap()
        };
        let (d, x) =
            (with_damping(&gradients, &point.u, &left), with_damping(&inputs, &point.v, &right));
        let error = |w: &Tensor| {
            let difference = (&dense - w).unwrap();
            frobenius_norm(&d.matmul(&difference).unwrap().matmul(&x.t().unwrap()).unwrap())
                .unwrap()
        };
        let weighted = error(&cut.point.to_dense().unwrap());
        let truncation = cut.truncation.clone().unwrap();
        assert_eq!(truncation.norm, CutNorm::Weighted);
        let tail = truncation.error;
        let apart = distance(&cut.point.to_dense().unwrap(), &dense);
        assert!((distance_to_cut(&point, &cut).unwrap() - apart).abs() < 1e-12 * apart);
        assert!((weighted - tail).abs() < 1e-9 * tail, "{weighted} and {tail}");
        let plain = error(
            &Spectrum::new(&point).unwrap().truncate(&point, 3).unwrap().point.to_dense().unwrap(),
        );
        assert!(weighted < 0.9 * plain, "{weighted} of {plain}");
        for draw in 0..20 {
            let other = (&cut.point.s + (normal(3, 3, 10 + draw) * 1e-3).unwrap()).unwrap();
            let other = LowRank { s: other, ..cut.point.clone() };
            assert!(error(&other.to_dense().unwrap()) >= weighted, "a neighbour is closer");
        }
    }

    /// The textbook's cut of a dense W, A^{-½} [A^½ W C^½]_r C^{-½}, with roots of the whole A and C.
    #[test]
    fn a_dense_matrix_is_cut_as_the_textbook_has_it() {
        let eye = |size: usize| Tensor::eye(size, DType::F64, &Device::Cpu).unwrap();
        for (rows, columns) in [(12, 9), (9, 9), (7, 12)] {
            let w = normal(rows, columns, 31);
            let gram = |draw: u64, size: usize| linalg::gram(&normal(40, size, draw)).unwrap();
            let (a, c) = (gram(32, rows), gram(33, columns));
            let (point, spectrum) = Spectrum::of_dense(&w, Some([&a, &c])).unwrap();
            let cut = spectrum.truncate(&point, 4).unwrap();
            // The damping is a share of the mean eigenvalue that W's bases see.
            let damped = |gram: &Tensor, basis: &Tensor, size: usize| {
                let seen = basis.t().unwrap().matmul(&gram.matmul(basis).unwrap()).unwrap();
                let rank = rows.min(columns);
                let mean = linalg::inner(&seen, &eye(rank)).unwrap() / rank as f64;
                square_roots(
                    &(gram + (eye(size) * (RELATIVE_DAMPING * mean)).unwrap()).unwrap(),
                    0.0,
                )
                .unwrap()
            };
            let (a, c) = (damped(&a, &point.u, rows), damped(&c, &point.v, columns));
            let whitened = a.root.matmul(&w).unwrap().matmul(&c.root).unwrap();
            let best = LowRank::from_dense(&whitened, 4).unwrap().to_dense().unwrap();
            let textbook = a.inverse.matmul(&best).unwrap().matmul(&c.inverse).unwrap();
            assert!(distance(&cut.point.to_dense().unwrap(), &textbook) < 1e-10);
            let sigma = linalg::svd(&whitened).unwrap().sigma;
            for (ours, theirs) in spectrum.singular_values().iter().zip(sigma) {
                assert!((ours - theirs).abs() < 1e-10 * theirs, "{ours} {theirs}");
            }
        }
    }

    #[test]
    fn rotations_carry_the_old_bases_into_the_new() {
        let point = point();
        let (left, right) = (normal(8, 6, 3), normal(8, 6, 4));
        let gram = |x: &Tensor| x.t().unwrap().matmul(x).unwrap();
        let cut = Spectrum::weighted(&point, &gram(&left), &gram(&right))
            .unwrap()
            .truncate(&point, 2)
            .unwrap();
        let rotation_u = cut.point.u.t().unwrap().matmul(&point.u).unwrap();
        let rotation_v = point.v.t().unwrap().matmul(&cut.point.v).unwrap();
        assert!(
            distance(&rotation_u, &cut.rotation_u) < 1e-12
                && distance(&rotation_v, &cut.rotation_v) < 1e-12
        );
    }

    /// A Gram matrix rounded to bf16 is indefinite. The cut by it is that by its positive part: a
    /// direction without data keeps the small weight of the damping.
    #[test]
    fn an_indefinite_gram_matrix_counts_as_its_positive_part() {
        const RANK: usize = 40;
        let cpu = &Device::Cpu;
        let identity = Tensor::eye(RANK, DType::F64, cpu).unwrap();
        let point = LowRank { u: identity.clone(), s: identity.clone(), v: identity.clone() };
        let scale = [&[30.0][..], &[0.05; RANK - 1]].concat();
        let rows = normal(400, RANK, 5)
            .matmul(&diagonal(&scale, DType::F64, cpu).unwrap())
            .unwrap()
            .matmul(&linalg::qr(&normal(RANK, RANK, 6)).unwrap().0)
            .unwrap();
        let exact = linalg::gram(&rows).unwrap();
        let noisy = exact.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap();
        // C₊ = (C + |C|) / 2, |C| by the polar factor of the symmetric C.
        let absolute = multiply(&linalg::polar(&noisy).unwrap().t().unwrap(), &noisy).unwrap();
        let positive = ((&noisy + absolute).unwrap() * 0.5).unwrap();
        let trace = |x: &Tensor| linalg::inner(x, &identity).unwrap();
        assert!(
            trace(&positive) > trace(&noisy) + 10.0,
            "the test's matrix has negative eigenvalues"
        );
        let cost = |gram: &Tensor| Spectrum::weighted(&point, gram, &identity).unwrap();
        let (found, expected) = (cost(&noisy), cost(&positive));
        for (found, expected) in found.singular_values().iter().zip(expected.singular_values()) {
            assert!((found / expected - 1.0).abs() < 0.01, "{found} and {expected}");
        }
        let smallest = (RELATIVE_DAMPING * (1.0 + trace(&noisy) / RANK as f64)).sqrt();
        let found = found.singular_values()[RANK - 1];
        assert!(found < smallest * 1.1, "{found}: no more than the damping's {smallest}");
    }
}
