//! Matrix products: the one place where the CPU multiplies matrices.
//!
//! On processors with AVX2 and without AVX-512 the kernels' own products are used, elsewhere faer's: outputs are cut into
//! tiles, each computed by one thread over the whole inner dimension. With both, how an element is
//! summed does not depend on its tile, so results depend neither on the schedule nor on the number
//! of threads.

use super::compute::{Compute, is_half, widened};
use crate::kernels::profile::{Work, span};
use crate::kernels::{
    Gemm, Host, Matrix, Real, SharedOut, WORTH_SHARING, build, multiply_at, mutate, with_real, work,
};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// Rows and columns of an output tile, the fastest first.
const TILES: [(usize, usize); 4] = [(512, 384), (256, 384), (192, 192), (96, 96)];

/// out ← a b, or out ← out + a b with `accumulate`, on all threads; `out` is row-major, a.rows ×
/// b.columns.
pub fn multiply<T: Real>(out: &mut [T], a: Matrix<T>, b: Matrix<T>, accumulate: bool) {
    let ((rows, inner), (inner_b, columns)) = (a.shape(), b.shape());
    assert_eq!(inner, inner_b, "inner dimensions of a product");
    assert_eq!(out.len(), rows * columns, "size of a product");
    let _span = span(|| Work::product(&a, &b, accumulate));
    if let Some(gemm) = Gemm::of::<T>() {
        work::product(rows, inner, columns);
        return gemm.multiply(out, [a, b], accumulate);
    }
    let shared = SharedOut::new(out);
    let (tile_rows, tile_columns) = tile_shape(rows, columns, inner);
    let tiles_across = columns.div_ceil(tile_columns);
    let tile = |index: usize| {
        let (row, column) = (index / tiles_across * tile_rows, index % tiles_across * tile_columns);
        let (height, width) = (tile_rows.min(rows - row), tile_columns.min(columns - column));
        let (a, b) = (a.part((row, 0), (height, inner)), b.part((0, column), (inner, width)));
        // SAFETY: tiles are disjoint parts of `out`, which nothing else refers to until this
        // function returns.
        unsafe {
            multiply_at(shared.get().add(row * columns + column), columns, a, b, T::ONE, accumulate)
        }
    };
    match rows.div_ceil(tile_rows) * tiles_across {
        1 => tile(0),
        tiles => (0..tiles).into_par_iter().with_max_len(1).for_each(tile),
    }
}

/// The largest tile that gives every thread two of them, or the smallest.
fn tile_shape(rows: usize, columns: usize, inner: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * columns * inner < WORTH_SHARING {
        return (rows.max(1), columns.max(1));
    }
    let tiles = |(height, width): (usize, usize)| rows.div_ceil(height) * columns.div_ceil(width);
    TILES.into_iter().find(|tile| tiles(*tile) >= 2 * threads).unwrap_or(TILES[TILES.len() - 1])
}

/// The last dimension and the product of the others: any tensor seen as a matrix of rows.
pub fn rows_of(x: &Tensor) -> Result<(usize, usize)> {
    match x.dims() {
        [] => bail!("a scalar has no rows"),
        [leading @ .., last] => Ok((leading.iter().product(), *last)),
    }
}

/// Seen as a 2-D tensor of rows.
pub fn as_rows(x: &Tensor) -> Result<Tensor> {
    x.reshape(rows_of(x)?)
}

/// x, 2-D or a stack, as candle's products take it: without gaps, or the transpose of that; on an
/// NVIDIA GPU with gaps between the matrices of a stack.
fn whole(x: &Tensor) -> Result<Tensor> {
    let gaps_between = x.device().is_cuda() && is_whole_by_matrix(x);
    if gaps_between || x.t()?.is_contiguous() { Ok(x.clone()) } else { x.contiguous() }
}

/// Whether every matrix of a stack lies without gaps, or is the transpose of one that does.
fn is_whole_by_matrix(x: &Tensor) -> bool {
    match (x.dims(), x.stride()) {
        ([_, rows, columns], [_, down, along]) => {
            (*along == 1 && down == columns) || (*down == 1 && along == rows)
        }
        _ => false,
    }
}

