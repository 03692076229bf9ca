//! Dense linear algebra on 2-D tensors: products, QR, Cholesky-QR, SVD, polar factor, inverse square root.
//!
//! Tensors are m × n with m rows, `f32` or `f64`, on any device. Products run where the tensor lives: on the CPU through faer's kernels,
//! which read strided and transposed views as they are, elsewhere through candle. Factorisations run on the host through faer. Everything
//! here is sequential, so a result depends on the input alone, bit for bit, and callers are free to work on several matrices at a time.
//!
//! | small, on the host | matrix products only |
//! |---|---|
//! | [`qr`], [`svd`], [`polar`], [`inverse_square_root`] | [`cholesky_qr`], [`orthonormal_directions`], [`polar_newton_schulz`], [`reorthonormalize`] |

mod cholesky_qr;
mod combine;
mod directions;
mod host;
mod householder;
mod newton_schulz;
mod svd;
mod symmetric;

pub use cholesky_qr::cholesky_qr;
pub use combine::{add_product, frobenius_norm, gram, inner, multiply, sum_of_products, weighted_sum};
pub use directions::orthonormal_directions;
pub use householder::qr;
pub use newton_schulz::{PolarPolynomials, polar_by_polynomials, polar_newton_schulz};
pub use svd::{Svd, polar, svd};
pub use symmetric::{inverse_square_root, orthonormality_defect, reorthonormalize};

#[cfg(test)]
mod tests;
