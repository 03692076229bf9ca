//! A network and its parameters from what a checkpoint holds of them.

use super::{ModelConfig, Network, build};
use crate::params::{ParamStore, TensorReader};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

/// The configuration that a checkpoint's `config.json` holds.
///
/// # Errors
/// If it is none, or says something that no network can have.
pub fn read_config(config: &serde_json::Value) -> Result<ModelConfig> {
    let config: ModelConfig =
        serde_json::from_value(config.clone()).context("config.json of the checkpoint")?;
    config.validate()?;
    Ok(config)
}

/// The network of this configuration (`config.json`) with these tensors (`model.safetensors`).
///
/// # Errors
/// If the configuration cannot be read or built, or a tensor is missing, has another shape or is
/// left over.
pub fn restore(
    config: &serde_json::Value,
    tensors: Vec<(String, Tensor)>,
    dtype: DType,
    device: &Device,
) -> Result<(Box<dyn Network>, ParamStore)> {
    let model = build(read_config(config)?)?;
    let reader = TensorReader::new("model.safetensors", tensors);
    let params = ParamStore::load(model.declared(), reader, dtype, device)?;
    Ok((model, params))
}
