//! Matrix products: the one place where the CPU multiplies matrices.
//!
//! Outputs are cut into tiles of fixed size, each computed by one thread over the whole inner dimension, so results depend neither on
//! the schedule nor on the number of threads.

use super::host::{Host, SharedOut, build, has_kernel, mutate, with_real};
use super::real::Real;
use candle_core::{Result, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::mat::{MatMut, MatRef};
use faer::{Accum, Par};
use rayon::prelude::*;

/// Rows and columns of an output tile: large enough for full speed of the product kernel, small enough to share out.
const TILE: usize = 192;

/// A matrix in memory: element (i, j) at i·row_stride + j·column_stride.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    numbers: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    /// A row-major matrix.
    pub fn new(numbers: &'a [T], rows: usize, columns: usize) -> Self {
        debug_assert_eq!(numbers.len(), rows * columns);
        Self { numbers, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn part(&self, row: usize, column: usize, rows: usize, columns: usize) -> MatRef<'a, T> {
        debug_assert!(row + rows <= self.rows && column + columns <= self.columns);
        // SAFETY: the part lies within the matrix, whose extent was checked against the slice when it was made.
        unsafe {
            let start = self.numbers.as_ptr().add(row * self.row_stride + column * self.column_stride);
            MatRef::from_raw_parts(start, rows, columns, self.row_stride as isize, self.column_stride as isize)
        }
    }
}

/// out ← alpha · a b, or out ← out + alpha · a b with `accumulate`; `out` is row-major, a.rows × b.columns.
pub fn multiply<T: Real>(out: &mut [T], a: Matrix<T>, b: Matrix<T>, alpha: f64, accumulate: bool) {
    let (rows, columns, inner) = (a.rows, b.columns, a.columns);
    assert_eq!(inner, b.rows, "inner dimensions of a product");
    assert_eq!(out.len(), rows * columns, "size of a product");
    let accumulation = if accumulate { Accum::Add } else { Accum::Replace };
    let shared = SharedOut::new(out);
    let (row_tiles, column_tiles) = (rows.div_ceil(TILE), columns.div_ceil(TILE));
    let tile = |index: usize| {
        let (row, column) = (index / column_tiles * TILE, index % column_tiles * TILE);
        let (height, width) = (TILE.min(rows - row), TILE.min(columns - column));
        // SAFETY: tiles are disjoint parts of `out`, which outlives this call.
        let destination =
            unsafe { MatMut::from_raw_parts_mut(shared.get().add(row * columns + column), height, width, columns as isize, 1) };
        matmul(destination, accumulation, a.part(row, 0, height, inner), b.part(0, column, inner, width), T::real(alpha), Par::Seq);
    };
    match row_tiles * column_tiles {
        1 => tile(0),
        tiles => (0..tiles).into_par_iter().for_each(tile),
    }
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

fn view(x: &Tensor, transpose: bool) -> Result<Tensor> {
    if transpose { x.t() } else { Ok(x.clone()) }
}

/// op(a) op(b), where op transposes on request; a and b are 2-D.
///
/// # Errors
/// If the inner dimensions differ.
pub fn product(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
    let shape = product_shape(a, b, transpose_a, transpose_b)?;
    if !has_kernel(a) {
        return view(a, transpose_a)?.matmul(&view(b, transpose_b)?);
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    with_real!(a.dtype(), T => build::<T>(shape, |out| apply::<T>(out, &a, &b, transpose_a, transpose_b, false)))
}

/// out ← out + op(a) op(b), in place on the CPU.
///
/// # Errors
/// If a shape does not fit.
pub fn product_into(out: &mut Tensor, a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool, accumulate: bool) -> Result<()> {
    let shape = product_shape(a, b, transpose_a, transpose_b)?;
    if out.dims() != [shape.0, shape.1] {
        bail!("product_into: the output is {:?}, the product {shape:?}", out.dims())
    }
    if !has_kernel(a) {
        let product = view(a, transpose_a)?.matmul(&view(b, transpose_b)?)?;
        *out = if accumulate { (&*out + product)? } else { product };
        return Ok(());
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    with_real!(a.dtype(), T => mutate::<T>(out, |out| apply::<T>(out, &a, &b, transpose_a, transpose_b, accumulate)))
}

fn product_shape(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<(usize, usize)> {
    let oriented = |x: &Tensor, transpose: bool| -> Result<(usize, usize)> {
        let (rows, columns) = x.dims2()?;
        Ok(if transpose { (columns, rows) } else { (rows, columns) })
    };
    let ((rows, inner), (inner_b, columns)) = (oriented(a, transpose_a)?, oriented(b, transpose_b)?);
    if inner != inner_b {
        bail!("a {rows} x {inner} matrix cannot be multiplied by a {inner_b} x {columns} one")
    }
    Ok((rows, columns))
}

fn apply<T: Real>(out: &mut [T], a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool, accumulate: bool) -> Result<()> {
    let (a_host, b_host) = (Host::new(a)?, Host::new(b)?);
    let matrix = |numbers, (rows, columns), transpose| {
        let matrix = Matrix::new(numbers, rows, columns);
        if transpose { matrix.t() } else { matrix }
    };
    let a = matrix(a_host.numbers::<T>()?, a.dims2()?, transpose_a);
    let b = matrix(b_host.numbers::<T>()?, b.dims2()?, transpose_b);
    multiply(out, a, b, 1.0, accumulate);
    Ok(())
}
