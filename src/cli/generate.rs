//! `lrpt generate`: text from a trained run.

use super::{compute, output};
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
    /// Text to continue.
    #[arg(long, default_value = "\n")]
    prompt: String,
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
    let mut tokens = tokenizer.encode(&args.prompt)?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let mut printed = 0;
    let mut failure = None;
    let prompt = tokens.clone();
    let mut show = |tokens: &[u32], is_end: bool| -> Result<()> {
        let text = tokenizer.decode(tokens)?;
        // A character may be spread over tokens: hold its incomplete bytes back until they are
        // whole.
        let complete = if is_end { text.as_str() } else { text.trim_end_matches('\u{FFFD}') };
        if complete.len() > printed {
            output::piece(&complete[printed..])?;
            printed = complete.len();
        }
        Ok(())
    };
    show(&tokens, false)?;
    generate(run.model.as_ref(), &run.params, &prompt, args.tokens, sampling, &mut |token| {
        tokens.push(token);
        failure = show(&tokens, false).err();
        failure.is_none()
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    show(&tokens, true)?;
    output::line("")
}
