//! `lrpt sweep`: many runs from one file.

use super::starter::{self, ProcessesArgs};
use super::{compute, memory, output, slurm};
use crate::account::Ledger;
use crate::bench::available_memory;
use crate::checkpoint::RunLock;
use crate::error::{is_interrupted, usage};
use crate::figures::{count, duration, operations};
use crate::record::Terminal;
use crate::report::{Column, fitted};
use crate::spec::DeviceSpec;
use crate::sweep::{
    Calibration, LaunchOptions, Launched, Solver, Sweep, SweepManifest, final_parameters, launch,
    planned_operations, read_sweep, refuse_links,
};
use crate::train::StopSignal;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use globset::{Glob, GlobMatcher};
use std::path::{Path, PathBuf};

/// Arguments of `lrpt sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The sweep, a YAML file; with --run-index the sweep's folder.
    sweep: PathBuf,
    /// Print every run with its parameters, tokens, operations and expected time, and run nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print every column of --dry-run, whatever the width of the terminal.
    #[arg(long, requires = "dry_run")]
    wide: bool,
    /// Most runs at a time; they share the threads.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) jobs: std::num::NonZeroUsize,
    #[command(flatten)]
    pub(super) processes: ProcessesArgs,
    /// Machines over which Slurm spreads the processes of each run.
    #[arg(long, value_name = "N", requires = "processes")]
    pub(super) nodes: Option<std::num::NonZeroUsize>,
    /// Only runs whose name matches this pattern: --only 'spectral-*'.
    #[arg(long, value_name = "GLOB")]
    pub(super) only: Option<String>,
    /// Try runs again that failed.
    #[arg(long)]
    pub(super) retry_failed: bool,
    /// Try runs even where more memory is expected to be needed than is available.
    #[arg(long)]
    force: bool,
    /// Who starts the runs: this process, or a Slurm array job whose script is written into the
    /// sweep's folder.
    #[arg(long, value_enum, default_value = "local")]
    launcher: Launcher,
    /// Submit the Slurm script.
    #[arg(long)]
    pub(super) submit: bool,
    /// Run the run of this index in the sweep's manifest, as a Slurm task does.
    #[arg(long, value_name = "INDEX", conflicts_with_all = ["dry_run", "submit", "only"])]
    run_index: Option<usize>,
}

/// Who starts the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Launcher {
    /// This process.
    Local,
    /// Slurm.
    Slurm,
}

/// Runs a sweep, or says what it would run.
pub fn run(args: SweepArgs, terminal: Terminal) -> Result<()> {
    let processes = args.processes.count();
    if let Some(index) = args.run_index {
        return slurm::run_one(&args.sweep, index, processes);
    }
    args.processes.to_start()?;
    if args.submit && args.launcher == Launcher::Local {
        return Err(usage("--submit goes with --launcher slurm".into()));
    }
    if args.nodes.is_some() && args.launcher == Launcher::Local {
        return Err(usage("--nodes goes with --launcher slurm".into()));
    }
    let spec = read_sweep(&args.sweep)?;
    let folder = Path::new("runs").join(&spec.name);
    let threads = threads(&folder, args.jobs.get() * processes);
    // The sweep's budgets and times are for the machine it is started on; a device is opened by the
    // runs.
    let mut calibration = Calibration::new(threads, compute::device(DeviceSpec::Cpu)?, &folder)?;
    let sweep = Sweep::expand(&spec, &args.sweep, &mut calibration)?;
    let only = Only::new(args.only.as_deref(), &sweep)?;
    refuse_unless_shared(&sweep, &only, processes)?;
    if args.dry_run {
        return dry_run(&sweep, &only, args.wide, &mut calibration);
    }
    refuse_links(&folder, sweep.runs.iter().map(|run| run.id.as_str()))?;
    let _lock = RunLock::acquire(&folder).with_context(|| {
        format!(
            "the sweep in {} is running already, or its folder cannot be written",
            folder.display()
        )
    })?;
    let written = std::fs::read_to_string(&args.sweep)?;
    // First, so that runs laid out by it are never without it.
    calibration.save(&folder)?;
    let manifest = SweepManifest::lay_out(&sweep, &written, threads, &folder)?;
    let expected = sweep.runs.iter().map(|run| {
        let vocabulary = calibration.vocabulary_size(&run.plan)?;
        Ok(Ledger::new(&run.plan, vocabulary, threads).peak_of_process(processes as u64))
    });
    let memory = expected.collect::<Result<Vec<u64>>>()?;
    match args.launcher {
        Launcher::Slurm => {
            slurm::write_scripts(&args, &sweep, &manifest, &folder, &memory, &mut calibration)
        }
        Launcher::Local => {
            let of_all = memory.iter().map(|of_one| of_one.saturating_mul(processes as u64));
            let of_all: Vec<u64> = of_all.collect();
            local(&args, &only, &manifest, &folder, &of_all, &terminal)
        }
    }
}

