//! The model that `init` of a spec names: its shape, and its parameters.

use super::run_folder::LoadedRun;
use crate::hub;
use crate::model::{ModelConfig, build, merged};
use crate::params::{ParamStore, TensorReader};
use crate::spec::InitSpec;
use anyhow::Result;
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};

/// The configuration of the model, and the file of its tokenizer if it has one; no tensor is read.
///
/// # Errors
/// If the source is not there, or has no counterpart here.
pub(super) fn read_config(init: &InitSpec) -> Result<(ModelConfig, Option<PathBuf>)> {
    let path = Path::new(init.path());
    let of_folder = |folder: &Path| -> Result<(ModelConfig, PathBuf)> {
        Ok((hub::import_config(folder)?, folder.join("tokenizer.json")))
    };
    let (config, tokenizer) = match init {
        InitSpec::Hf(_) => of_folder(path)?,
        InitSpec::Peft(peft) => {
            let base = peft.base.as_deref().map(Path::new);
            let tokenizer = hub::peft_base(path, base)?.join("tokenizer.json");
            (hub::import_peft_config(path, base)?, tokenizer)
        }
        InitSpec::Gguf(_) => (hub::import_gguf_config(path)?, path.to_owned()),
        InitSpec::Run(_) => {
            let (config, folder) = LoadedRun::config(path)?;
            (config.merged(), folder.tokenizer_path())
        }
    };
    Ok((config, tokenizer.is_file().then_some(tokenizer)))
}

/// The model itself, on the host; adapters are merged into what they adapt.
///
/// # Errors
/// As for [`read_config`], or if a tensor is missing, has another shape or is left over.
pub(super) fn read(init: &InitSpec) -> Result<(ModelConfig, ParamStore)> {
    let path = Path::new(init.path());
    let (config, tensors) = match init {
        InitSpec::Run(_) => {
            let run = LoadedRun::open(path, &Device::Cpu)?;
            return merged(run.model.config(), run.params);
        }
        InitSpec::Hf(_) => hub::import(path)?,
        InitSpec::Gguf(_) => hub::import_gguf(path)?,
        InitSpec::Peft(peft) => hub::import_peft(path, peft.base.as_deref().map(Path::new))?,
    };
    let imported = build(config.clone())?;
    let reader = TensorReader::new("the imported model", tensors);
    let params = ParamStore::load(imported.declared(), reader, DType::F32, &Device::Cpu)?;
    Ok((config, params))
}
