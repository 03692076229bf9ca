//! `lrpt eval`: the loss of a trained run, on its validation set or on texts, and what it chooses.

use super::{compute, output};
use crate::data::{Dataset, ValidationSet};
use crate::error::Failure;
use crate::spec::{DeviceSpec, Plan};
use crate::train::{
    ChoiceScore, LoadedRun, RunFolder, TextScore, ValidationLoss, evaluate, read_questions,
};
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `lrpt eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    run: PathBuf,
    /// Evaluate on these texts instead of the run's validation set, every token but the first of
    /// each; may be given several times; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// Tokens between the windows of a text: fewer give each token more context and take longer
    /// (default: the block size, so that windows do not overlap).
    #[arg(long, value_name = "N", requires = "text")]
    stride: Option<usize>,
    /// Ask questions instead: JSON lines of `context`, `choices` and `gold`, the number of the right
    /// choice from 0; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    choices: Option<PathBuf>,
    /// Evaluate on the validation set of another run with the same tokenizer: after fine-tuning,
    /// that of the run it began from tells what has been forgotten.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["text", "choices"])]
    validation_of: Option<PathBuf>,
    /// Tokens of the validation set to evaluate (default: the `eval.tokens` of the run it is of).
    #[arg(long, value_name = "N", conflicts_with_all = ["text", "choices"])]
    tokens: Option<u64>,
    /// Print JSON for several texts and for choices, too: an object a text, or one.
    #[arg(long)]
    json: bool,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
}

#[derive(Serialize)]
struct Scores<T> {
    #[serde(flatten)]
    score: T,
    step: u64,
    parameters: usize,
    protocol: String,
}

/// Prints what was measured and how: of the validation set or one text a JSON object with `loss`,
/// `perplexity`, `bits_per_byte` and `tokens`.
///
/// # Errors
/// If the run, a text or a question cannot be read, or the model fails.
pub fn run(args: EvalArgs) -> Result<()> {
    let device = compute::device(args.device)?;
    let run = LoadedRun::open(&args.run, &device)?;
    match &args.choices {
        Some(path) => ask(&args, &run, path),
        None if args.text.is_empty() => validate(&args, &run),
        None => score(&args, &run),
    }
}

/// The validation set of a run: the one that is scored, or another.
fn validation_data(args: &EvalArgs, run: &LoadedRun) -> Result<(Dataset, Plan)> {
    let folder = match &args.validation_of {
        Some(path) => RunFolder::new(path),
        None => run.folder.clone(),
    };
    let plan = folder.plan()?;
    let before = folder.data_summary()?;
    if before.tokenizer_hash != run.folder.data_summary()?.tokenizer_hash {
        return Err(Failure::Usage(format!(
            "{} has another tokenizer than {}, so its tokens mean something else; give its text \
             with --text",
            folder.root().display(),
            args.run.display()
        ))
        .into());
    }
    let dataset = folder.prepare_from_here(&plan.data)?;
    if before.content_hash != dataset.summary.content_hash {
        return Err(Failure::Usage(format!(
            "the validation text has changed since {} was trained; give a text with --text",
            folder.root().display()
        ))
        .into());
    }
    Ok((dataset, plan))
}

/// The loss on a validation set.
fn validate(args: &EvalArgs, run: &LoadedRun) -> Result<()> {
    let (dataset, plan) = validation_data(args, run)?;
    let byte_lengths = dataset.token_byte_lengths();
    let tokens = args.tokens.unwrap_or(plan.eval.tokens.0);
    let block_size = run.model.config().block_size;
    let is_whole = dataset.summary.val_trained.is_none();
    let set = ValidationSet::new(Arc::new(dataset.val), block_size, tokens, &byte_lengths)?;
    let loss: ValidationLoss = evaluate(run.model.as_ref(), &run.params, &set)?;
    let windows = set.windows();
    let of = match &args.validation_of {
        Some(path) => format!("the data of {}", path.display()),
        None => "the run's data".into(),
    };
    let protocol = match is_whole {
        true => format!(
            "validation split of {of}: {windows} non-overlapping windows of {block_size} \
             tokens spread evenly, each predicted from its own window only, mean over tokens"
        ),
        false => format!(
            "validation split of {of}: {windows} examples spread evenly, each cut to \
             {block_size} tokens, mean over the tokens of the answers"
        ),
    };
    print_json(run, loss, protocol)
}

fn print_json<T: Serialize>(run: &LoadedRun, score: T, protocol: String) -> Result<()> {
    let parameters = run.params.total_element_count();
    output::line(serde_json::to_string(&Scores { score, step: run.step, parameters, protocol })?)
}

/// The text in a file, or on standard input, and what to call it.
fn read_text(path: &PathBuf) -> Result<(String, String)> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text);
        read.context("standard input cannot be read as UTF-8")?;
        return Ok(("standard input".into(), text));
    }
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(Failure::Usage(format!(
            "{name}: cannot be read: {error}; give a file of UTF-8 text, or `-` for standard input"
        ))
        .into()),
    }
}

/// Texts, each by itself and all together.
fn score(args: &EvalArgs, run: &LoadedRun) -> Result<()> {
    let tokenizer = run.folder.tokenizer()?;
    let block = run.model.config().block_size;
    let stride = args.stride.unwrap_or(block);
    let mut scores = Vec::new();
    for path in &args.text {
        let (name, text) = read_text(path)?;
        let score = TextScore::of(run.model.as_ref(), &run.params, &tokenizer, &text, stride);
        scores.push((name.clone(), score.with_context(|| name)?));
    }
    let protocol = format!(
        "every token but the first, in windows of {block} tokens every {stride}, each token \
         predicted from its window only (beyond the first window from at least {} token{}), \
         mean over tokens; standard error over blocks of consecutive tokens",
        block - stride + 1,
        if stride == block { "" } else { "s" }
    );
    if scores.len() > 1 {
        let all: Vec<TextScore> = scores.iter().map(|(_, score)| score.clone()).collect();
        scores.push((format!("all {} texts", all.len()), TextScore::all(&all)));
    }
    if args.json || scores.len() == 1 {
        return scores
            .into_iter()
            .try_for_each(|(name, score)| print_json(run, score, format!("{name}: {protocol}")));
    }
    let width = scores.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let header = ["tokens", "loss", "± s.e.", "perplexity", "bits/byte"];
    let [tokens, loss, error, perplexity, bits] = header;
    output::line(format!(
        "{:width$} {tokens:>10} {loss:>9} {error:>9} {perplexity:>11} {bits:>10}",
        "text"
    ))?;
    for (name, score) in scores {
        let number = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
        output::line(format!(
            "{name:width$} {:>10} {:>9.4} {:>9} {:>11.3} {:>10}",
            score.tokens,
            score.loss,
            number(score.standard_error),
            score.perplexity,
            number(score.bits_per_byte)
        ))?;
    }
    output::line(protocol)
}

/// Questions with choices.
fn ask(args: &EvalArgs, run: &LoadedRun, path: &PathBuf) -> Result<()> {
    let (name, text) = read_text(path)?;
    let questions =
        read_questions(&text).map_err(|error| Failure::Usage(format!("{name}: {error:#}")))?;
    let tokenizer = run.folder.tokenizer()?;
    let score = ChoiceScore::of(run.model.as_ref(), &run.params, &tokenizer, &questions)?;
    let protocol = format!(
        "{name}: the choice of the largest sum of log-likelihoods of its tokens after the context \
         (acc), and of the largest per UTF-8 byte of the choice (acc_norm)"
    );
    if args.json {
        return print_json(run, score, protocol);
    }
    let error = |x: Option<f64>| x.map_or(String::new(), |x| format!(" ± {x:.4}"));
    output::line(format!("questions  {}", score.questions))?;
    output::line(format!("acc        {:.4}{}", score.acc, error(score.acc_stderr)))?;
    output::line(format!("acc_norm   {:.4}{}", score.acc_norm, error(score.acc_norm_stderr)))?;
    if score.cut > 0 {
        output::line(format!(
            "cut        {} choices lost the beginning of their context",
            score.cut
        ))?;
    }
    output::line(protocol)
}
