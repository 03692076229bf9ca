//! The floor of the code that computes on the CPU: tensors' numbers in host memory, the two number
//! types, loops at the processor's SIMD level, and sums in a fixed order.
//!
//! [`Host`] and [`mutate`] are the one bridge from candle's tensors to their memory. Results of
//! sums depend on lengths alone, neither on the number of threads nor on the SIMD level.

mod host;
mod matrix;
pub mod profile;
mod real;
mod row_copy;
mod rows;
mod simd;
mod sums;
pub mod work;

pub use host::{Host, SharedOut, build, has_kernel, mutate, scalar, unwritten};
pub use matrix::Matrix;
pub use real::Real;
pub(crate) use real::with_real;
pub use row_copy::rows_in_order;
pub use rows::{dot_rows, weigh_rows};
pub use simd::dispatch;
pub(crate) use simd::vectorized;
pub use sums::{lane_max, lane_sum, wide_dot};

/// Numbers per parallel piece of an element-wise pass or of a sum: fixed, so that sums do not
/// depend on the number of threads.
pub const PIECE: usize = 1 << 15;