/// [`widened`], a transposed view staying one: its numbers are read in the order they lie in.
pub(super) fn widened_view(x: &Tensor) -> Result<Tensor> {
    if x.is_contiguous() { widened(x) } else { widened(&x.t()?)?.t() }
}

/// a b for 2-D a and b, which may be transposed or narrowed views: nothing is moved.
///
/// # Errors
/// If the inner dimensions differ.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    product_by(Compute::default(), a, b)
}

/// out ← a b, or out ← out + a b with `accumulate`; in place on the CPU, where
/// `out` must not share memory with a or b.
///
/// # Errors
/// If a shape does not fit.
pub fn product_into(out: &mut Tensor, a: &Tensor, b: &Tensor, accumulate: bool) -> Result<()> {
    product_into_by(Compute::default(), out, a, b, accumulate)
}

/// [`product`], by kernels or candle's operations.
pub(super) fn product_by(compute: Compute, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let shape = product_shape(a, b)?;
    if multiplies_in_f32(a) {
        return product_by(compute, &widened_view(a)?, &widened_view(b)?)?.to_dtype(a.dtype());
    }
    if !compute.takes_kernels(a) {
        work::product(shape.0, a.dim(1)?, shape.1);
        return whole(a)?.matmul(&whole(b)?);
    }
    with_real!(a.dtype(), T => build::<T>(shape, |out| apply::<T>(out, a, b, false)))
}

/// [`product_into`], by kernels or candle's operations.
pub(super) fn product_into_by(
    compute: Compute,
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let shape = product_shape(a, b)?;
    if out.dims() != [shape.0, shape.1] {
        bail!("product_into: the output is {:?}, the product {shape:?}", out.dims())
    }
    if !compute.takes_kernels(a) {
        let product = product_by(compute, a, b)?;
        *out = if accumulate { (&*out + product.to_dtype(out.dtype())?)? } else { product };
        return Ok(());
    }
    with_real!(a.dtype(), T => mutate::<T>(out, |out| apply::<T>(out, a, b, accumulate)))
}

/// Whether products of this tensor are made in f32 and then rounded to its own type: half precision
/// in host memory, which candle's CPU cannot multiply.
pub(super) fn multiplies_in_f32(x: &Tensor) -> bool {
    is_half(x.dtype()) && x.device().is_cpu()
}

/// a b in a type that sums can be taken in: f32 from rows of half precision, not rounded in
/// between where it is [made in f32](multiplies_in_f32).
pub(super) fn wide_product_by(compute: Compute, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if multiplies_in_f32(a) {
        return product_by(compute, &widened_view(a)?, &widened_view(b)?);
    }
    widened(&product_by(compute, a, b)?)
}

/// a b for stacks of matrices (L, rows, inner) and (L, inner, columns), by candle's operations.
pub(super) fn batched_product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if multiplies_in_f32(a) {
        return batched_product(&widened(a)?, &widened(b)?)?.to_dtype(a.dtype());
    }
    work::product(a.elem_count() / a.dim(D::Minus1)?.max(1), a.dim(D::Minus1)?, b.dim(D::Minus1)?);
    whole(a)?.matmul(&whole(b)?)
}

fn product_shape(a: &Tensor, b: &Tensor) -> Result<(usize, usize)> {
    let ((rows, inner), (inner_b, columns)) = (a.dims2()?, b.dims2()?);
    if inner != inner_b {
        bail!("a {rows} x {inner} matrix cannot be multiplied by a {inner_b} x {columns} one")
    }
    Ok((rows, columns))
}

fn apply<T: Real>(out: &mut [T], a: &Tensor, b: &Tensor, accumulate: bool) -> Result<()> {
    let (a, b) = (unit_stride(a)?, unit_stride(b)?);
    let (a_host, b_host) = (Host::strided(&a), Host::strided(&b));
    multiply(out, a_host.matrix()?, b_host.matrix()?, accumulate);
    Ok(())
}

/// The tensor itself if its rows or its columns are contiguous, else a copy.
fn unit_stride(x: &Tensor) -> Result<Tensor> {
    if x.stride().contains(&1) { Ok(x.clone()) } else { x.contiguous() }
}
