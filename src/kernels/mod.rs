//! The floor of the code that computes: tensors' numbers in host memory, the two number types, loops
//! at the processor's SIMD level, products, and sums in a fixed order; and the launching of kernels
//! on NVIDIA GPUs ([`gpu`]).
//!
//! [`Host`] and [`mutate`] are the one bridge from candle's tensors to their memory. Results of
//! sums depend on lengths alone, neither on the number of threads nor on the SIMD level.

mod gemm;
pub mod gpu;
mod host;
mod matrix;
mod multiply;
pub mod profile;
mod real;
mod rows;
mod simd;
mod sums;
pub mod work;

pub use gemm::Gemm;
pub use host::{Host, SharedOut, build, has_kernel, mutate, scalar, unwritten};
pub use matrix::Matrix;
pub use multiply::{WORTH_SHARING, multiply_at};
pub use real::Real;
pub(crate) use real::with_real;
pub use rows::{dot_rows, weigh_rows};
pub use simd::dispatch;
pub(crate) use simd::vectorized;
pub use sums::{lane_max, lane_sum, wide_dot};

/// Numbers per parallel piece of an element-wise pass or of a sum: fixed, so that sums do not
/// depend on the number of threads.
pub const PIECE: usize = 1 << 15;
