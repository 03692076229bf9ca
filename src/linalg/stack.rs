//! Stacks of matrices, the form a device works on: tensors L × m × n of L matrices of one shape.
//!
//! A product of two stacks is one kernel, and the small matrices of a stack, or of several stacks,
//! travel between device and host together, in one transfer. A single matrix (m × n) that is not in
//! host memory is treated as a stack of one.

use super::host::{ensure_finite, read_rows};
use crate::kernels::{Real, with_real};
use candle_core::{D, DType, Device, Error, Result, Tensor, bail};
use faer::mat::Mat;
use std::cell::Cell;

thread_local! {
    static TRANSFERS: Cell<u64> = const { Cell::new(0) };
}

/// Transfers between device and host that the linear algebra of this thread has made so far; in
/// host memory they are copies.
pub fn transfers() -> u64 {
    TRANSFERS.get()
}

pub(super) fn count_transfer() {
    TRANSFERS.set(TRANSFERS.get() + 1);
}

/// Whether this is a single matrix in host memory, which faer works on in place. Everything else
/// takes candle's operations where it lives.
pub(super) fn on_host(x: &Tensor) -> bool {
    x.rank() == 2 && x.device().is_cpu()
}

/// Matrices, rows and columns.
///
/// # Errors
/// If the tensor is neither a matrix nor a stack of matrices.
pub fn stack_shape(x: &Tensor) -> Result<(usize, usize, usize)> {
    match x.dims() {
        &[rows, columns] => Ok((1, rows, columns)),
        &[matrices, rows, columns] => Ok((matrices, rows, columns)),
        other => bail!("neither a matrix nor a stack of matrices: {other:?}"),
    }
}

/// Rows and columns of a matrix, or of each matrix of a stack.
///
/// # Errors
/// As [`stack_shape`].
pub fn matrix_shape(x: &Tensor) -> Result<(usize, usize)> {
    stack_shape(x).map(|(_, rows, columns)| (rows, columns))
}

/// A shape like that of `like` with matrices of another size.
pub(super) fn shape_like(like: &Tensor, rows: usize, columns: usize) -> Vec<usize> {
    [&like.dims()[..like.rank() - 2], &[rows, columns]].concat()
}

/// Matrices of one shape as a stack, L × m × n.
///
/// # Errors
/// If the shapes differ, or there are none.
pub fn stack(matrices: &[&Tensor]) -> Result<Tensor> {
    Tensor::stack(matrices, 0)
}

/// The matrices of a stack, as views.
///
/// # Errors
/// If the tensor has no leading dimension.
pub fn unstack(stack: &Tensor) -> Result<Vec<Tensor>> {
    (0..stack.dim(0)?).map(|index| stack.get(index)).collect()
}

/// Every matrix of some stacks of one dtype, in `f64` on the host, read in one transfer.
pub(super) fn read_stacks(stacks: &[&Tensor]) -> Result<Vec<Vec<Mat<f64>>>> {
    let flat =
        stacks.iter().map(|stack| stack.contiguous()?.flatten_all()).collect::<Result<Vec<_>>>()?;
    let numbers = read_numbers(&Tensor::cat(&flat, 0)?)?;
    let mut rest = numbers.as_slice();
    let mut found = Vec::with_capacity(stacks.len());
    for stack in stacks {
        let (matrices, rows, columns) = stack_shape(stack)?;
        let mut next = || {
            let (head, tail) = rest.split_at(rows * columns);
            rest = tail;
            Mat::from_fn(rows, columns, |i, j| head[i * columns + j])
        };
        found.push((0..matrices).map(|_| next()).collect());
    }
    Ok(found)
}

/// [`read_stacks`] for a known number of stacks, found under the names that the caller gives them.
pub(super) fn read_each<const N: usize>(stacks: [&Tensor; N]) -> Result<[Vec<Mat<f64>>; N]> {
    read_stacks(&stacks)?.try_into().map_err(|found: Vec<_>| wrong_count("read", found.len(), N))
}

/// [`write_stacks`] for a known number of groups.
pub(super) fn write_each<const N: usize>(
    groups: [(&[Mat<f64>], &Tensor); N],
) -> Result<[Tensor; N]> {
    write_stacks(&groups)?
        .try_into()
        .map_err(|found: Vec<_>| wrong_count("written", found.len(), N))
}

fn wrong_count(done: &str, found: usize, expected: usize) -> Error {
    Error::Msg(format!("{found} stacks of matrices were {done}, not {expected}")).bt()
}

/// The numbers of a tensor, in `f64` on the host, in one transfer.
pub(super) fn read_numbers(x: &Tensor) -> Result<Vec<f64>> {
    count_transfer();
    x.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()
}

/// Host matrices as stacks, written in one transfer: all matrices of a group have one shape and
/// become one stack, or a single matrix where `like` is one.
pub(super) fn write_stacks(groups: &[(&[Mat<f64>], &Tensor)]) -> Result<Vec<Tensor>> {
    let Some((_, like)) = groups.first() else { return Ok(Vec::new()) };
    if let Some((_, like)) = groups.iter().find(|(matrices, _)| matrices.is_empty()) {
        bail!("nothing can be computed of a stack of no matrices, {:?}", like.dims())
    }
    let (dtype, device) = (like.dtype(), like.device());
    count_transfer();
    let flat = with_real!(dtype, T => {
        let numbers: Vec<T> = groups.iter().flat_map(|(matrices, _)| matrices.iter()).flat_map(|m| read_rows::<f64, T>(m.as_ref())).collect();
        let count = numbers.len();
        Tensor::from_vec(numbers, count, device)?
    });
    let mut start = 0;
    let cut = |(matrices, like): &(&[Mat<f64>], &Tensor)| {
        let (rows, columns) = matrices.first().map_or((0, 0), |m| m.shape());
        let count = matrices.len() * rows * columns;
        let shape = if like.rank() == 2 {
            vec![rows, columns]
        } else {
            vec![matrices.len(), rows, columns]
        };
        let stack = flat.narrow(0, start, count)?.reshape(shape);
        start += count;
        stack
    };
    groups.iter().map(cut).collect()
}

/// Every matrix of a stack is finite, or the error names the operation and the element.
pub(super) fn ensure_all_finite(matrices: &[Mat<f64>], operation: &str) -> Result<()> {
    matrices.iter().try_for_each(|matrix| ensure_finite(matrix.as_ref(), operation))
}

/// Machine epsilon of a type, for callers that have a tensor.
pub(super) fn epsilon_of(x: &Tensor) -> Result<f64> {
    with_real!(x.dtype(), T => Ok(<T as Real>::EPSILON))
}

/// Σ over each matrix of a stack, keeping its dimensions: L × 1 × 1, or 1 × 1.
pub(super) fn sum_each(x: &Tensor) -> Result<Tensor> {
    x.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)
}
