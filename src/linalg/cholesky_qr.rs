//! QR factorisation by matrix products: R from the Cholesky factor of the Gram matrix, repeated
//! until Q is orthonormal.

use super::cholesky::lower_factor;
use super::combine::{add_product, frobenius_norm, gram, multiply};
use super::host::{epsilon, host_product, read, write};
use super::symmetric::distance_from_identity;
use candle_core::{Result, Tensor};
use faer::Par;
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::mat::Mat;

/// Passes before giving up; two suffice unless the matrix is ill-conditioned, each more gains a
/// factor ≈ (machine epsilon)^-½ in condition.
pub(super) const MOST_PASSES: usize = 5;

/// A pass on a matrix whose Gram matrix is this close to I (in Frobenius norm) leaves
/// orthonormality at rounding level.
pub(super) const NEARLY_ORTHONORMAL: f64 = 0.5;

/// Q and R with A = Q R + B (…), QᵀQ = I, BᵀQ = 0, for A: m × n and an orthonormal B: m × b; `None`
/// where products cannot decide: too few rows, columns that are zero or dependent to working
/// precision, numbers out of range.
pub(super) fn orthonormalize_by_products(
    basis: Option<&Tensor>,
    a: &Tensor,
) -> Result<Option<(Tensor, Tensor)>> {
    let (rows, columns) = a.dims2()?;
    if columns + basis.map_or(Ok(0), |basis| basis.dim(1))? > rows || columns == 0 {
        return Ok(None);
    }
    let epsilon = epsilon(a.dtype())?;
    let shift = shift(epsilon, columns);
    let mut q = a.clone();
    let mut r = Mat::<f64>::identity(columns, columns);
    let mut lengths = Vec::new();
    for pass in 0..MOST_PASSES {
        // The first pass only improves the condition: the components along the basis are removed
        // from well-scaled columns, where it is exact.
        let mut along_basis = 0.0;
        if let Some(basis) = basis.filter(|_| pass > 0) {
            let overlap = multiply(&basis.t()?, &q)?;
            along_basis = frobenius_norm(&overlap)?;
            q = add_product(1.0, &q, -1.0, basis, &overlap)?;
        }
        let gram = read::<f64>(&gram(&q)?)?;
        if pass == 0 {
            lengths = (0..columns).map(|j| gram[(j, j)].sqrt()).collect();
        }
        let last = pass > 0
            && along_basis <= NEARLY_ORTHONORMAL
            && distance_from_identity(&gram) <= NEARLY_ORTHONORMAL;
        let Some(factor) = CholeskyFactor::new(&gram, shift) else { return Ok(None) };
        q = multiply(&q, &write(factor.inverse.as_ref(), a.dtype(), a.device())?)?;
        r = host_product(factor.upper.as_ref(), r.as_ref());
        if last {
            // What remains of a column after the ones before it, at the level of its own rounding:
            // a direction made of noise.
            let dependent = (0..columns).any(|j| r[(j, j)] <= 10.0 * epsilon * lengths[j]);
            return if dependent {
                Ok(None)
            } else {
                Ok(Some((q, write(r.as_ref(), a.dtype(), a.device())?)))
            };
        }
    }
    Ok(None)
}

/// 8 ε √n, the shift of the Gram matrix of n columns where one is needed.
pub(super) fn shift(epsilon: f64, columns: usize) -> f64 {
    8.0 * epsilon * (columns as f64).sqrt()
}

/// RᵀR = G, and R⁻¹.
pub(super) struct CholeskyFactor {
    /// R.
    pub upper: Mat<f64>,
    /// R⁻¹.
    pub inverse: Mat<f64>,
}

impl CholeskyFactor {
    /// Of D (Ĝ + s I) D with Ĝ of unit diagonal, where s = 0 or, if a pivot of Ĝ falls below
    /// `shift`, s = `shift`.
    ///
    /// `None` if a diagonal element is zero, subnormal or not finite, or the shifted matrix is not
    /// positive definite.
    pub fn new(gram: &Mat<f64>, shift: f64) -> Option<Self> {
        let size = gram.ncols();
        let scale: Vec<f64> = (0..size).map(|j| gram[(j, j)].sqrt()).collect();
        // Squares below 1e-30 have lost digits to f32's subnormal range.
        if !scale.iter().all(|&length| length.is_finite() && length > 1e-15) {
            return None;
        }
        let inverse_scale: Vec<f64> = scale.iter().map(|length| length.recip()).collect();
        let scaled = |shift: f64| {
            let mut matrix = gram.clone();
            for (j, column) in matrix.col_iter_mut().enumerate() {
                column
                    .iter_mut()
                    .zip(&inverse_scale)
                    .for_each(|(x, scale)| *x *= scale * inverse_scale[j]);
            }
            (0..size).for_each(|j| matrix[(j, j)] = 1.0 + shift);
            matrix
        };
        let well_conditioned = |lower: &Mat<f64>| (0..size).all(|j| lower[(j, j)].powi(2) >= shift);
        let lower = lower_factor(scaled(0.0))
            .filter(well_conditioned)
            .or_else(|| lower_factor(scaled(shift)))?;
        // R = Lᵀ D, so R⁻¹ = D⁻¹ L⁻ᵀ.
        let mut inverse = Mat::<f64>::identity(size, size);
        solve_upper_triangular_in_place(lower.transpose(), inverse.as_mut(), Par::Seq);
        for column in inverse.col_iter_mut() {
            column.iter_mut().zip(&inverse_scale).for_each(|(x, scale)| *x *= scale);
        }
        let mut upper = Mat::zeros(size, size);
        for (j, column) in upper.col_iter_mut().enumerate() {
            column
                .iter_mut()
                .zip(lower.row(j).iter())
                .take(j + 1)
                .for_each(|(out, x)| *out = x * scale[j]);
        }
        Some(Self { upper, inverse })
    }
}
