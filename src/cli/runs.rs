//! `lrpt runs`: the runs of a folder and where they stand.

use super::{listing, output};
use crate::error::Failure;
use crate::figures::bytes;
use crate::train::{RunState, RunSummary, runs_in};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where runs lie unless told otherwise.
const RUNS: &str = "runs";

/// Arguments of `lrpt runs`.
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// A folder of runs and sweeps.
    #[arg(default_value = RUNS, value_name = "DIR")]
    folder: PathBuf,
    /// Print one JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// Lists the runs of a folder on stdout, the newest first.
///
/// # Errors
/// When the folder cannot be read.
pub fn run(args: RunsArgs) -> Result<()> {
    let runs = match args.folder.try_exists() {
        // Where nothing was trained yet, there are none; a folder that was named is a mistake.
        Ok(false) if args.folder == Path::new(RUNS) => Vec::new(),
        Ok(false) => {
            let folder = args.folder.display();
            let message = format!(
                "{folder}: there is no such folder; runs lie in {RUNS}/ unless `--run-dir` says \
                 otherwise"
            );
            return Err(Failure::Usage(message).into());
        }
        _ => runs_in(&args.folder)?,
    };
    if args.json {
        return output::line(Value::from(runs.iter().map(as_json).collect::<Vec<_>>()));
    }
    if runs.is_empty() {
        tracing::info!("no run in {}; `lrpt train SPEC` makes one", args.folder.display());
        return Ok(());
    }
    let rows: Vec<_> = runs.iter().map(|run| row(run, &args.folder)).collect();
    listing::print(&["NAME", "STATE", " STEP", " VAL/LOSS", " AGE", " SIZE"], &rows)?;
    for run in &runs {
        if let RunState::Failed(error) = &run.state {
            tracing::warn!("{}: {error}", run.folder.display());
        }
    }
    Ok(())
}

fn row(run: &RunSummary, parent: &Path) -> Vec<String> {
    // A run that was named itself has no name in its parent.
    let name = run.folder.strip_prefix(parent).ok().filter(|name| !name.as_os_str().is_empty());
    let steps = run.max_steps.map_or("?".into(), |steps| steps.to_string());
    vec![
        name.unwrap_or(&run.folder).display().to_string(),
        run.state.to_string(),
        format!("{}/{steps}", run.step),
        run.validation.map_or("–".into(), |(_, loss)| format!("{loss:.4}")),
        listing::age(run.begun),
        bytes(run.bytes),
    ]
}

fn as_json(run: &RunSummary) -> Value {
    let error = match &run.state {
        RunState::Failed(error) => Some(error),
        _ => None,
    };
    let name = run.folder.file_name().map(|name| name.to_string_lossy());
    json!({
        "name": name,
        "run": run.folder.display().to_string(),
        "state": run.state.name(),
        "error": error,
        "step": run.step,
        "max_steps": run.max_steps,
        "val/step": run.validation.map(|(step, _)| step),
        "val/loss": run.validation.map(|(_, loss)| loss),
        "begun_unix_seconds": listing::unix_seconds(run.begun),
        "bytes": run.bytes,
    })
}
