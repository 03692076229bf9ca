//! Models out of here and in: the folders that `transformers` and PEFT read and write.
//!
//! ```text
//! weights   a weight matrix as one dense tensor, whatever its form here
//! peft      adapters, as PEFT has them
//! gpt2      names and layouts of GPT-2: fused attention, transposed matrices
//! llama     names and settings of Llama
//! settings  reading a config.json, refusing what does not fit
//! folder    config.json, safetensors in one file or many, the tokenizer
//! ```

mod folder;
mod gpt2;
mod llama;
mod peft;
mod settings;
#[cfg(test)]
mod tests;
mod weights;

pub use folder::{ExportOptions, Exported, export, import};
pub use peft::{export_peft, import_peft};
pub use weights::Named;
