//! Specs that leave the shape of the model, or the tokenizer, to the model they start from.

use super::source;
use crate::error::Failure;
use crate::spec::{self, ImportedShape, InitSpec, Plan, RunSpec};
use anyhow::{Context, Result};
use std::path::Path;

/// The spec in a file and its plan, with settings laid over it, and with what it leaves out of the
/// model's shape and the tokenizer filled in from the model that `init` names.
///
/// # Errors
/// As for [`spec::load_plan`], or if that model cannot be read.
pub fn load_plan(path: &Path, overrides: &[String]) -> Result<(RunSpec, Plan)> {
    spec::load_completed_plan(path, overrides, &shape_of)
}

/// The spec alone, filled in as by [`load_plan`].
///
/// # Errors
/// As for [`spec::load`], or if the model that `init` names cannot be read.
pub fn load_spec(path: &Path, overrides: &[String]) -> Result<RunSpec> {
    spec::load_completed(path, overrides, &shape_of)
}

fn shape_of(init: &InitSpec) -> Result<ImportedShape> {
    let (config, tokenizer) = source::read_config(init)
        .map_err(|error| Failure::Usage(format!("init: {}: {error:#}", init.path())))?;
    let mut model = match serde_json::to_value(&config)? {
        serde_json::Value::Object(model) => model,
        other => anyhow::bail!("a model's configuration is {other}, no mapping"),
    };
    let not_of_the_shape =
        ["weights", "layers", "vocab_size", "dropout", "spectrum", "start", "zero_outputs"];
    for key in not_of_the_shape {
        model.remove(key);
    }
    let tokenizer = tokenizer.map(|file| {
        file.to_str().map(str::to_owned).with_context(|| format!("{}: not UTF-8", file.display()))
    });
    Ok(ImportedShape { model, tokenizer: tokenizer.transpose()? })
}
