//! Models out of here and in: the folders that `transformers` reads and writes.
//!
//! ```text
//! weights   a weight matrix as one dense tensor, whatever its form here
//! gpt2      names and layouts of GPT-2: fused attention, transposed matrices
//! llama     names and settings of Llama
//! settings  reading a config.json, refusing what does not fit
//! folder    config.json, safetensors in one file or many, the tokenizer
//! ```

mod folder;
mod gpt2;
mod llama;
mod settings;
#[cfg(test)]
mod tests;
mod weights;

pub use folder::{ExportOptions, Exported, export, import};
pub use weights::Named;
