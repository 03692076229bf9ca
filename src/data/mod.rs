//! Text to tokens to batches.
//!
//! ```text
//! files, hub_path, hub_files   the files of globs, on this machine and on the Hugging Face Hub
//! text_blocks                 text, plain or compressed, in blocks
//! documents, json_lines, parquet_rows   documents as a stream, of text, JSON lines and Parquet
//! corpus, cargo_registry, sources, rows   documents of a source, for training and for validation
//! instructions, chat_template, chat_settings   conversations as text, and what of it is trained on
//! tokenizer, byte_pair, ...   text <-> tokens; text as its tokens come
//! shard, shard_file, shard_writer   tokens on disk, memory-mapped, and the format they have there
//! target_mask                 which of the tokens are trained on, where not all are
//! dataset                     tokens, tokenizer and what identifies them
//! raw_file, raw               token files others wrote, used in place
//! encode, part_writer         documents -> tokens -> shard, a few megabytes at a time
//! fill, made_tokenizer, progress   a folder of tokenizer and shards, gone on with where it stopped
//! prepare                     all of the above once, cached under data/<hash>/
//! listing                     what is prepared already
//! batches, permutation        tokens -> batches, a pure function of (seed, step, micro-batch)
//! examples, packing           the same where rows are examples, one or several each
//! validation                  the fixed windows every validation uses
//! ```

mod batches;
mod byte_pair;
mod cargo_registry;
mod chat_settings;
mod chat_template;
mod corpus;
mod dataset;
mod documents;
mod encode;
mod examples;
mod files;
mod fill;
mod gguf_tokenizer;
#[cfg(feature = "datasets")]
mod hub_files;
#[cfg(feature = "datasets")]
mod hub_path;
mod hugging_face;
mod hugging_face_form;
mod instructions;
mod json_lines;
mod listing;
mod made_tokenizer;
mod markup;
mod packing;
#[cfg(feature = "datasets")]
mod parquet_rows;
mod part_writer;
mod permutation;
mod prepare;
mod progress;
mod raw;
mod raw_file;
mod rows;
mod shard;
mod shard_file;
mod shard_writer;
mod sources;
mod target_mask;
mod text_blocks;
mod text_stream;
mod tokenizer;
mod validation;

pub use batches::{Batch, Batches, Trained};
pub use cargo_registry::crates_at_hand;
pub use chat_settings::ChatSettings;
pub use dataset::{Dataset, DatasetSummary};
pub use listing::{PreparedData, prepared_data};
pub use prepare::{cache_dir, keep_prepared_in, prepare, prepare_or_find, prepared};
pub use shard::TokenShard;
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use validation::ValidationSet;