/// Threads of each of so many processes: those the sweep began with, or an equal share.
fn threads(folder: &Path, processes: usize) -> usize {
    let share = (rayon::current_num_threads() / processes).max(1);
    match SweepManifest::read(folder) {
        Ok(manifest) if manifest.threads != share => {
            tracing::info!(
                "runs keep to the number of threads that the sweep began with, {} each: results \
                 repeat at a fixed one",
                manifest.threads
            );
            manifest.threads
        }
        _ => share,
    }
}

/// Refuses a sweep with a run that so many processes cannot train together.
fn refuse_unless_shared(sweep: &Sweep, only: &Only, processes: usize) -> Result<()> {
    sweep.runs.iter().filter(|run| only.wants(&run.id)).try_for_each(|run| {
        let check = starter::refuse_unless_shared(&run.plan, processes);
        check.map_err(|error| usage(format!("{}: {error:#}", run.id)))
    })
}

/// The runs that `--only` leaves.
struct Only(Option<GlobMatcher>);

impl Only {
    /// # Errors
    /// The pattern is none, or no run of the sweep matches it.
    fn new(glob: Option<&str>, sweep: &Sweep) -> Result<Self> {
        let Some(glob) = glob else { return Ok(Self(None)) };
        let pattern = Glob::new(glob).map_err(|error| usage(format!("--only {glob}: {error}")))?;
        let only = Self(Some(pattern.compile_matcher()));
        if sweep.runs.iter().any(|run| only.wants(&run.id)) {
            return Ok(only);
        }
        let first = sweep.runs.first().map_or("", |run| &run.id);
        Err(usage(format!(
            "--only {glob}: no run of this sweep matches; the first of its {} runs is `{first}`, \
             --dry-run lists all",
            sweep.runs.len()
        )))
    }

    fn wants(&self, id: &str) -> bool {
        self.0.as_ref().is_none_or(|pattern| pattern.is_match(id))
    }
}

