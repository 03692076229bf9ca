//! Householder QR on the host: always stable, whatever the rank.

use super::host::ensure_finite;
use crate::kernels::{Real, work};
use candle_core::Result;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::qr::{col_pivoting, no_pivoting};
use faer::mat::{Mat, MatRef};
use faer::{Conj, Par, Spec};

/// [`qr`](super::qr) of a host matrix.
pub(super) fn thin_qr<T: Real>(a: Mat<T>) -> Result<(Mat<T>, Mat<T>)> {
    work::qr(a.nrows(), a.ncols());
    let reflections = Reflections::of(a)?;
    let count = reflections.count();
    let mut q = reflections.columns(0, count);
    let mut r = upper_triangle(reflections.packed.as_ref(), count);
    let zero = T::from_f64(0.0);
    for i in 0..count {
        if r[(i, i)] < zero {
            q.col_mut(i).iter_mut().for_each(|x| *x = -*x);
            r.row_mut(i).iter_mut().for_each(|x| *x = -*x);
        }
    }
    Ok((q, r))
}

/// QR with column pivoting, A = Q R: columns of Q in the order of the largest remaining column, R:
/// k × n with its columns in A's order.
///
/// Row i of R is no longer than √(n−i) |R's i-th pivot|, returned third, so small pivots mean small
/// rows.
pub(super) fn pivoted_qr(mut a: Mat<f64>) -> Result<(Mat<f64>, Mat<f64>, Vec<f64>)> {
    ensure_finite(a.as_ref(), "QR")?;
    let (rows, columns) = a.shape();
    work::qr(rows, columns);
    let count = rows.min(columns);
    let block = no_pivoting::factor::recommended_block_size::<f64>(rows, columns);
    let mut factor = Mat::zeros(block, count);
    let (mut forward, mut backward) = (vec![0usize; columns], vec![0usize; columns]);
    let scratch = col_pivoting::factor::qr_in_place_scratch::<usize, f64>(
        rows,
        columns,
        block,
        Par::Seq,
        Spec::default(),
    );
    col_pivoting::factor::qr_in_place(
        a.as_mut(),
        factor.as_mut(),
        &mut forward,
        &mut backward,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Spec::default(),
    );
    let reflections = Reflections { packed: a, factor };
    let pivoted = upper_triangle(reflections.packed.as_ref(), count);
    let mut r = Mat::zeros(count, columns);
    for (position, &column) in forward.iter().enumerate() {
        r.col_mut(column).copy_from(pivoted.col(position));
    }
    let pivots = (0..count).map(|i| pivoted[(i, i)].abs()).collect();
    Ok((reflections.columns(0, count), r, pivots))
}

/// `count` orthonormal columns orthogonal to the (nearly orthonormal) columns of `basis`; count ≤
/// rows − columns.
pub(super) fn complement(basis: Mat<f64>, count: usize) -> Result<Mat<f64>> {
    let first = basis.ncols();
    work::qr(basis.nrows(), first);
    Ok(Reflections::of(basis)?.columns(first, count))
}

/// The product of Householder reflections that a QR factorisation leaves in place of the matrix.
struct Reflections<T> {
    packed: Mat<T>,
    factor: Mat<T>,
}

impl<T: Real> Reflections<T> {
    fn of(mut a: Mat<T>) -> Result<Self> {
        ensure_finite(a.as_ref(), "QR")?;
        let (rows, columns) = a.shape();
        let block = no_pivoting::factor::recommended_block_size::<T>(rows, columns);
        let mut factor = Mat::zeros(block, rows.min(columns));
        if factor.ncols() > 0 {
            let scratch = no_pivoting::factor::qr_in_place_scratch::<T>(
                rows,
                columns,
                block,
                Par::Seq,
                Spec::default(),
            );
            let mut memory = MemBuffer::new(scratch);
            no_pivoting::factor::qr_in_place(
                a.as_mut(),
                factor.as_mut(),
                Par::Seq,
                MemStack::new(&mut memory),
                Spec::default(),
            );
        }
        Ok(Self { packed: a, factor })
    }

    /// Number of reflections.
    fn count(&self) -> usize {
        self.factor.ncols()
    }

    /// Columns `first..first + count` of the square orthogonal factor.
    fn columns(&self, first: usize, count: usize) -> Mat<T> {
        let rows = self.packed.nrows();
        let mut q = Mat::zeros(rows, count);
        for j in 0..count {
            q[(first + j, j)] = T::from_f64(1.0);
        }
        if self.count() > 0 && count > 0 {
            let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(
                rows,
                self.factor.nrows(),
                count,
            );
            apply_block_householder_sequence_on_the_left_in_place_with_conj(
                self.packed.get(.., ..self.count()),
                self.factor.as_ref(),
                Conj::No,
                q.as_mut(),
                Par::Seq,
                MemStack::new(&mut MemBuffer::new(scratch)),
            );
        }
        q
    }
}

fn upper_triangle<T: Real>(packed: MatRef<'_, T>, rows: usize) -> Mat<T> {
    Mat::from_fn(
        rows,
        packed.ncols(),
        |i, j| if i <= j { packed[(i, j)] } else { T::from_f64(0.0) },
    )
}
