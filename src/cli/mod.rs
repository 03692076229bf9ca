//! The command line: one file per command, no logic of its own.

mod bench;
mod compare;
mod completions;
mod compute;
mod data;
mod demo;
mod doctor;
mod eval;
mod examples;
mod export;
mod generate;
mod inspect;
mod listing;
mod logging;
mod memory;
mod output;
mod processes;
mod report;
mod runs;
mod selftest;
mod slurm;
mod spec;
mod starter;
mod sweep;
mod train;
mod version;
mod watch;

use crate::parallel::Launch;
use crate::record::Terminal;
use clap::{Parser, Subcommand};
use logging::{LogFormat, Logging};
use std::path::PathBuf;

/// Pre-train low-rank language models: GPTs whose weights W = U S Vᵀ are trained by dynamical
/// low-rank optimizers.
///
/// Exit codes: 0 done; 1 failed; 2 bad usage or spec; 3 diverged; 130 or 143 interrupted after a
/// clean checkpoint.
#[derive(Debug, Parser)]
#[command(name = "lrpt", version = version::VERSION.as_str(), disable_version_flag = true)]
pub struct Cli {
    /// Threads for computing (default: all cores); results repeat bit for bit at a fixed number.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Form of the log on stderr; what is logged follows RUST_LOG.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Folder of prepared data.
    #[arg(long, global = true, value_name = "DIR", env = "LRPT_DATA", default_value = "data")]
    data_dir: PathBuf,
    /// Print the version, with the commit and the features of this build.
    #[arg(short = 'v', short_alias = 'V', long = "version", action = clap::ArgAction::Version, global = true)]
    _version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model as a spec says.
    #[command(after_help = examples::TRAIN)]
    Train(train::TrainArgs),
    /// Continue a run from its newest sound checkpoint.
    #[command(after_help = examples::RESUME)]
    Resume(train::ResumeArgs),
    /// Run many specs from one file: methods, learning rates, seeds, equal budgets.
    #[command(after_help = examples::SWEEP)]
    Sweep(sweep::SweepArgs),
    /// Watch runs on the terminal while they train, or after: loss, rates, speed, ranks, spectra,
    /// samples.
    #[command(after_help = examples::WATCH)]
    Watch(watch::WatchArgs),
    /// List runs: state, step, last validation loss, age, size on disk.
    #[command(after_help = examples::RUNS)]
    Runs(runs::RunsArgs),
    /// Compare the runs of a sweep, or any runs, with statistics and a report.
    #[command(after_help = examples::COMPARE)]
    Compare(compare::CompareArgs),
    /// Write the page of one run: curves, ranks, spectra, times, samples, spec.
    #[command(after_help = examples::REPORT)]
    Report(report::ReportArgs),
    /// Loss, perplexity and bits per byte of a run, as one JSON object.
    #[command(after_help = examples::EVAL)]
    Eval(eval::EvalArgs),
    /// Continue a prompt.
    #[command(after_help = examples::GENERATE)]
    Generate(generate::GenerateArgs),
    /// Write a run as a folder that Hugging Face `transformers` loads.
    #[command(after_help = examples::EXPORT)]
    Export(export::ExportArgs),
    /// Ranks, singular values and orthonormality of a run's weights.
    #[command(after_help = examples::INSPECT)]
    Inspect(inspect::InspectArgs),
    /// Prepare, list or look at training data.
    #[command(after_help = examples::DATA)]
    Data(data::DataArgs),
    /// Check a spec, show what it resolves to, print its JSON Schema.
    #[command(after_help = examples::SPEC)]
    Spec(spec::SpecArgs),
    /// Time training steps on random tokens, by phase, beside the counted operations and memory.
    #[command(after_help = examples::BENCH)]
    Bench(bench::BenchArgs),
    /// Say what this machine offers and what would slow training down.
    #[command(after_help = examples::DOCTOR)]
    Doctor,
    /// Compare a device with the CPU: operations, gradients, optimizer steps, a short training,
    /// checkpoints, memory.
    #[command(after_help = examples::SELFTEST)]
    Selftest(selftest::SelftestArgs),
    /// Small experiments that show what the method does.
    #[command(after_help = examples::DEMO)]
    Demo(demo::DemoArgs),
    /// Print a shell's completion script or the manual page, or write all of them.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(completions::CompletionsArgs),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        compute::set_threads(self.threads)?;
        crate::data::keep_prepared_in(self.data_dir);
        let terminal = Terminal::stderr();
        let is_first = Launch::detect().is_none_or(|launch| launch.rank == 0);
        let logging = Logging::start(self.log_format, &terminal, is_first)?;
        match self.command {
            Command::Train(args) => train::run(args, terminal, &logging),
            Command::Resume(args) => train::resume(args, terminal, &logging),
            Command::Sweep(args) => sweep::run(args, terminal),
            Command::Watch(args) => watch::run(args),
            Command::Runs(args) => runs::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Report(args) => report::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Export(args) => export::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Data(args) => data::run(args),
            Command::Spec(args) => spec::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Doctor => doctor::run(),
            Command::Selftest(args) => selftest::run(args),
            Command::Demo(args) => demo::run(args),
            Command::Completions(args) => completions::run(&args),
        }
    }
}
