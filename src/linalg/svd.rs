//! Singular value decomposition of small matrices, on the host in `f64`.

use super::combine::multiply;
use super::host::{ensure_finite, epsilon, host_product, read, write};
use super::householder::thin_qr;
use candle_core::{Result, Tensor, bail};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd as faer_svd, svd_scratch};
use faer::mat::{Mat, MatRef};
use faer::{Par, Spec};

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

/// Thin singular value decomposition of A: m × n, computed in `f64` whatever A's dtype.
///
/// The matrix is scaled by a power of two first, so that very large and very small ones work. A result counts only if it is finite and
/// Σσ² = ‖A‖_F²; otherwise the transpose is tried, then the triangular factor of a QR factorisation.
///
/// # Errors
/// If an element is not finite, or no attempt converges.
pub fn svd(a: &Tensor) -> Result<Svd> {
    let matrix = read::<f64>(a)?;
    ensure_finite(matrix.as_ref(), "SVD")?;
    let (u, sigma, v) = factors(&matrix)?;
    Ok(Svd { u: write(u.as_ref(), a.dtype(), a.device())?, sigma, v: write(v.as_ref(), a.dtype(), a.device())? })
}

/// Orthogonal polar factor U Vᵀ of A = U diag(σ) Vᵀ, by SVD.
///
/// Directions with σ ≤ ε max(m, n) σ₁ (ε of A's dtype) map to zero: of a rank-deficient matrix this is the partial isometry, so noise does not get
/// the weight of a direction.
///
/// # Errors
/// As [`svd`].
pub fn polar(a: &Tensor) -> Result<Tensor> {
    let (rows, columns) = a.dims2()?;
    let Svd { u, sigma, v } = svd(a)?;
    let smallest = epsilon(a.dtype())? * rows.max(columns) as f64 * sigma.first().copied().unwrap_or(0.0);
    let kept = sigma.iter().take_while(|&&value| value > smallest).count();
    multiply(&u.narrow(1, 0, kept)?, &v.narrow(1, 0, kept)?.t()?)
}

type Factors = (Mat<f64>, Vec<f64>, Mat<f64>);

fn factors(matrix: &Mat<f64>) -> Result<Factors> {
    let (rows, columns) = matrix.shape();
    let largest = (0..columns).flat_map(|j| matrix.col(j).iter()).fold(0.0f64, |largest, x| largest.max(x.abs()));
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
        bail!("the SVD of a {rows} x {columns} matrix with finite elements up to {largest:.3e} did not converge")
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
    let count = rows.min(columns);
    let (mut u, mut v, mut sigma) = (Mat::zeros(rows, count), Mat::zeros(columns, count), Diag::zeros(count));
    let thin = ComputeSvdVectors::Thin;
    let scratch = svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    faer_svd(matrix, sigma.as_mut(), Some(u.as_mut()), Some(v.as_mut()), Par::Seq, MemStack::new(&mut memory), Spec::default()).ok()?;
    // A tiny negative or unordered value within rounding would break users of the order.
    let sigma: Vec<f64> = sigma.column_vector().iter().copied().collect();
    let sorted = sigma.windows(2).all(|pair| pair[0] >= pair[1]) && sigma.iter().all(|&value| value >= 0.0);
    let (squares, norm) = (sigma.iter().map(|value| value * value).sum::<f64>(), matrix.squared_norm_l2());
    let finite = |m: &Mat<f64>| (0..m.ncols()).all(|j| m.col(j).iter().all(|x| x.is_finite()));
    (sorted && (squares - norm).abs() <= 1e-10 * norm && finite(&u) && finite(&v)).then_some((u, sigma, v))
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
        assert_eq!(svd(&Tensor::zeros((3, 2), DType::F64, &Device::Cpu).unwrap()).unwrap().sigma, vec![0.0, 0.0]);
        let error = svd(&diagonal(1.0, f64::NAN)).unwrap_err().to_string();
        assert!(error.contains("SVD of a 2 x 2 matrix whose element (1, 1) is NaN"), "{error}");
    }

    #[test]
    fn polar_factor_of_a_rank_deficient_matrix_is_a_partial_isometry() {
        // [3, 4]ᵀ [1, 0] has rank one: its polar factor is the rank-one matrix with singular value 1.
        let a = Tensor::new(&[[3.0, 0.0], [4.0, 0.0]], &Device::Cpu).unwrap();
        let found = polar(&a).unwrap().to_vec2::<f64>().unwrap();
        for (found, expected) in found.concat().iter().zip([0.6, 0.0, 0.8, 0.0]) {
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
        assert_eq!(polar(&a.zeros_like().unwrap()).unwrap().to_vec2::<f64>().unwrap(), vec![vec![0.0; 2]; 2]);
    }
}
