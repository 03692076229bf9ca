//! `lrpt export`: a run as a folder that Hugging Face `transformers` or PEFT loads.

use super::output;
use crate::error::Failure;
use crate::hub::{ChatTokenizer, ExportOptions, export, export_peft};
use crate::spec::InitSpec;
use crate::train::LoadedRun;
use anyhow::Result;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `lrpt export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    run: PathBuf,
    /// Folder to write, for `AutoModelForCausalLM.from_pretrained`, or of a run with adapters for
    /// `PeftModel.from_pretrained`; it must not exist.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Merge the adapters of a fine-tuned run into the matrices that they adapt, and write the
    /// whole model. Without it such a run is written as an adapter for PEFT.
    #[arg(long)]
    merge: bool,
    /// Keep low-rank weights: r rows of each matrix and how the others follow from them,
    /// r (m + n - r) numbers in place of m n, and the code to load them (`trust_remote_code`).
    #[arg(long)]
    factored: bool,
    /// Type of the numbers.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: ExportType,
    /// The most megabytes (10⁶ bytes) of weights in one file.
    #[arg(long, value_name = "MB", default_value_t = 5_000)]
    max_shard_size: usize,
}

/// Number types of exported weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExportType {
    F32,
    F16,
    Bf16,
}

/// Writes the folder and says on stdout what is in it, as one JSON object.
pub fn run(args: ExportArgs) -> Result<()> {
    let run = LoadedRun::open(&args.run, &Device::Cpu)?;
    let (tokenizer, chat) = (run.folder.tokenizer()?, run.folder.chat_settings()?);
    let tokenizer = ChatTokenizer { tokenizer: &tokenizer, chat: Some(&chat) };
    let dtype = match args.dtype {
        ExportType::F32 => DType::F32,
        ExportType::F16 => DType::F16,
        ExportType::Bf16 => DType::BF16,
    };
    let options = ExportOptions {
        dtype,
        shard_bytes: args.max_shard_size.saturating_mul(1_000_000),
        factored: args.factored,
    };
    let is_adapted = run.model.config().is_adapted();
    if args.merge && !is_adapted {
        let message = format!("--merge: {} has no adapters; leave it out", args.run.display());
        return Err(Failure::Usage(message).into());
    }
    let exported = if is_adapted && !args.merge {
        let base = match run.folder.plan()?.init {
            Some(InitSpec::Hf(path)) => Some(path),
            _ => None,
        };
        export_peft(run.model.as_ref(), &run.params, tokenizer, base.as_deref(), dtype, &args.to)?
    } else {
        export(run.model.as_ref(), &run.params, tokenizer, options, &args.to)?
    };
    output::line(serde_json::json!({
        "run": args.run.display().to_string(),
        "step": run.step,
        "to": args.to.display().to_string(),
        "parameters": exported.parameters,
        "trained_parameters": run.params.element_count(),
        "bytes": exported.bytes,
        "files": exported.files,
    }))
}
