//! `--processes`: this program, started several times to train one run.

use super::compute;
use crate::error::{Failure, exit_code_of_signal, usage};
use crate::parallel::{Ended, Group, Launch};
use crate::spec::{Plan, ProcessBackend};
use crate::train::{StopSignal, refuse_idle_processes};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

/// Asks a process to stop when the one that started it dies.
const UNTIL_STDIN_CLOSES: &str = "--until-stdin-closes";

/// How many processes train a run.
#[derive(Debug, Args)]
pub struct ProcessesArgs {
    /// Train each run by this many processes on this machine, started here, which share its
    /// micro-batches and the threads: results are those of one process.
    #[arg(long, value_name = "N", visible_aliases = ["num-processes", "nproc-per-node"])]
    pub processes: Option<NonZeroUsize>,
}

impl ProcessesArgs {
    /// How many processes train a run that is not shared by a launcher already.
    pub fn count(&self) -> usize {
        self.processes.map_or(1, NonZeroUsize::get)
    }

    /// How many processes this one has to start; none where it trains itself, alone or as one of
    /// those that were started.
    ///
    /// # Errors
    /// [`Failure::Usage`] where a launcher has started another number.
    pub fn to_start(&self) -> Result<Option<usize>> {
        let asked = self.count();
        match Launch::detect() {
            Some(launch) if self.processes.is_some() && launch.world != asked => {
                Err(usage(format!(
                    "--processes {asked}: {} has started this program as one of {} processes \
                     already; leave out --processes",
                    launch.by, launch.world
                )))
            }
            Some(_) => Ok(None),
            None => Ok(Some(asked).filter(|asked| *asked > 1)),
        }
    }
}

/// Refuses a plan that so many processes started here cannot train together.
///
/// # Errors
/// [`Failure::Usage`] with the remedy.
pub fn refuse_unless_shared(plan: &Plan, processes: usize) -> Result<()> {
    let keeps_apart = match plan.train.data_parallel.backend {
        ProcessBackend::Auto | ProcessBackend::Tcp | ProcessBackend::Nccl => None,
        ProcessBackend::None => Some("none"),
        ProcessBackend::Mpi => Some("mpi"),
    };
    match keeps_apart {
        Some(backend) if processes > 1 => Err(usage(format!(
            "train.data_parallel.backend: is {backend}, but --processes {processes} starts \
             processes that meet over TCP; set `auto`, or use a launcher of MPI's"
        ))),
        _ => refuse_idle_processes(plan, processes),
    }
}

/// Trains the run in this folder by so many processes with this one's arguments; each takes its
/// share of the threads.
///
/// # Errors
/// What ended them, where none of them has said it.
pub fn train_by(processes: usize, run_dir: &Path, stop: &StopSignal) -> Result<()> {
    stop.preparation_ends();
    stop.is_answered_by_others();
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let threads = compute::threads_of_each(processes).to_string();
    let command = || {
        let mut command = Command::new(&program);
        command.args(arguments(std::env::args_os().skip(1))).env("RAYON_NUM_THREADS", &threads);
        Ok(command)
    };
    let group = Group::start(processes, &command)?;
    let ended = group.wait(&|| stop.requested().is_some())?;
    let Some(ended) = ended else { return Ok(()) };
    // In both cases rank 0 has said why it ended, and how the run goes on.
    match (stop.requested(), ended.status.code()) {
        (Some(signal), code) if code.is_none_or(|code| code > 128) => {
            std::process::exit(exit_code_of_signal(signal).into())
        }
        (_, Some(code)) if ended.rank == 0 => std::process::exit(code),
        _ => {
            if run_dir.join("checkpoints").join("latest").exists() {
                let run = run_dir.display();
                tracing::info!(
                    "the checkpoints are whole; `lrpt resume {run} --processes {processes}` goes \
                     on from the newest one"
                );
            }
            Err(failure(&ended, processes))
        }
    }
}

/// A process's arguments with what makes it stop when this one dies, before a `--`.
fn arguments(own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = own.collect();
    if !all.iter().any(|argument| argument == UNTIL_STDIN_CLOSES) {
        let end = all.iter().position(|argument| argument == "--").unwrap_or(all.len());
        all.insert(end, UNTIL_STDIN_CLOSES.into());
    }
    all
}

fn failure(ended: &Ended, processes: usize) -> anyhow::Error {
    let Ended { rank, status, last_words, .. } = ended;
    let words = match last_words.trim_start_matches("error: ") {
        "" => "it said nothing, as where the system kills a process for its memory",
        words => words,
    };
    let message = format!("rank {rank} of {processes} has ended the run ({status}): {words}");
    match status.code() {
        Some(2) => usage(message),
        Some(3) => Failure::Diverged(message).into(),
        _ => anyhow!(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_asked_to_stop_with_this_one_wherever_their_arguments_end() {
        let of = |text: &str| {
            let all = arguments(text.split_whitespace().map(OsString::from));
            all.join(std::ffi::OsStr::new(" ")).into_string().expect("UTF-8")
        };
        assert_eq!(of("train a --seed"), "train a --seed --until-stdin-closes");
        assert_eq!(of("train -- a"), "train --until-stdin-closes -- a");
        assert_eq!(of("train --until-stdin-closes a"), "train --until-stdin-closes a");
    }
}
