//! `lrpt bench`: how fast and how large a spec's training is.

use super::{compute, output, spec::vocabulary_size};
use crate::bench::{StepCounts, measure};
use crate::error::Failure;
use crate::spec;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `lrpt bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The spec, a YAML file; its data are not read.
    spec: PathBuf,
    /// Override a key: `--set model.weights=dense`.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Timed steps.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before the clock runs.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm_up: u64,
    /// Tokens in the vocabulary (default: what the spec's tokenizer asks for).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab_size: Option<u32>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the figures of a benchmark on random tokens.
pub fn run(args: BenchArgs) -> Result<()> {
    let (_, plan) = spec::load_plan(&args.spec, &args.overrides)?;
    let vocabulary = match args.vocab_size {
        Some(size) => size as usize,
        None => vocabulary_size(&plan)?.ok_or_else(|| {
            Failure::Usage(format!(
                "{}: the vocabulary is known only once the data are prepared; give its size with --vocab-size",
                plan.name
            ))
        })?,
    };
    let device = compute::device(plan.device)?;
    if cfg!(debug_assertions) {
        tracing::warn!("this is a debug build: its times say nothing; use `cargo run --release`");
    }
    let report = measure(&plan, vocabulary, StepCounts { warm_up: args.warm_up, timed: args.steps }, &device)?;
    if args.json { output::line(serde_json::to_string(&report)?) } else { output::line(report) }
}
