//! `lrpt watch`: runs while they train, or after.

use crate::watch;
use anyhow::Result;
use clap::Args;
use std::io::IsTerminal;
use std::path::PathBuf;

/// Arguments of `lrpt watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Folders of runs, whose curves are laid over one another.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Print a line for each validation, as is done where stdout is no terminal.
    #[arg(long)]
    lines: bool,
}

/// Shows runs on the terminal, or their validations as lines.
///
/// # Errors
/// When a folder holds no run, or the terminal cannot be used.
pub fn run(args: WatchArgs) -> Result<()> {
    let mut views = watch::open(&args.runs)?;
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let is_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if is_terminal && !is_dumb && !args.lines {
        watch::watch(views)
    } else {
        watch::follow(&mut views, &mut std::io::stdout().lock())
    }
}
