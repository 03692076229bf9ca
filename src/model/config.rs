//! The resolved shape of a network: everything needed to build it and to load its checkpoints.

use crate::spec::{Architecture, Target, WeightForm};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Shape of a network, stored as `config.json` in every checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Architecture.
    pub arch: Architecture,
    /// Number of blocks.
    pub n_layer: usize,
    /// Attention heads per block.
    pub n_head: usize,
    /// Width C of the residual stream.
    pub n_embd: usize,
    /// Context length.
    pub block_size: usize,
    /// Vocabulary size V.
    pub vocab_size: usize,
    /// Dropout probability in training.
    pub dropout: f64,
    /// Whether linear layers and norms have biases.
    pub bias: bool,
    /// Form of each target's weights.
    pub weights: BTreeMap<Target, WeightForm>,
}

impl ModelConfig {
    /// Outputs m and inputs n of a target's weight.
    pub fn shape(&self, target: Target) -> (usize, usize) {
        self.arch.shape(target, self.n_embd)
    }

    /// Form of a target's weights; dense where nothing is said.
    pub fn form(&self, target: Target) -> WeightForm {
        self.weights.get(&target).copied().unwrap_or(WeightForm::Dense)
    }
}
