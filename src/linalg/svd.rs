//! Singular value decomposition of small matrices, on the host in `f64`.

use super::combine::multiply;
use super::host::{epsilon, host_product};
use super::householder::thin_qr;
use super::stack::{ensure_all_finite, matrix_shape, read_each, write_each};
use crate::kernels::work;
use candle_core::{Result, Tensor, bail};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd as faer_svd, svd_scratch};
use faer::mat::{Mat, MatRef};
use faer::{Par, Spec};
use rayon::prelude::*;

/// A = U diag(σ) Vᵀ with σ₁ ≥ σ₂ ≥ … ≥ 0.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Left singular vectors, m × k, k = min(m, n).
    pub u: Tensor,
    /// Singular values, k of them, in decreasing order.
    pub sigma: Vec<f64>,
    /// Right singular vectors, n × k.
    pub v: Tensor,
}

/// A = U diag(σ) Vᵀ of every matrix of a stack.
#[derive(Clone, Debug)]
pub struct Svds {
    /// Left singular vectors, L × m × k, k = min(m, n); m × k for a single matrix.
    pub u: Tensor,
    /// Singular values of each matrix, k of them, in decreasing order.
    pub sigma: Vec<Vec<f64>>,
    /// Right singular vectors, L × n × k; n × k for a single matrix.
    pub v: Tensor,
}

/// Thin singular value decomposition of A: m × n, computed in `f64` whatever A's dtype.
///
/// The matrix is scaled by a power of two first, so that very large and very small ones work. A
/// result counts only if it is finite and Σσ² = ‖A‖_F²; otherwise the transpose is tried, then the
/// triangular factor of a QR factorisation.
///
/// # Errors
/// If an element is not finite, or no attempt converges.
pub fn svd(a: &Tensor) -> Result<Svd> {
    let Svds { u, mut sigma, v } = svds(a)?;
    match (sigma.pop(), a.rank()) {
        (Some(sigma), 2) => Ok(Svd { u, sigma, v }),
        _ => bail!("the SVD of a single matrix was asked for, and {:?} are several", a.dims()),
    }
}

