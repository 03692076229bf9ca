//! How `transformers` has an architecture: its settings, and the names and layouts of its tensors.
//!
//! To add one: a file here that implements [`Format`], and its line in [`format_of`].

use super::gpt2::Gpt2;
use super::llama::Llama;
use super::weights::Module;
use crate::model::ModelConfig;
use crate::params::ParamStore;
use crate::spec::Architecture;
use anyhow::Result;
use candle_core::Tensor;
use serde_json::Value;

/// The format of one architecture.
pub(super) trait Format {
    /// `config.json` of a dense model.
    fn config(&self, model: &ModelConfig, end_of_text: Option<u32>, dtype: &str) -> Value;

    /// Names and tensors there, in f32 or wider, of a model with q, k and v as three matrices.
    ///
    /// # Errors
    /// If the model lacks a parameter, or has what there is no place for.
    fn tensors(&self, model: &ModelConfig, params: &ParamStore) -> Result<Vec<(String, Tensor)>>;

    /// The layers with matrices that stand alone or one below the other here, block by block: all
    /// but those that a joint matrix of q, k and v has to be split for.
    fn modules(&self, model: &ModelConfig) -> Vec<Module>;

    /// Whether their matrices are stored n × m.
    fn is_transposed(&self) -> bool;

    /// The classes of modeling_lrpt.py for its settings and its network with low-rank weights.
    fn factored_classes(&self) -> [&'static str; 2];

    /// The configuration of a dense model here, with q, k and v as three matrices, from a
    /// `config.json`.
    ///
    /// # Errors
    /// Naming what does not fit.
    fn read_config(&self, config: &Value) -> Result<ModelConfig>;

    /// Names and shapes of the tensors of a dense model there, the token table first; a head that
    /// is the table of tokens may be there or not.
    fn shapes(&self, model: &ModelConfig) -> Vec<(String, Vec<usize>)>;

    /// Whether a tensor of this name is no parameter, as old checkpoints hold some, and is passed
    /// over unread.
    fn passes_over(&self, name: &str) -> bool;

    /// Names and tensors here, from those there, of the model with or without its head.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or is left over.
    fn read_tensors(
        &self,
        model: &ModelConfig,
        tensors: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>>;
}

/// The format of an architecture, whose `model_type` is its name here.
pub(super) fn format_of(arch: Architecture) -> &'static dyn Format {
    match arch {
        Architecture::Gpt2 => &Gpt2,
        Architecture::Llama => &Llama,
    }
}