fn dry_run(sweep: &Sweep, only: &Only, wide: bool, calibration: &mut Calibration) -> Result<()> {
    let mut total = 0.0;
    let apart = !sweep.spec.search.apart().is_empty();
    let chosen = if apart { "on the seeds that search" } else { "on the first seed" };
    let runs: Vec<_> = sweep.runs.iter().filter(|run| only.wants(&run.id)).collect();
    let mut rows = Vec::with_capacity(runs.len());
    for run in &runs {
        let vocabulary = calibration.vocabulary_size(&run.plan)?;
        let ledger = Ledger::new(&run.plan, vocabulary, 1);
        let steps = run.plan.train.max_steps.0;
        let seconds = steps as f64 * calibration.seconds_per_step(&run.plan)?;
        total += seconds;
        let search = match () {
            () if run.searches_only => Some("searches, is not reported".to_owned()),
            () if run.repeats_the_best => Some(format!("if its value is the best {chosen}")),
            () => None,
        };
        let remarks: Vec<String> = run.solved.iter().cloned().chain(search).collect();
        rows.push([
            run.id.clone(),
            count(ledger.parameters.trained() as f64),
            count(ledger.total_tokens() as f64),
            steps.to_string(),
            operations(planned_operations(&run.plan, vocabulary)),
            duration(seconds),
            count(final_parameters(&run.plan, vocabulary) as f64),
            remarks.join("  "),
        ]);
    }
    let column = |index: usize| rows.iter().map(|row| row[index].clone()).collect();
    let columns = [
        Column::text("run", 0, column(0)),
        Column::numbers("parameters", 1, column(1)),
        Column::numbers("tokens", 2, column(2)),
        Column::numbers("steps", 3, column(3)),
        Column::numbers("FLOPs", 1, column(4)),
        Column::numbers("time", 0, column(5)),
        Column::numbers("r (m + n − r)", 4, column(6)),
        Column::text("remarks", 5, column(7)),
    ];
    fitted(&columns, output::width(wide)).iter().try_for_each(output::line)?;
    let repeats = runs.iter().filter(|run| run.repeats_the_best).count();
    let searched = if repeats > 0 {
        format!(", {repeats} of them only if their values are the best {chosen}")
    } else {
        String::new()
    };
    let time = duration(total);
    output::line(format!(
        "{} runs{searched}; training steps of all, one after another: {time}",
        runs.len()
    ))
}

fn local(
    args: &SweepArgs,
    only: &Only,
    manifest: &SweepManifest,
    folder: &Path,
    expected: &[u64],
    terminal: &Terminal,
) -> Result<()> {
    let wanted = |id: &str| only.wants(id);
    let stop = StopSignal::install().context("cannot listen for Ctrl-C")?;
    // A sweep itself prepares nothing: it asks its runs to stop.
    stop.preparation_ends();
    let available_memory = available_memory();
    for (run, bytes) in manifest.runs.iter().zip(expected) {
        if !args.force && wanted(&run.id) {
            memory::refuse_beyond(&run.id, *bytes, available_memory)?;
        }
    }
    let options = LaunchOptions {
        jobs: args.jobs.get(),
        processes: args.processes.count(),
        retry_failed: args.retry_failed,
        memory: expected,
        available_memory,
        wanted: &wanted,
        stop,
        terminal,
    };
    let Launched { skipped, finished, not_needed, failed } =
        launch(manifest, folder, &options).map_err(|error| startable_again(error, args))?;
    tracing::info!(
        "{}: {finished} runs finished now, {skipped} before, {not_needed} not needed, {} failed; \
         `lrpt compare {}` compares them",
        manifest.name,
        failed.len(),
        folder.display()
    );
    output::line(serde_json::json!({
        "sweep": folder.display().to_string(), "finished": finished, "skipped": skipped, "not_needed": not_needed, "failed": failed.len(),
    }))?;
    if failed.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = failed
        .iter()
        .map(|(id, why)| format!("  {id}: {why} ({}/logs/{id}.log)", folder.display()))
        .collect();
    bail!(
        "{} of {} runs failed; try them again with --retry-failed:\n{}",
        failed.len(),
        manifest.runs.len(),
        list.join("\n")
    )
}

/// How an interrupted sweep goes on.
fn startable_again(error: anyhow::Error, args: &SweepArgs) -> anyhow::Error {
    let mut command = format!("lrpt sweep {}", args.sweep.display());
    if args.jobs.get() > 1 {
        command.push_str(&format!(" --jobs {}", args.jobs));
    }
    if args.processes.count() > 1 {
        command.push_str(&format!(" --processes {}", args.processes.count()));
    }
    if let Some(pattern) = &args.only {
        command.push_str(&format!(" --only '{pattern}'"));
    }
    let remedy = format!("interrupted; go on with `{command}`");
    if is_interrupted(&error) { error.context(remedy) } else { error }
}
