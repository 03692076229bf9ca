//! The resolved shape of a network: everything needed to build it and to load its checkpoints.

use crate::spec::{Architecture, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Form of one target's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightForm {
    /// A full m × n matrix.
    Dense,
    /// W = U S Vᵀ of this rank at the start.
    LowRank {
        /// Rank r.
        rank: usize,
    },
    /// W = B A of this rank.
    Factored {
        /// Rank r.
        rank: usize,
    },
}

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
        match target {
            Target::Q | Target::K | Target::V | Target::O => (self.n_embd, self.n_embd),
            Target::Up => (4 * self.n_embd, self.n_embd),
            Target::Down => (self.n_embd, 4 * self.n_embd),
        }
    }

    /// Form of a target's weights; dense where nothing is said.
    pub fn form(&self, target: Target) -> WeightForm {
        self.weights.get(&target).copied().unwrap_or(WeightForm::Dense)
    }
}
