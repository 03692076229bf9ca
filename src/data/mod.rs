//! Text to tokens to batches.
//!
//! ```text
//! corpus, cargo_registry      documents of a source, split into training and validation
//! tokenizer, byte_pair, ...   text <-> tokens
//! shard                       tokens on disk, memory-mapped
//! raw                         token files others wrote, used in place
//! prepare                     all of the above once, cached under data/<hash>/
//! batches, permutation        tokens -> batches, a pure function of (seed, step, micro-batch)
//! validation                  the fixed windows every validation uses
//! ```

mod batches;
mod byte_pair;
mod cargo_registry;
mod corpus;
mod hugging_face;
mod permutation;
mod prepare;
mod raw;
mod shard;
mod tokenizer;
mod validation;

pub use batches::{Batch, Batches};
pub use cargo_registry::crates_at_hand;
pub use prepare::{Dataset, DatasetSummary, cache_dir, prepare};
pub use shard::TokenShard;
pub use tokenizer::Tokenizer;
pub use validation::ValidationSet;
