//! Specs that leave the shape of the model, or the tokenizer, to the model they start from.

use super::run_folder::LoadedRun;
use crate::error::Failure;
use crate::hub;
use crate::model::ModelConfig;
use crate::spec::{self, ImportedShape, InitSpec, Plan, RunSpec};
use anyhow::{Context, Result};
use candle_core::Device;
use std::path::{Path, PathBuf};

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
    let path = Path::new(init.path());
    let read = || -> Result<(ModelConfig, Option<PathBuf>)> {
        let there = |file: PathBuf| file.is_file().then_some(file);
        Ok(match init {
            InitSpec::Hf(_) => (hub::import_config(path)?, there(path.join("tokenizer.json"))),
            InitSpec::Peft(peft) => {
                let base = hub::peft_base(path, peft.base.as_deref().map(Path::new))?;
                (hub::import_config(&base)?, there(base.join("tokenizer.json")))
            }
            InitSpec::Gguf(_) => (hub::import_gguf_config(path)?, Some(path.to_owned())),
            InitSpec::Run(_) => {
                let run = LoadedRun::open(path, &Device::Cpu)?;
                let tokenizer = there(run.folder.tokenizer_path());
                (run.model.config().clone(), tokenizer)
            }
        })
    };
    let (config, tokenizer) =
        read().map_err(|error| Failure::Usage(format!("init: {}: {error:#}", path.display())))?;
    let mut model = match serde_json::to_value(&config)? {
        serde_json::Value::Object(model) => model,
        other => anyhow::bail!("a model's configuration is {other}, no mapping"),
    };
    for not_of_the_shape in ["weights", "vocab_size", "dropout"] {
        model.remove(not_of_the_shape);
    }
    let tokenizer = tokenizer.map(|file| {
        file.to_str().map(str::to_owned).with_context(|| format!("{}: not UTF-8", file.display()))
    });
    Ok(ImportedShape { model, tokenizer: tokenizer.transpose()? })
}
