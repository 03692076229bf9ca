//! `lrpt sweep --launcher slurm`, and `--run-index` for its tasks.

use super::output;
use super::sweep::SweepArgs;
use crate::error::usage;
use crate::parallel::HAS_MPI;
use crate::sweep::{
    Calibration, RunState, SlurmOptions, Solver, Stage, Sweep, SweepManifest, slurm_scripts,
};
use anyhow::{Context, Result, bail, ensure};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;

/// Writes the scripts of a sweep's array jobs, and submits them if asked.
pub fn write_scripts(
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
        processes: args.processes.count(),
        nodes: args.nodes.map(NonZeroUsize::get),
        by_mpi: HAS_MPI,
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
pub fn run_one(folder: &Path, index: usize, processes: usize) -> Result<()> {
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
    become_training(crate::sweep::training(&manifest, folder, index, processes)?)
}

#[cfg(unix)]
fn become_training(mut training: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(training.exec()).context("cannot start the training")
}

#[cfg(not(unix))]
fn become_training(mut training: Command) -> Result<()> {
    let status = training.status().context("cannot start the training")?;
    ensure!(status.success(), "the training ended with {status}");
    Ok(())
}
