//! Atomic folders of named tensors with a manifest, and which of them to keep. Knows no model.
//!
//! ```text
//! runs/<name>/lrpt.lock                          held while a process trains in the run            (lock)
//! runs/<name>/checkpoints/step-00001000/         one checkpoint, complete whenever it exists       (directory)
//!                 config.json                    what is needed to rebuild the model
//!                 model.safetensors              the weights by name                               (tensors)
//!                 optimizer.safetensors          the moments by name
//!                 state.json                     {"step": 1000, "state": counters and scalars}
//!                 manifest.json                  step, and size and BLAKE3 hash of the four files  (manifest)
//! runs/<name>/checkpoints/latest, best           relative symbolic links (text files off Unix)     (pointer)
//! ```
//!
//! A reader trusts nothing: whatever does not agree with the manifest to the bit is reported as
//! damaged, and the checkpoint before it is used.

mod checkpoints;
mod directory;
mod lock;
mod manifest;
mod message;
mod pointer;
mod retention;
mod tensors;
#[cfg(test)]
mod tests;

pub use checkpoints::{Checkpoints, Damaged, Entry};
pub use directory::{load, load_config, tensor_bytes, verify};
pub use lock::{LOCK_FILE, RunLock};
pub use manifest::{FileEntry, Manifest};
pub use retention::to_delete;
pub use tensors::{decode as tensors_from_bytes, encode as tensors_to_bytes};

use candle_core::Tensor;

/// Everything a run needs to go on from `step` as if it had never stopped.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Optimizer steps taken.
    pub step: u64,
    /// What is needed to rebuild the model before its weights are loaded.
    pub config: serde_json::Value,
    /// Weights by name. Written in any order, read back in the order of names.
    pub model: Vec<(String, Tensor)>,
    /// Optimizer state by name. Written in any order, read back in the order of names.
    pub optimizer: Vec<(String, Tensor)>,
    /// Counters and scalars that are not tensors.
    pub state: serde_json::Value,
}
