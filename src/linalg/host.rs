//! Between candle tensors (row-major, any device) and faer matrices (column-major, host memory).

use candle_core::{DType, Device, Result, Storage, Tensor, WithDType, bail};
use faer::linalg::matmul::matmul;
use faer::mat::{Mat, MatRef};
use faer::traits::RealField;
use faer::{Accum, Par};

/// The element types computed in: `f32` and `f64`.
pub(super) trait Scalar: WithDType + RealField {
    /// Machine epsilon, the distance from 1 to the next number.
    const EPSILON: f64;
}

impl Scalar for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
}

impl Scalar for f64 {
    const EPSILON: f64 = f64::EPSILON;
}

/// Runs `$body` with `$scalar` standing for the Rust type of a dtype; other dtypes than f32 and f64
/// are an error.
macro_rules! with_scalar {
    ($dtype:expr, $scalar:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $scalar = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $scalar = f64;
                $body
            }
            other => candle_core::bail!(
                "linear algebra is done in f32 or f64, not {other:?}; convert the tensor first"
            ),
        }
    };
}
pub(super) use with_scalar;

/// Machine epsilon of a dtype.
pub(super) fn epsilon(dtype: DType) -> Result<f64> {
    with_scalar!(dtype, T => Ok(<T as Scalar>::EPSILON))
}

/// Runs `body` on a 2-D CPU tensor seen in place as a faer matrix, whatever its strides.
pub(super) fn with_view<T: Scalar, R>(
    tensor: &Tensor,
    body: impl FnOnce(MatRef<'_, T>) -> R,
) -> Result<R> {
    let (rows, columns) = tensor.dims2()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("expected a tensor in host memory") };
    let numbers = &storage.as_slice::<T>()?[layout.start_offset()..];
    let (row_stride, column_stride) = (layout.stride()[0], layout.stride()[1]);
    if rows > 0 && columns > 0 {
        assert!(
            (rows - 1) * row_stride + (columns - 1) * column_stride < numbers.len(),
            "a layout reaches past its storage"
        );
    }
    // SAFETY: the last element was just checked to lie within `numbers`, which outlives the view.
    let view = unsafe {
        MatRef::from_raw_parts(
            numbers.as_ptr(),
            rows,
            columns,
            row_stride as isize,
            column_stride as isize,
        )
    };
    Ok(body(view))
}

/// A copy on the host, in precision `S`.
pub(super) fn read<S: Scalar>(tensor: &Tensor) -> Result<Mat<S>> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    with_scalar!(tensor.dtype(), T => with_view::<T, _>(&tensor, copy::<T, S>))
}

fn copy<T: Scalar, S: Scalar>(view: MatRef<'_, T>) -> Mat<S> {
    let mut matrix = Mat::zeros(view.nrows(), view.ncols());
    for (out, column) in matrix.col_iter_mut().zip(view.col_iter()) {
        out.iter_mut().zip(column.iter()).for_each(|(out, x)| *out = S::from_f64(x.to_f64()));
    }
    matrix
}

/// A tensor with the elements of a host matrix.
pub(super) fn write<S: Scalar>(
    matrix: MatRef<'_, S>,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    with_scalar!(dtype, T => Tensor::from_vec(read_rows::<S, T>(matrix), matrix.shape(), device))
}

/// The numbers of a host matrix, row after row.
pub(super) fn read_rows<S: Scalar, T: Scalar>(matrix: MatRef<'_, S>) -> Vec<T> {
    let mut numbers = Vec::with_capacity(matrix.nrows() * matrix.ncols());
    for row in matrix.row_iter() {
        numbers.extend(row.iter().map(|x| T::from_f64(x.to_f64())));
    }
    numbers
}

/// A B, on this thread; faer's operator `*` would take as many threads as there are.
pub(super) fn host_product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    matmul(product.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    product
}

/// An error naming the operation if an element is infinite or not a number.
pub(super) fn ensure_finite<S: Scalar>(matrix: MatRef<'_, S>, operation: &str) -> Result<()> {
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
