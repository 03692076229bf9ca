//! `lrpt report`: a run as a page.

use super::output;
use crate::report::write_run_report;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `lrpt report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The run's folder; the run may have ended or not.
    run: PathBuf,
    /// Where to write the page (default: report.html in the run's folder).
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the page and prints where it is.
pub fn run(args: ReportArgs) -> Result<()> {
    output::line(write_run_report(&args.run, args.output)?.display())
}
