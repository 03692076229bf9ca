//! A product of matrices on one thread.

use super::{Gemm, Matrix, Real, work};
use faer::linalg::matmul::matmul;
use faer::mat::MatMut;
use faer::{Accum, Par};

/// Multiplications below which a product is not worth a second thread.
pub const WORTH_SHARING: usize = 1 << 19;

/// out ← alpha · a b, or out ← out + alpha · a b with `accumulate`, on the calling thread alone;
/// rows of `out` are `stride` apart.
///
/// # Safety
/// `out` must be valid for a.rows × b.columns elements at that stride, nobody else may use them
/// meanwhile, and a and b must not overlap them.
pub unsafe fn multiply_at<T: Real>(
    out: *mut T,
    stride: usize,
    a: Matrix<T>,
    b: Matrix<T>,
    alpha: T,
    accumulate: bool,
) {
    work::product(a.shape().0, a.shape().1, b.shape().1);
    if let Some(gemm) = Gemm::of::<T>() {
        // SAFETY: the caller's promise.
        return unsafe { gemm.multiply_at(out, stride, [a, b], alpha, accumulate) };
    }
    // SAFETY: the caller's promise.
    let out =
        unsafe { MatMut::from_raw_parts_mut(out, a.shape().0, b.shape().1, stride as isize, 1) };
    matmul(
        out,
        if accumulate { Accum::Add } else { Accum::Replace },
        a.view(),
        b.view(),
        alpha,
        Par::Seq,
    );
}
