//! `lrpt eval`: the loss of a trained run.

use super::{compute, output};
use crate::data::{self, TokenShard, ValidationSet};
use crate::error::Failure;
use crate::spec::DeviceSpec;
use crate::train::{LoadedRun, ValidationLoss, evaluate};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `lrpt eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    run: PathBuf,
    /// Evaluate on this text instead of the run's validation set.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens to evaluate (default: the run's `eval.tokens`, or all of `--text`).
    #[arg(long, value_name = "N")]
    tokens: Option<u64>,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
}

#[derive(Serialize)]
struct Scores {
    #[serde(flatten)]
    loss: ValidationLoss,
    step: u64,
    parameters: usize,
    protocol: String,
}

/// Prints one JSON object with `loss`, `perplexity`, `bits_per_byte`, `tokens`, and how they were
/// measured.
pub fn run(args: EvalArgs) -> Result<()> {
    let device = compute::device(args.device)?;
    let run = LoadedRun::open(&args.run, &device)?;
    let plan = run.folder.plan()?;
    let tokenizer = run.folder.tokenizer()?;
    let (shard, byte_lengths, tokens, text) = match &args.text {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the text {}", path.display()))?;
            let tokens = tokenizer.encode(&text).with_context(|| format!("{}", path.display()))?;
            let byte_lengths = tokenizer.token_byte_lengths();
            let shard = TokenShard::from_text(tokens, text.len() as u64, &byte_lengths);
            let all = shard.len() as u64;
            (shard, byte_lengths, args.tokens.unwrap_or(all), path.display().to_string())
        }
        None => {
            let data = run.folder.data_from_here(&plan.data);
            let dataset = data::prepare(&data, &run.folder.cache_from_here())?;
            let before = run.folder.data_summary()?;
            if before.content_hash != dataset.summary.content_hash {
                return Err(Failure::Usage(format!(
                    "the validation text has changed since {} was trained; give a text with --text",
                    args.run.display()
                ))
                .into());
            }
            let byte_lengths = dataset.token_byte_lengths();
            (
                dataset.val,
                byte_lengths,
                args.tokens.unwrap_or(plan.eval.tokens.0),
                "validation split of the run's data".into(),
            )
        }
    };
    let block_size = run.model.config().block_size;
    let set = ValidationSet::new(Arc::new(shard), block_size, tokens, &byte_lengths)?;
    let loss = evaluate(run.model.as_ref(), &run.params, &set)?;
    let protocol = format!(
        "{text}: {} non-overlapping windows of {block_size} tokens spread evenly, each predicted \
         from its own window only, mean over tokens",
        set.windows()
    );
    output::line(serde_json::to_string(&Scores {
        loss,
        step: run.step,
        parameters: run.params.total_element_count(),
        protocol,
    })?)
}
