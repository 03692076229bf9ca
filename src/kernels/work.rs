//! Floating-point operations that products and factorisations run, counted in unit tests; anywhere
//! else these functions are empty.
//!
//! A multiply-add is two operations. A Gram matrix counts as the whole product AᵀA, of which the
//! host computes one half. Factorisations iterate or work in blocks, so they count as the textbook
//! has it (Golub & Van Loan, 4th ed., §4.2, §5.2, §8.3 and §8.6), wherever one is really made.

#[cfg(test)]
use std::cell::Cell;

#[cfg(test)]
thread_local! {
    static DONE: Cell<u64> = const { Cell::new(0) };
}

/// Counts these operations on this thread.
#[inline(always)]
fn count(_operations: impl FnOnce() -> f64) {
    #[cfg(test)]
    DONE.set(DONE.get() + _operations().round() as u64);
}

/// A product of rows × inner and inner × columns: 2 m k n.
#[inline(always)]
pub fn product(rows: usize, inner: usize, columns: usize) {
    count(|| 2.0 * rows as f64 * inner as f64 * columns as f64);
}

/// A division of rows × columns by a triangular matrix: m n².
#[inline(always)]
pub fn triangular_division(rows: usize, columns: usize) {
    count(|| rows as f64 * (columns as f64).powi(2));
}

/// The Cholesky factor of an n × n matrix: n³/3.
#[inline(always)]
pub fn cholesky(size: usize) {
    count(|| (size as f64).powi(3) / 3.0);
}

/// Q and R of m × n, m ≥ n, by reflections: 4 m n² − 4/3 n³, half of it for Q.
#[inline(always)]
pub fn qr(rows: usize, columns: usize) {
    count(|| {
        let (long, short) = (rows.max(columns) as f64, rows.min(columns) as f64);
        4.0 * long * short * short - 4.0 / 3.0 * short.powi(3)
    });
}

/// Singular values and both thin bases: 14 m n² + 8 n³ for m > n, and 21 n³ of a square matrix.
#[inline(always)]
pub fn svd(rows: usize, columns: usize) {
    count(|| {
        let (long, short) = (rows.max(columns) as f64, rows.min(columns) as f64);
        match rows == columns {
            true => 21.0 * short.powi(3),
            false => 14.0 * long * short * short + 8.0 * short.powi(3),
        }
    });
}

/// Eigenvalues and eigenvectors of a symmetric n × n matrix: 9 n³.
#[inline(always)]
pub fn eigen(size: usize) {
    count(|| 9.0 * (size as f64).powi(3));
}

/// Operations that this thread has counted so far.
#[cfg(test)]
pub fn so_far() -> u64 {
    DONE.get()
}

/// Runs `work` on a pool of one thread, on which [`so_far`] sees all of its operations and no
/// others.
///
/// # Panics
/// If no thread can be started.
#[cfg(test)]
pub fn on_one_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(work)
}
