//! The differentiable operations that training spends its time in, on a tape of our own.
//!
//! Every operation has a CPU kernel (f32, and f64 for tests), most have one for NVIDIA GPUs, and all
//! have a portable path of candle operations for other devices; they give the same numbers within
//! rounding, and the kernels the same bits on every run at a fixed number of threads. [`Compute`]
//! says which is taken and in which type products are made; [`Tape::portable`] runs on the CPU what
//! other devices run. candle's CPU has no product of half-precision matrices: there they are
//! widened, multiplied in f32 and rounded.

mod attention;
mod compute;
mod cross_entropy;
mod documents;
mod embedding;
mod few_rows;
mod gpu;
mod gradients;
mod head_adapter;
mod linear;
mod norm;
mod pointwise;
mod product;
mod relay;
mod rotary;
mod split;
mod tape;

#[cfg(test)]
pub(crate) use crate::kernels::work;
pub use crate::kernels::{profile, scalar};
pub use attention::{AttentionHeads, cached_attention, causal_attention, document_attention};
pub use compute::Compute;
pub use cross_entropy::{
    Targets, adapted_cross_entropy_head, cross_entropies, cross_entropy_head, cross_entropy_sum,
    logits,
};
pub use documents::PackedDocuments;
pub use embedding::{embedding, token_embedding};
pub use gradients::Gradients;
pub use head_adapter::{HeadAdapter, HeadMatrix};
pub use linear::{dense_matrix_linear, linear, low_rank_linear, measured_linear};
pub use norm::{layer_norm, rms_norm};
pub use pointwise::{Dropout, add, dropout, gelu, scaled, swiglu};
pub use product::{product, product_into};
pub use relay::Relay;
pub use rotary::{Rotation, rotary};
pub use split::split;
pub use tape::{Flow, Source, Tape, Value};
