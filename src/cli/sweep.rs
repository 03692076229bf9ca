//! `lrpt sweep`: many runs from one file.

use super::{compute, memory, output};
use crate::account::Ledger;
use crate::bench::available_memory;
use crate::checkpoint::RunLock;
use crate::error::{Failure, is_interrupted};
use crate::figures::{count, duration, operations};
use crate::record::Terminal;
use crate::report::{Column, fitted};
use crate::spec::DeviceSpec;
use crate::sweep::{
    Calibration, LaunchOptions, Launched, RunState, SlurmOptions, Solver, Stage, Sweep,
    SweepManifest, launch, read_sweep, refuse_links, slurm_scripts,
};
use crate::train::StopSignal;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use globset::{Glob, GlobMatcher};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    jobs: std::num::NonZeroUsize,
    /// Only runs whose name matches this pattern: --only 'spectral-*'.
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,
    /// Try runs again that failed.
    #[arg(long)]
    retry_failed: bool,
    /// Try runs even where more memory is expected to be needed than is available.
    #[arg(long)]
    force: bool,
    /// Who starts the runs: this process, or a Slurm array job whose script is written into the
    /// sweep's folder.
    #[arg(long, value_enum, default_value = "local")]
    launcher: Launcher,
    /// Submit the Slurm script.
    #[arg(long)]
    submit: bool,
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
    if let Some(index) = args.run_index {
        return run_one(&args.sweep, index);
    }
    if args.submit && args.launcher == Launcher::Local {
        return Err(usage("--submit goes with --launcher slurm".into()));
    }
    let spec = read_sweep(&args.sweep)?;
    let folder = Path::new("runs").join(&spec.name);
    let threads = threads(&folder, args.jobs.get());
    // The sweep's budgets and times are for the machine it is started on; a device is opened by the
    // runs.
    let mut calibration = Calibration::new(threads, compute::device(DeviceSpec::Cpu)?, &folder)?;
    let sweep = Sweep::expand(&spec, &args.sweep, &mut calibration)?;
    let only = Only::new(args.only.as_deref(), &sweep)?;
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
        Ok(Ledger::new(&run.plan, vocabulary, threads).memory.peak())
    });
    let memory = expected.collect::<Result<Vec<u64>>>()?;
    match args.launcher {
        Launcher::Slurm => slurm(&args, &sweep, &manifest, &folder, &memory, &mut calibration),
        Launcher::Local => local(&args, &only, &manifest, &folder, &memory, &terminal),
    }
}

/// Threads of each run: those the sweep began with, or an equal share.
fn threads(folder: &Path, jobs: usize) -> usize {
    let share = (rayon::current_num_threads() / jobs).max(1);
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
        let ledger = Ledger::new(&run.plan, calibration.vocabulary_size(&run.plan)?, 1);
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
            operations(ledger.flops_per_step().saturating_mul(steps) as f64),
            duration(seconds),
            count(ledger.parameters.manifold_dimension() as f64),
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
    if let Some(pattern) = &args.only {
        command.push_str(&format!(" --only '{pattern}'"));
    }
    let remedy = format!("interrupted; go on with `{command}`");
    if is_interrupted(&error) { error.context(remedy) } else { error }
}

fn slurm(
    args: &SweepArgs,
    sweep: &Sweep,
    manifest: &SweepManifest,
    folder: &Path,
    memory: &[u64],
    calibration: &mut Calibration,
) -> Result<()> {
    if args.only.is_some() || args.retry_failed {
        return Err(usage(
            "--only and --retry-failed go with --launcher local; a Slurm array has all runs and tries failed ones again".into(),
        ));
    }
    let mut longest: f64 = 0.0;
    for run in &sweep.runs {
        longest = longest
            .max(run.plan.train.max_steps.0 as f64 * calibration.seconds_per_step(&run.plan)?);
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let working_folder = std::env::current_dir().context("cannot find the current folder")?;
    let options = SlurmOptions {
        program: &program,
        folder,
        working_folder: &working_folder,
        jobs: args.jobs.get(),
        memory: memory.iter().copied().max().unwrap_or(0),
        seconds: longest,
    };
    let mut before: Option<String> = None;
    for script in slurm_scripts(manifest, &options)? {
        let path = folder.join(script.name);
        crate::fs::write_atomic(&path, script.text.as_bytes())?;
        if !args.submit {
            output::line(path.display())?;
            continue;
        }
        let mut sbatch = Command::new("sbatch");
        sbatch.arg("--parsable");
        if let Some(job) = before.take().filter(|_| script.waits) {
            sbatch.arg(format!("--dependency=afterany:{job}"));
        }
        let submitted =
            sbatch.arg(&path).output().context("cannot run sbatch; is Slurm on this machine?")?;
        ensure!(
            submitted.status.success(),
            "sbatch {}: {}",
            path.display(),
            String::from_utf8_lossy(&submitted.stderr).trim()
        );
        let job = String::from_utf8_lossy(&submitted.stdout)
            .trim()
            .split(';')
            .next()
            .unwrap_or("")
            .to_owned();
        output::line(format!("{} submitted as job {job}", path.display()))?;
        before = Some(job);
    }
    Ok(())
}

/// Becomes the training of one run, so that signals reach it.
fn run_one(folder: &Path, index: usize) -> Result<()> {
    let manifest = SweepManifest::read(folder)
        .map_err(|error| usage(format!("{error:#}; with --run-index give the sweep's folder")))?;
    let Some(run) = manifest.runs.get(index) else {
        return Err(usage(format!(
            "the sweep in {} has {} runs, counted from 0; there is no {index}",
            folder.display(),
            manifest.runs.len()
        )));
    };
    run.forget_failure(folder);
    let states = manifest.states(folder)?;
    if let RunState::Finished(loss) = states[index] {
        tracing::info!("{} is finished already, val/loss {loss:.4}", run.id);
        return Ok(());
    }
    match manifest.stage(index, &states) {
        Stage::Ready => {}
        Stage::NotNeeded => {
            tracing::info!("{} is not needed: its values were not the best of the search", run.id);
            return Ok(());
        }
        Stage::Waiting => bail!(
            "{} waits for the runs that search its values; run those of a lower index first",
            run.id
        ),
    }
    become_training(&manifest, folder, index)
}

#[cfg(unix)]
fn become_training(manifest: &SweepManifest, folder: &Path, index: usize) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(crate::sweep::training(manifest, folder, index)?.exec())
        .context("cannot start the training")
}

#[cfg(not(unix))]
fn become_training(manifest: &SweepManifest, folder: &Path, index: usize) -> Result<()> {
    let status = crate::sweep::training(manifest, folder, index)?
        .status()
        .context("cannot start the training")?;
    ensure!(status.success(), "the training ended with {status}");
    Ok(())
}

fn usage(message: String) -> anyhow::Error {
    Failure::Usage(message).into()
}
