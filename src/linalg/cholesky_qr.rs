//! QR factorisation by matrix products: R from the Cholesky factor of the Gram matrix, repeated until Q is orthonormal.

use super::combine::{add_product, frobenius_norm, gram, multiply};
use super::host::{epsilon, host_product, read, write};
use super::householder::thin_qr;
use super::symmetric::distance_from_identity;
use candle_core::{Result, Tensor};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::mat::Mat;
use faer::{Par, Spec};

/// Passes before giving up; two suffice unless the matrix is ill-conditioned, each more gains a factor ≈ (machine epsilon)^-½ in condition.
const MOST_PASSES: usize = 5;

/// A pass on a matrix whose Gram matrix is this close to I (in Frobenius norm) leaves orthonormality at rounding level.
const NEARLY_ORTHONORMAL: f64 = 0.5;

/// Thin QR factorisation A = Q R, R's diagonal > 0, for A: m × n with m ≥ n, by repeated Cholesky-QR.
///
/// G = AᵀA = RᵀR (Cholesky in `f64` on the host, columns scaled to unit length first), Q = A R⁻¹, then the same again on Q: CholeskyQR2
/// (Yamamoto et al. 2015). Where G is too close to singular for its rounding it is shifted and a pass more is made (shifted CholeskyQR3,
/// Fukaya et al. 2020). Dependent or zero columns, and m < n, go to Householder QR on the host, as [`qr`](super::qr) in `f64`.
///
/// # Errors
/// If an element is not finite.
pub fn cholesky_qr(a: &Tensor) -> Result<(Tensor, Tensor)> {
    if let Some(found) = orthonormalize_by_products(None, a)? {
        return Ok(found);
    }
    let (q, r) = thin_qr(read::<f64>(a)?)?;
    Ok((write(q.as_ref(), a.dtype(), a.device())?, write(r.as_ref(), a.dtype(), a.device())?))
}

/// Q and R with A = Q R + B (…), QᵀQ = I, BᵀQ = 0, for A: m × n and an orthonormal B: m × b; `None` where products cannot decide: too few
/// rows, columns that are zero or dependent to working precision, numbers out of range.
pub(super) fn orthonormalize_by_products(basis: Option<&Tensor>, a: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
    let (rows, columns) = a.dims2()?;
    if columns + basis.map_or(Ok(0), |basis| basis.dim(1))? > rows || columns == 0 {
        return Ok(None);
    }
    let epsilon = epsilon(a.dtype())?;
    let shift = 8.0 * epsilon * (columns as f64).sqrt();
    let mut q = a.clone();
    let mut r = Mat::<f64>::identity(columns, columns);
    let mut lengths = Vec::new();
    for pass in 0..MOST_PASSES {
        // The first pass only improves the condition: the components along the basis are removed from well-scaled columns, where it is exact.
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
        let last = pass > 0 && along_basis <= NEARLY_ORTHONORMAL && distance_from_identity(&gram) <= NEARLY_ORTHONORMAL;
        let Some(factor) = CholeskyFactor::new(&gram, shift) else { return Ok(None) };
        q = multiply(&q, &write(factor.inverse.as_ref(), a.dtype(), a.device())?)?;
        r = host_product(factor.upper.as_ref(), r.as_ref());
        if last {
            // What remains of a column after the ones before it, at the level of its own rounding: a direction made of noise.
            let dependent = (0..columns).any(|j| r[(j, j)] <= 10.0 * epsilon * lengths[j]);
            return if dependent { Ok(None) } else { Ok(Some((q, write(r.as_ref(), a.dtype(), a.device())?))) };
        }
    }
    Ok(None)
}

/// RᵀR = G, and R⁻¹.
struct CholeskyFactor {
    upper: Mat<f64>,
    inverse: Mat<f64>,
}

impl CholeskyFactor {
    /// Of D (Ĝ + s I) D with Ĝ of unit diagonal, where s = 0 or, if a pivot of Ĝ falls below `shift`, s = `shift`.
    ///
    /// `None` if a diagonal element is zero, subnormal or not finite, or the shifted matrix is not positive definite.
    fn new(gram: &Mat<f64>, shift: f64) -> Option<Self> {
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
                column.iter_mut().zip(&inverse_scale).for_each(|(x, scale)| *x *= scale * inverse_scale[j]);
            }
            (0..size).for_each(|j| matrix[(j, j)] = 1.0 + shift);
            matrix
        };
        let well_conditioned = |lower: &Mat<f64>| (0..size).all(|j| lower[(j, j)].powi(2) >= shift);
        let lower = lower_factor(scaled(0.0)).filter(well_conditioned).or_else(|| lower_factor(scaled(shift)))?;
        // R = Lᵀ D, so R⁻¹ = D⁻¹ L⁻ᵀ.
        let mut inverse = Mat::<f64>::identity(size, size);
        solve_upper_triangular_in_place(lower.transpose(), inverse.as_mut(), Par::Seq);
        for column in inverse.col_iter_mut() {
            column.iter_mut().zip(&inverse_scale).for_each(|(x, scale)| *x *= scale);
        }
        let mut upper = Mat::zeros(size, size);
        for (j, column) in upper.col_iter_mut().enumerate() {
            column.iter_mut().zip(lower.row(j).iter()).take(j + 1).for_each(|(out, x)| *out = x * scale[j]);
        }
        Some(Self { upper, inverse })
    }
}

fn lower_factor(mut matrix: Mat<f64>) -> Option<Mat<f64>> {
    let scratch = cholesky_in_place_scratch::<f64>(matrix.nrows(), Par::Seq, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    cholesky_in_place(matrix.as_mut(), LltRegularization::default(), Par::Seq, MemStack::new(&mut memory), Spec::default()).ok()?;
    Some(matrix)
}
