//! QR factorisation: which of the two ways a matrix takes.

use super::cholesky_qr::orthonormalize_by_products;
use super::host::{read, write};
use super::householder::thin_qr;
use super::orthonormal_stacks::{orthonormalize_stacks, pick};
use super::stack::{matrix_shape, on_host};
use crate::kernels::with_real;
use candle_core::{Result, Tensor, bail};

/// Thin QR factorisation A = Q R with R's diagonal ≥ 0.
///
/// A: m × n, Q: m × k with orthonormal columns, R: k × n upper triangular, k = min(m, n). With this
/// sign rule the factorisation of a matrix of full column rank is unique, so a small change of A is
/// a small change of Q. Off the host, and of a stack, this is [`cholesky_qr`].
///
/// # Errors
/// If an element is not finite.
pub fn qr(a: &Tensor) -> Result<(Tensor, Tensor)> {
    if !on_host(a) {
        return cholesky_qr(a);
    }
    with_real!(a.dtype(), T => {
        let (q, r) = thin_qr(read::<T>(a)?)?;
        Ok((write(q.as_ref(), a.dtype(), a.device())?, write(r.as_ref(), a.dtype(), a.device())?))
    })
}

/// Thin QR factorisation A = Q R, R's diagonal > 0, for A: m × n with m ≥ n, by repeated
/// Cholesky-QR.
///
/// G = AᵀA = RᵀR (Cholesky in `f64` on the host, columns scaled to unit length first), Q = A R⁻¹,
/// then the same again on Q: CholeskyQR2 (Yamamoto et al. 2015). Where G is too close to singular
/// for its rounding it is shifted and a pass more is made (shifted CholeskyQR3, Fukaya et al.
/// 2020). Dependent or zero columns, and m < n, go to Householder QR on the host, as
/// [`qr`] in `f64`. Of a stack, the factorisation of each matrix, with one transfer each
/// way a pass.
///
/// # Errors
/// If an element is not finite.
pub fn cholesky_qr(a: &Tensor) -> Result<(Tensor, Tensor)> {
    if !on_host(a) {
        let (_, columns) = matrix_shape(a)?;
        let Some(by_products) = orthonormalize_stacks(&[(None, a)])?.pop() else {
            bail!("no factorisation was found for {:?}", a.dims())
        };
        return by_products.with_failures(a, columns, |index| pick(a, index), thin_qr);
    }
    if let Some(found) = orthonormalize_by_products(None, a)? {
        return Ok(found);
    }
    let (q, r) = thin_qr(read::<f64>(a)?)?;
    Ok((write(q.as_ref(), a.dtype(), a.device())?, write(r.as_ref(), a.dtype(), a.device())?))
}
