//! New orthonormal directions beside an orthonormal basis.

use super::cholesky_qr::orthonormalize_by_products;
use super::host::{ensure_finite, epsilon, host_product, read, write};
use super::householder::{complement, pivoted_qr};
use super::orthonormal_stacks::{Orthonormalized, orthonormalize_stacks, pick};
use super::stack::{matrix_shape, on_host, shape_like};
use candle_core::{Device, Result, Tensor, bail};
use faer::mat::Mat;

/// Q and R with D ≈ Q R + B (BᵀD), QᵀQ = I and BᵀQ = 0, for directions D: m × d beside an
/// orthonormal basis B: m × b.
///
/// Q: m × k, R: k × d, k = min(d, m − b). Ordinary directions take products only (R is then upper
/// triangular). Where some are zero, dependent or within the basis, to the precision of their
/// dtype, pivoted QR on the host decides which remain; the other columns of Q are filled up
/// orthonormally, and their rows of R are exactly zero, so an arbitrary direction never carries
/// weight.
///
/// # Errors
/// If the row counts differ, or an element is not finite.
pub fn orthonormal_directions(basis: &Tensor, directions: &Tensor) -> Result<(Tensor, Tensor)> {
    match orthonormal_directions_together(&[(basis, directions)])?.pop() {
        Some(found) => Ok(found),
        None => bail!("no directions were found for one basis"),
    }
}

/// [`orthonormal_directions`] beside several bases; stacks and device tensors share the transfers
/// of each pass.
///
/// # Errors
/// As [`orthonormal_directions`].
pub fn orthonormal_directions_together(
    problems: &[(&Tensor, &Tensor)],
) -> Result<Vec<(Tensor, Tensor)>> {
    for (basis, directions) in problems {
        let ((rows, basis_columns), (direction_rows, columns)) =
            (matrix_shape(basis)?, matrix_shape(directions)?);
        if rows != direction_rows || basis_columns > rows {
            bail!(
                "{direction_rows} x {columns} directions do not fit beside a {rows} x \
                 {basis_columns} orthonormal basis"
            )
        }
    }
    if problems.iter().all(|(_, directions)| on_host(directions)) {
        return problems.iter().map(|(basis, directions)| beside(basis, directions)).collect();
    }
    let by_products = orthonormalize_stacks(
        &problems.iter().map(|(basis, directions)| (Some(*basis), *directions)).collect::<Vec<_>>(),
    )?;
    let finish = |(found, (basis, directions)): (Orthonormalized, &(&Tensor, &Tensor))| {
        let ((rows, basis_columns), (_, columns)) =
            (matrix_shape(basis)?, matrix_shape(directions)?);
        let count = columns.min(rows - basis_columns);
        if count == 0 {
            return empty(directions, rows, columns);
        }
        let tolerance = 10.0 * epsilon(directions.dtype())?;
        found.with_failures(
            directions,
            columns,
            |index| Ok((pick(basis, index)?, pick(directions, index)?)),
            |(basis, directions)| rank_revealing(basis, directions, count, tolerance),
        )
    };
    by_products.into_iter().zip(problems).map(finish).collect()
}

/// No new directions: m × 0 and 0 × d. In host memory, since a CUDA device has no tensor without
/// elements.
fn empty(like: &Tensor, rows: usize, columns: usize) -> Result<(Tensor, Tensor)> {
    let zeros =
        |rows, columns| Tensor::zeros(shape_like(like, rows, columns), like.dtype(), &Device::Cpu);
    Ok((zeros(rows, 0)?, zeros(0, columns)?))
}

/// The same for one matrix in host memory.
fn beside(basis: &Tensor, directions: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((rows, basis_columns), (_, columns)) = (matrix_shape(basis)?, matrix_shape(directions)?);
    let count = columns.min(rows - basis_columns);
    if count == 0 {
        return empty(directions, rows, columns);
    }
    let (dtype, device) = (directions.dtype(), directions.device());
    if let Some(found) = orthonormalize_by_products(Some(basis), directions)? {
        return Ok(found);
    }
    let (q, r) = rank_revealing(read(basis)?, read(directions)?, count, 10.0 * epsilon(dtype)?)?;
    Ok((write(q.as_ref(), dtype, device)?, write(r.as_ref(), dtype, device)?))
}

/// The same by pivoted QR; pivots up to `tolerance` times the longest direction count as zero.
pub(super) fn rank_revealing(
    basis: Mat<f64>,
    directions: Mat<f64>,
    count: usize,
    tolerance: f64,
) -> Result<(Mat<f64>, Mat<f64>)> {
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
    let known = Mat::from_fn(rows, first + kept, |i, j| {
        if j < first { basis[(i, j)] } else { leading[(i, j - first)] }
    });
    let fill = complement(known, count - kept)?;
    let q = Mat::from_fn(
        rows,
        count,
        |i, j| if j < kept { leading[(i, j)] } else { fill[(i, j - kept)] },
    );
    Ok((q, r))
}
