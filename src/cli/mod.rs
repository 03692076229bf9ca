//! The command line: one file per command, no logic of its own.

mod bench;
mod compare;
mod compute;
mod data;
mod demo;
mod doctor;
mod eval;
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
mod spec;
mod sweep;
mod train;
mod watch;

use crate::parallel::Launch;
use crate::record::Terminal;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use logging::{LogFormat, Logging};

/// Pre-train low-rank language models: GPTs whose weights W = U S Vᵀ are trained by dynamical
/// low-rank optimizers.
///
/// Exit codes: 0 done; 1 failed; 2 bad usage or spec; 3 diverged; 130 or 143 interrupted after a
/// clean checkpoint.
#[derive(Debug, Parser)]
#[command(name = "lrpt", version, disable_version_flag = true)]
pub struct Cli {
    /// Threads for computing (default: all cores); results repeat bit for bit at a fixed number.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Form of the log on stderr; what is logged follows RUST_LOG.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Print the version.
    #[arg(short = 'v', short_alias = 'V', long = "version", action = clap::ArgAction::Version, global = true)]
    _version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model as a spec says.
    Train(train::TrainArgs),
    /// Continue a run from its newest sound checkpoint.
    Resume(train::ResumeArgs),
    /// Run many specs from one file: methods, learning rates, seeds, equal budgets.
    Sweep(sweep::SweepArgs),
    /// Watch runs on the terminal while they train, or after: loss, rates, speed, ranks, spectra,
    /// samples.
    Watch(watch::WatchArgs),
    /// List runs: state, step, last validation loss, age, size on disk.
    Runs(runs::RunsArgs),
    /// Compare the runs of a sweep, or any runs, with statistics and a report.
    Compare(compare::CompareArgs),
    /// Write the page of one run: curves, ranks, spectra, times, samples, spec.
    Report(report::ReportArgs),
    /// Loss, perplexity and bits per byte of a run, as one JSON object.
    Eval(eval::EvalArgs),
    /// Continue a prompt.
    Generate(generate::GenerateArgs),
    /// Write a run as a folder that Hugging Face `transformers` loads.
    Export(export::ExportArgs),
    /// Ranks, singular values and orthonormality of a run's weights.
    Inspect(inspect::InspectArgs),
    /// Prepare, list or look at training data.
    Data(data::DataArgs),
    /// Check a spec, show what it resolves to, print its JSON Schema.
    Spec(spec::SpecArgs),
    /// Time training steps on random tokens, by phase, beside the counted operations and memory.
    Bench(bench::BenchArgs),
    /// Say what this machine offers and what would slow training down.
    Doctor,
    /// Compare a device with the CPU: operations, gradients, optimizer steps, a short training,
    /// checkpoints, memory.
    Selftest(selftest::SelftestArgs),
    /// Small experiments that show what the method does.
    Demo(demo::DemoArgs),
    /// Print a shell's completion script.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<()> {
        compute::set_threads(self.threads)?;
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
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "lrpt", &mut script);
                output::piece(&String::from_utf8(script)?)
            }
        }
    }
}
