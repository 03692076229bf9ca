//! `lrpt demo`: small experiments that show what the method does.

use super::output;
use crate::demo::{self, Experiment, Problem};
use crate::fs::write_atomic;
use anyhow::Result;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `lrpt demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(subcommand)]
    demo: Demo,
}

#[derive(Debug, Subcommand)]
enum Demo {
    /// Momentum and Adam on the factors of W = B A against momentum in the tangent space, on small
    /// matrix problems (docs/momentum.md).
    Momentum(MomentumArgs),
}

/// Arguments of `lrpt demo momentum`.
#[derive(Debug, Args)]
struct MomentumArgs {
    /// Steps of a run.
    #[arg(long, value_name = "N", default_value_t = Experiment::default().steps, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Draws of each problem.
    #[arg(long, value_name = "N", default_value_t = Experiment::default().seeds, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Draw the errors over the steps and over the learning rates into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs a demonstration and prints what came out.
pub fn run(args: DemoArgs) -> Result<()> {
    let Demo::Momentum(args) = args.demo;
    let experiment = Experiment { steps: args.steps, seeds: args.seeds, ..Experiment::default() };
    let report = demo::run(&Problem::ALL, &experiment)?;
    if let Some(path) = &args.plot {
        write_atomic(path, report.figure().as_bytes())?;
    }
    if args.json { output::line(serde_json::to_string(&report)?) } else { output::line(report) }
}
