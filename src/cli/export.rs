//! `lrpt export`: a run as a folder that Hugging Face `transformers` loads.

use super::output;
use crate::hub::{ExportOptions, export};
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
    /// Folder to write, for `AutoModelForCausalLM.from_pretrained`; it must not exist.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
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
    let tokenizer = run.folder.tokenizer()?;
    let options = ExportOptions {
        dtype: match args.dtype {
            ExportType::F32 => DType::F32,
            ExportType::F16 => DType::F16,
            ExportType::Bf16 => DType::BF16,
        },
        shard_bytes: args.max_shard_size.saturating_mul(1_000_000),
    };
    let exported = export(run.model.as_ref(), &run.params, &tokenizer, options, &args.to)?;
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
