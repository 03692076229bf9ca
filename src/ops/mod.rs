//! The differentiable operations that training spends its time in, on a tape of our own.
//!
//! Every operation has a CPU kernel (f32, and f64 for tests) and a path of candle operations for other devices; both give the same
//! numbers within rounding, and the kernels the same bits at every SIMD level and thread count.

mod attention;
mod cross_entropy;
mod embedding;
mod host;
mod layer_norm;
mod linear;
mod pointwise;
mod product;
mod real;
mod tape;

pub use attention::causal_attention;
pub use cross_entropy::{cross_entropy_head, cross_entropy_sum, logits};
pub use embedding::embedding;
pub use layer_norm::layer_norm;
pub use linear::{linear, low_rank_linear};
pub use pointwise::{Dropout, add, dropout, gelu};
pub use product::{product, product_into};
pub use tape::{Flow, Gradients, Source, Tape, Value};
