//! Between candle tensors (row-major, any device) and faer matrices (column-major, host memory).

use crate::kernels::{Host, Real, with_real, work};
use candle_core::{DType, Device, Result, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::mat::{Mat, MatRef};
use faer::{Accum, Par};

/// Machine epsilon of a dtype.
pub(super) fn epsilon(dtype: DType) -> Result<f64> {
    with_real!(dtype, T => Ok(<T as Real>::EPSILON))
}

/// Runs `body` on a 2-D CPU tensor seen in place as a faer matrix, whatever its strides.
pub(super) fn with_view<T: Real, R>(
    tensor: &Tensor,
    body: impl FnOnce(MatRef<'_, T>) -> R,
) -> Result<R> {
    Ok(body(Host::strided(tensor).matrix()?.view()))
}

/// A copy on the host, in precision `S`.
pub(super) fn read<S: Real>(tensor: &Tensor) -> Result<Mat<S>> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    with_real!(tensor.dtype(), T => with_view::<T, _>(&tensor, copy::<T, S>))
}

fn copy<T: Real, S: Real>(view: MatRef<'_, T>) -> Mat<S> {
    let mut matrix = Mat::zeros(view.nrows(), view.ncols());
    for (out, column) in matrix.col_iter_mut().zip(view.col_iter()) {
        out.iter_mut().zip(column.iter()).for_each(|(out, x)| *out = S::from_f64(x.to_f64()));
    }
    matrix
}

/// A tensor with the elements of a host matrix.
pub(super) fn write<S: Real>(
    matrix: MatRef<'_, S>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    with_real!(dtype, T => Tensor::from_vec(read_rows::<S, T>(matrix), matrix.shape(), device))
}

/// The numbers of a host matrix, row after row.
pub(super) fn read_rows<S: Real, T: Real>(matrix: MatRef<'_, S>) -> Vec<T> {
    let mut numbers = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for row in matrix.row_iter() {
        numbers.extend(row.iter().map(|x| T::from_f64(x.to_f64())));
    }
    numbers
}

/// A B, on this thread; faer's operator `*` would take as many threads as there are.
pub(super) fn host_product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    work::product(a.nrows(), a.ncols(), b.ncols());
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    matmul(product.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    product
}

/// An error naming the operation if an element is infinite or not a number.
pub(super) fn ensure_finite<S: Real>(matrix: MatRef<'_, S>, operation: &str) -> Result<()> {
    for (j, column) in matrix.col_iter().enumerate() {
        if let Some((i, x)) = column.iter().enumerate().find(|(_, x)| !x.to_f64().is_finite()) {
            let (rows, columns) = matrix.shape();
            bail!(
                "{operation} of a {rows} x {columns} matrix whose element ({i}, {j}) is {}",
                x.to_f64()
            )
        }
    }
    Ok(())
}
