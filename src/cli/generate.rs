//! `lrpt generate`: text from a trained run.

use super::{compute, output};
use crate::data::TextStream;
use crate::model::{Sampling, generate};
use crate::spec::DeviceSpec;
use crate::train::LoadedRun;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `lrpt generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    run: PathBuf,
    /// Text to continue; without it a newline, or token 0 where the tokenizer has no newline.
    #[arg(long)]
    prompt: Option<String>,
    /// Tokens to generate.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Softmax temperature; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Draw only from the k likeliest tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw only from the smallest set of tokens with this probability.
    #[arg(long)]
    top_p: Option<f64>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
}

/// Prints the prompt and its continuation to stdout as it is drawn.
pub fn run(args: GenerateArgs) -> Result<()> {
    let device = compute::device(args.device)?;
    let run = LoadedRun::open(&args.run, &device)?;
    let tokenizer = run.folder.tokenizer()?;
    let prompt = match &args.prompt {
        None => tokenizer.encode_or_first("\n"),
        Some(prompt) => tokenizer.encode(prompt)?,
    };
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let mut stream = TextStream::new(&tokenizer);
    let mut failure = None;
    output::piece(&stream.push(&prompt)?)?;
    generate(run.model.as_ref(), &run.params, &prompt, args.tokens, sampling, &mut |token| {
        let shown = stream.push(&[token]).and_then(|text| output::piece(&text));
        failure = shown.err();
        failure.is_none()
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    output::piece(&stream.finish()?)?;
    output::line("")
}
