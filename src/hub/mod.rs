//! Models out of here and in: the folders that `transformers` and PEFT read and write, the files of
//! llama.cpp.
//!
//! ```text
//! weights   a weight matrix as one dense tensor, whatever its form here
//! peft      adapters, as PEFT has them
//! format    what an architecture says of its form there; one file each:
//! gpt2      names and layouts of GPT-2: fused attention, transposed matrices
//! llama     names and settings of Llama
//! settings  reading a config.json, refusing what does not fit
//! gguf      llama.cpp's file of a Llama, its numbers widened
//! fused     queries, keys and values from one matrix or from three
//! factored  low-rank weights by rows of their own, with the code that transformers loads
//! folder    config.json, safetensors in one file or many
//! tokenizer the tokenizer and its chat template
//! ```

mod factored;
mod folder;
mod format;
mod fused;
mod gguf;
mod gpt2;
mod llama;
mod peft;
mod settings;
#[cfg(test)]
mod tests;
mod tokenizer;
mod weights;

pub use folder::{ExportOptions, Exported, export, import, import_config};
pub use fused::with_fused_qkv;
pub use gguf::{import as import_gguf, read_config as import_gguf_config};
pub use peft::{export_peft, import_peft, import_peft_config, peft_base};
pub use tokenizer::ChatTokenizer;
pub use weights::Named;
