//! Dense linear algebra on 2-D tensors: products, QR, Cholesky-QR, SVD, polar factor, square roots,
//! triangular division, whitening.
//!
//! Tensors are m × n with m rows, or a [`stack`] L × m × n of L such matrices, `f32` or `f64`, on
//! any device. The form decides the path:
//!
//! * a single matrix in host memory takes the **host path**: products and factorisations by faer,
//!   which reads strided and transposed views as they are, on one thread, so callers are free to
//!   work on several matrices at a time;
//! * a stack, and whatever lives on a device, takes the **device path**: products by candle where
//!   the tensor lives, whole stacks at once, and factorisations of the small matrices on the host
//!   in `f64`, side by side, moved together in one transfer each way. Making a stack on the CPU is
//!   how a test runs the code that a GPU runs.
//!
//! On both a result depends on the input alone, bit for bit.
//!
//! * Small factorisations, on the host: [`svd`], [`polar`], [`square_roots`],
//!   [`inverse_square_root`], [`divide_by_upper`], [`whitened`], and [`qr`] on the host path.
//! * Matrix products only: [`cholesky_qr`], [`orthonormal_directions`], [`polar_newton_schulz`],
//!   [`reorthonormalize`], and [`qr`] on the device path.

mod cholesky;
mod cholesky_qr;
mod combine;
mod directions;
mod gpu;
mod host;
mod householder;
mod newton_schulz;
mod orthonormal_stacks;
mod qr_choice;
mod stack;
mod svd;
mod symmetric;
mod triangular;

pub use cholesky::{whitened, whitened_flops};
pub use combine::{
    add_product, frobenius_norm, gram, inner, multiply, sum_of_products, weighted_sum,
};
pub use directions::{orthonormal_directions, orthonormal_directions_together};
pub use newton_schulz::{
    PolarPolynomials, polar_by_polynomials, polar_newton_schulz, polar_newton_schulz_flops,
};
pub use qr_choice::{cholesky_qr, qr};
pub use stack::{matrix_shape, stack, stack_shape, transfers, unstack};
pub use svd::{Svd, Svds, polar, svd, svds};
pub use symmetric::{
    SquareRoots, inverse_square_root, orthonormality_defect, reorthonormalize, square_roots,
};
pub use triangular::divide_by_upper;

#[cfg(test)]
mod tests;
