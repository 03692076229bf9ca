//! The command line: one file per command, no logic of its own.

mod compute;
mod data;
mod eval;
mod generate;
mod inspect;
mod logging;
mod output;
mod spec;
mod train;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

/// Pre-train low-rank language models: GPTs whose weights W = U S Vᵀ are trained by dynamical low-rank optimizers.
///
/// Exit codes: 0 done; 1 failed; 2 bad usage or spec; 3 diverged; 130 or 143 interrupted after a clean checkpoint.
#[derive(Debug, Parser)]
#[command(name = "lrpt", version, propagate_version = true)]
pub struct Cli {
    /// Threads for computing (default: all cores); results repeat bit for bit at a fixed number.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Form of the log on stderr; what is logged follows RUST_LOG.
    #[arg(long, global = true, value_enum, default_value = "text")]
    log_format: logging::LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model as a spec says.
    Train(train::TrainArgs),
    /// Continue a run from its newest sound checkpoint.
    Resume(train::ResumeArgs),
    /// Loss, perplexity and bits per byte of a run, as one JSON object.
    Eval(eval::EvalArgs),
    /// Continue a prompt.
    Generate(generate::GenerateArgs),
    /// Ranks, singular values and orthonormality of a run's weights.
    Inspect(inspect::InspectArgs),
    /// Prepare or look at training data.
    Data(data::DataArgs),
    /// Check a spec, show what it resolves to, print its JSON Schema.
    Spec(spec::SpecArgs),
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
        if cfg!(debug_assertions) && matches!(self.command, Command::Train(_) | Command::Resume(_)) {
            eprintln!("warning: this is a debug build, tens of times slower than `cargo run --release`");
        }
        match self.command {
            Command::Train(args) => train::run(args, self.log_format),
            Command::Resume(args) => train::resume(args, self.log_format),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "lrpt", &mut std::io::stdout());
                Ok(())
            }
            other => {
                let _log = logging::start(self.log_format, None)?;
                match other {
                    Command::Eval(args) => eval::run(args),
                    Command::Generate(args) => generate::run(args),
                    Command::Inspect(args) => inspect::run(args),
                    Command::Data(args) => data::run(args),
                    Command::Spec(args) => spec::run(args),
                    Command::Train(_) | Command::Resume(_) | Command::Completions { .. } => unreachable!("handled above"),
                }
            }
        }
    }
}
