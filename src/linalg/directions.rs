//! New orthonormal directions beside an orthonormal basis.

use super::cholesky_qr::orthonormalize_by_products;
use super::host::{ensure_finite, epsilon, host_product, read, write};
use super::householder::{complement, pivoted_qr};
use candle_core::{Result, Tensor, bail};
use faer::mat::Mat;

/// Q and R with D ≈ Q R + B (BᵀD), QᵀQ = I and BᵀQ = 0, for directions D: m × d beside an orthonormal basis B: m × b.
///
/// Q: m × k, R: k × d, k = min(d, m − b). Ordinary directions take products only (R is then upper triangular). Where some are zero, dependent
/// or within the basis, to the precision of their dtype, pivoted QR on the host decides which remain; the other columns of Q are filled up
/// orthonormally, and their rows of R are exactly zero, so an arbitrary direction never carries weight.
///
/// # Errors
/// If the row counts differ, or an element is not finite.
pub fn orthonormal_directions(basis: &Tensor, directions: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((rows, basis_columns), (direction_rows, columns)) = (basis.dims2()?, directions.dims2()?);
    if rows != direction_rows || basis_columns > rows {
        bail!("{direction_rows} x {columns} directions do not fit beside a {rows} x {basis_columns} orthonormal basis")
    }
    let count = columns.min(rows - basis_columns);
    let (dtype, device) = (directions.dtype(), directions.device());
    if count == 0 {
        return Ok((Tensor::zeros((rows, 0), dtype, device)?, Tensor::zeros((0, columns), dtype, device)?));
    }
    if let Some(found) = orthonormalize_by_products(Some(basis), directions)? {
        return Ok(found);
    }
    let (q, r) = rank_revealing(read(basis)?, read(directions)?, count, 10.0 * epsilon(dtype)?)?;
    Ok((write(q.as_ref(), dtype, device)?, write(r.as_ref(), dtype, device)?))
}

/// The same by pivoted QR; pivots up to `tolerance` times the longest direction count as zero.
fn rank_revealing(basis: Mat<f64>, directions: Mat<f64>, count: usize, tolerance: f64) -> Result<(Mat<f64>, Mat<f64>)> {
    ensure_finite(directions.as_ref(), "orthonormalisation")?;
    let (rows, columns) = directions.shape();
    let longest = (0..columns).map(|j| directions.col(j).norm_l2()).fold(0.0, f64::max);
    let mut residual = directions;
    for _ in 0..2 {
        let overlap = host_product(basis.transpose(), residual.as_ref());
        residual -= host_product(basis.as_ref(), overlap.as_ref());
    }
    let (leading, triangle, pivots) = pivoted_qr(residual)?;
    let kept = pivots.iter().take(count).take_while(|&&pivot| pivot > tolerance * longest).count();
    let r = Mat::from_fn(count, columns, |i, j| if i < kept { triangle[(i, j)] } else { 0.0 });

    let first = basis.ncols();
    let known = Mat::from_fn(rows, first + kept, |i, j| if j < first { basis[(i, j)] } else { leading[(i, j - first)] });
    let fill = complement(known, count - kept)?;
    let q = Mat::from_fn(rows, count, |i, j| if j < kept { leading[(i, j)] } else { fill[(i, j - kept)] });
    Ok((q, r))
}