/// [`svd`] of a matrix, or of every matrix of a stack, side by side on the host with one transfer
/// each way.
///
/// # Errors
/// As [`svd`].
pub fn svds(a: &Tensor) -> Result<Svds> {
    let [matrices] = read_each([a])?;
    ensure_all_finite(&matrices, "SVD")?;
    let found = matrices.par_iter().map(factors).collect::<Result<Vec<_>>>()?;
    let (mut u, mut sigma, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for (left, values, right) in found {
        u.push(left);
        sigma.push(values);
        v.push(right);
    }
    let [u, v] = write_each([(u.as_slice(), a), (v.as_slice(), a)])?;
    Ok(Svds { u, sigma, v })
}

/// Orthogonal polar factor U Vᵀ of A = U diag(σ) Vᵀ, by SVD; of a stack, that of each matrix.
///
/// Directions with σ ≤ ε max(m, n) σ₁ (ε of A's dtype) map to zero: of a rank-deficient matrix this
/// is the partial isometry, so noise does not get the weight of a direction.
///
/// # Errors
/// As [`svd`].
pub fn polar(a: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix_shape(a)?;
    let Svds { u, sigma, v } = svds(a)?;
    let relative = epsilon(a.dtype())? * rows.max(columns) as f64;
    let kept = |sigma: &Vec<f64>| {
        let smallest = relative * sigma.first().copied().unwrap_or(0.0);
        // A diagonal of ones and zeros: each matrix of a stack keeps as many directions as it has.
        Mat::from_fn(1, sigma.len(), |_, j| if sigma[j] > smallest { 1.0 } else { 0.0 })
    };
    let kept: Vec<Mat<f64>> = sigma.iter().map(kept).collect();
    let [mask] = write_each([(kept.as_slice(), a)])?;
    multiply(&u.broadcast_mul(&mask)?, &v.t()?)
}

type Factors = (Mat<f64>, Vec<f64>, Mat<f64>);

fn factors(matrix: &Mat<f64>) -> Result<Factors> {
    let (rows, columns) = matrix.shape();
    let largest = (0..columns)
        .flat_map(|j| matrix.col(j).iter())
        .fold(0.0f64, |largest, x| largest.max(x.abs()));
    if largest == 0.0 {
        let count = rows.min(columns);
        return Ok((Mat::identity(rows, count), vec![0.0; count], Mat::identity(columns, count)));
    }
    let exponent = (largest.log2().floor() as i32).clamp(-1000, 1000);
    let (down, up) = (2f64.powi(-exponent), 2f64.powi(exponent));
    let scaled = Mat::from_fn(rows, columns, |i, j| matrix[(i, j)] * down);
    let found = attempt(scaled.as_ref())
        .or_else(|| attempt(scaled.transpose()).map(|(u, sigma, v)| (v, sigma, u)))
        .or_else(|| preconditioned(&scaled));
    let Some((u, sigma, v)) = found else {
        bail!(
            "the SVD of a {rows} x {columns} matrix with finite elements up to {largest:.3e} did \
             not converge"
        )
    };
    Ok((u, sigma.into_iter().map(|value| value * up).collect(), v))
}

/// A = Q R, R = U' Σ Vᵀ, A = (Q U') Σ Vᵀ: another matrix for the iteration to work on.
fn preconditioned(matrix: &Mat<f64>) -> Option<Factors> {
    let (q, r) = thin_qr(matrix.clone()).ok()?;
    let (u, sigma, v) = attempt(r.as_ref())?;
    Some((host_product(q.as_ref(), u.as_ref()), sigma, v))
}

fn attempt(matrix: MatRef<'_, f64>) -> Option<Factors> {
    let (rows, columns) = matrix.shape();
    work::svd(rows, columns);
    let count = rows.min(columns);
    let (mut u, mut v, mut sigma) =
        (Mat::zeros(rows, count), Mat::zeros(columns, count), Diag::zeros(count));
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    faer_svd(
        matrix,
        sigma.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    // A tiny negative or unordered value within rounding would break users of the order.
    let sigma: Vec<f64> = sigma.column_vector().iter().copied().collect();
    let sorted =
        sigma.windows(2).all(|pair| pair[0] >= pair[1]) && sigma.iter().all(|&value| value >= 0.0);
    let (squares, norm) =
        (sigma.iter().map(|value| value * value).sum::<f64>(), matrix.squared_norm_l2());
    let finite = |m: &Mat<f64>| (0..m.ncols()).all(|j| m.col(j).iter().all(|x| x.is_finite()));
    (sorted && (squares - norm).abs() <= 1e-10 * norm && finite(&u) && finite(&v))
        .then_some((u, sigma, v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn extreme_scales_zero_matrices_and_bad_numbers() {
        let diagonal = |a: f64, b: f64| Tensor::new(&[[a, 0.0], [0.0, b]], &Device::Cpu).unwrap();
        assert_eq!(svd(&diagonal(3e200, 4e200)).unwrap().sigma, vec![4e200, 3e200]);
        assert_eq!(svd(&diagonal(3e-200, 0.0)).unwrap().sigma, vec![3e-200, 0.0]);
        assert_eq!(
            svd(&Tensor::zeros((3, 2), DType::F64, &Device::Cpu).unwrap()).unwrap().sigma,
            vec![0.0, 0.0]
        );
        let error = svd(&diagonal(1.0, f64::NAN)).unwrap_err().to_string();
        assert!(error.contains("SVD of a 2 x 2 matrix whose element (1, 1) is NaN"), "{error}");
    }

    #[test]
    fn a_stack_of_no_matrices_is_an_error() {
        let empty = Tensor::zeros((0, 3, 2), DType::F32, &Device::Cpu).unwrap();
        let none = [
            svds(&empty).unwrap_err(),
            polar(&empty).unwrap_err(),
            crate::linalg::square_roots(&empty.narrow(1, 0, 2).unwrap(), 0.0).unwrap_err(),
        ];
        for error in none {
            assert!(error.to_string().contains("a stack of no matrices"), "{error}");
        }
    }

    #[test]
    fn polar_factor_of_a_rank_deficient_matrix_is_a_partial_isometry() {
        // [3, 4]ᵀ [1, 0] has rank one: its polar factor is the rank-one matrix with singular value
        // 1.
        let a = Tensor::new(&[[3.0, 0.0], [4.0, 0.0]], &Device::Cpu).unwrap();
        let found = polar(&a).unwrap().to_vec2::<f64>().unwrap();
        for (found, expected) in found.concat().iter().zip([0.6, 0.0, 0.8, 0.0]) {
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
        assert_eq!(
            polar(&a.zeros_like().unwrap()).unwrap().to_vec2::<f64>().unwrap(),
            vec![vec![0.0; 2]; 2]
        );
    }
}
