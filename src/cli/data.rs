//! `lrpt data`: prepare training data, or look at it.

use super::{listing, output};
use crate::data::{self, Dataset, PreparedData, TokenShard};
use crate::figures::{bytes, count};
use crate::train::load_spec;
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `lrpt data`.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Tokenize the text of a spec, once; `lrpt train` then starts at once.
    Prepare(PrepareArgs),
    /// Show source, hashes, sizes and the first tokens, preparing the data of a spec if need be.
    Inspect(InspectArgs),
    /// List what is prepared already, the newest first.
    List(ListArgs),
}

#[derive(Debug, Args)]
struct PrepareArgs {
    /// The run's spec.
    spec: PathBuf,
    /// Change a value of the spec, as in `--set data.tokenizer=bytes`; may be given several times.
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// A run's spec, or a folder of prepared data such as `data/5a8c7a5a05a74e52`.
    path: PathBuf,
    /// Change a value of the spec, as in `--set data.tokenizer=bytes`; may be given several times.
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Tokens to show of each part.
    #[arg(long, value_name = "N", default_value_t = 16)]
    tokens: usize,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The folder of prepared data (default: where the other commands keep it).
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Print one JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints what `lrpt data` was asked for on stdout.
///
/// # Errors
/// When the spec is wrong, or the data cannot be read, made or written.
pub fn run(args: DataArgs) -> Result<()> {
    match args.command {
        DataCommand::Prepare(args) => print_summary(&prepare(&args.spec, &args.set)?),
        DataCommand::List(args) => list(args),
        DataCommand::Inspect(args) => {
            let is_prepared = args.path.is_dir();
            let dataset = if is_prepared {
                Dataset::open(&args.path)?
            } else {
                prepare(&args.path, &args.set)?
            };
            print_summary(&dataset)?;
            print_tokens(&dataset, "train", &dataset.train, args.tokens)?;
            print_tokens(&dataset, "val", &dataset.val, args.tokens)
        }
    }
}

fn prepare(spec_path: &Path, set: &[String]) -> Result<Dataset> {
    data::prepare(&load_spec(spec_path, set)?.data, data::cache_dir())
}

fn list(args: ListArgs) -> Result<()> {
    let folder = args.folder.as_deref().unwrap_or(data::cache_dir());
    let found = data::prepared_data(folder)?;
    if args.json {
        return output::line(Value::from(found.iter().map(as_json).collect::<Vec<_>>()));
    }
    if found.is_empty() {
        tracing::info!(
            "nothing is prepared in {}; `lrpt data prepare SPEC` does, as does `lrpt train SPEC`",
            folder.display()
        );
        return Ok(());
    }
    let row = |data: &PreparedData| {
        vec![
            id(data),
            count((data.summary.train_tokens + data.summary.val_tokens) as f64),
            data.summary.vocab_size.to_string(),
            bytes(data.bytes),
            listing::age(data.prepared),
            data.summary.tokenizer.clone(),
            data.summary.source.clone(),
        ]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    listing::print(&["ID", " TOKENS", " VOCAB", " SIZE", " AGE", "TOKENIZER", "SOURCE"], &rows)
}

fn id(data: &PreparedData) -> String {
    data.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn as_json(data: &PreparedData) -> Value {
    json!({
        "id": id(data),
        "folder": data.folder.display().to_string(),
        "source": data.summary.source,
        "tokenizer": data.summary.tokenizer,
        "vocab_size": data.summary.vocab_size,
        "train_tokens": data.summary.train_tokens,
        "val_tokens": data.summary.val_tokens,
        "bytes": data.bytes,
        "prepared_unix_seconds": listing::unix_seconds(data.prepared),
    })
}

fn print_summary(dataset: &Dataset) -> Result<()> {
    let summary = &dataset.summary;
    output::line(format!("source          {}", summary.source))?;
    output::line(format!("tokenizer       {}", summary.tokenizer))?;
    output::line(format!("content hash    {}", summary.content_hash))?;
    output::line(format!("tokenizer hash  {}", summary.tokenizer_hash))?;
    output::line(format!("vocabulary      {}", summary.vocab_size))?;
    output::line(format!(
        "{:<6} {:>14} {:>14} {:>15}",
        "part", "tokens", "bytes", "bytes per token"
    ))?;
    for (part, tokens, bytes) in [
        ("train", summary.train_tokens, summary.train_bytes),
        ("val", summary.val_tokens, summary.val_bytes),
    ] {
        output::line(format!(
            "{part:<6} {tokens:>14} {:>14} {:>15}",
            bytes.map_or("unknown".into(), |bytes| bytes.to_string()),
            bytes.map_or("unknown".into(), |bytes| format!("{:.3}", bytes as f64 / tokens as f64))
        ))?;
    }
    if let (Some(train), Some(val)) = (summary.train_trained, summary.val_trained) {
        output::line(trained_tokens("train", train, summary.train_tokens))?;
        output::line(trained_tokens("val", val, summary.val_tokens))?;
    }
    Ok(())
}

/// How many tokens of a part count in the loss.
pub(super) fn trained_tokens(part: &str, trained: u64, tokens: u64) -> String {
    let percent = 100.0 * trained as f64 / tokens.max(1) as f64;
    format!("{part:<6} {trained} of {tokens} tokens are trained on ({percent:.1}%)")
}

/// The first tokens of a part: number and text of each.
fn print_tokens(dataset: &Dataset, part: &str, shard: &TokenShard, count: usize) -> Result<()> {
    output::line(format!("first tokens of {part}:"))?;
    for token in shard.read(0, count.min(shard.len())) {
        // A source of tokens may have a larger vocabulary than the tokenizer it is shown with.
        let text = dataset
            .tokenizer
            .decode(&[token])
            .map_or("(not in the tokenizer)".into(), |text| format!("{text:?}"));
        output::line(format!("{token:>8}  {text}"))?;
    }
    Ok(())
}
