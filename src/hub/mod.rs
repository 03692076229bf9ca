//! Models out of here and in: the folders that `transformers` reads and writes.
//!
//! ```text
//! weights   a weight matrix as one dense tensor, whatever its form here
//! gpt2      names and layouts of GPT-2: fused attention, transposed matrices
//! folder    config.json, safetensors in one file or many, the tokenizer
//! ```

mod folder;
mod gpt2;
#[cfg(test)]
mod tests;
mod weights;

pub use folder::{ExportOptions, Exported, export, import};
pub use weights::Named;
