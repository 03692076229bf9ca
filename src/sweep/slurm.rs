//! A sweep as Slurm array jobs on a shared folder: each job of an array runs one run of the
//! manifest, by one process or several, and leaves it resumable when its time is over.

use super::manifest::SweepManifest;
use anyhow::{Result, ensure};
use std::path::Path;

/// What the scripts need to know beside the manifest.
#[derive(Clone, Debug)]
pub struct SlurmOptions<'a> {
    /// This program.
    pub program: &'a Path,
    /// The sweep's folder.
    pub folder: &'a Path,
    /// Where the sweep was started: relative paths in specs begin there.
    pub working_folder: &'a Path,
    /// Most jobs at a time.
    pub jobs: usize,
    /// Processes that train each run together, a task each.
    pub processes: usize,
    /// Machines they are spread over, where that is asked for.
    pub nodes: Option<usize>,
    /// Whether the program reaches them by MPI.
    pub by_mpi: bool,
    /// Bytes a process of the largest run is expected to need.
    pub memory: u64,
    /// Seconds the longest run is expected to take.
    pub seconds: f64,
}

/// One array job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlurmScript {
    /// File name in the sweep's folder.
    pub name: &'static str,
    /// The script.
    pub text: String,
    /// Whether it must wait for the one before it to end.
    pub waits: bool,
}

/// Seconds before the end of its time at which a task is asked to save its state.
const GRACE: u32 = 120;

/// The scripts: one, or one that searches and one that repeats the best on the other seeds.
///
/// # Errors
/// If the manifest has no run.
pub fn slurm_scripts(manifest: &SweepManifest, options: &SlurmOptions) -> Result<Vec<SlurmScript>> {
    ensure!(!manifest.runs.is_empty(), "the sweep has no runs");
    for path in [options.program, options.folder, options.working_folder] {
        let text = path.display().to_string();
        // A line end would begin a line of its own in the script.
        ensure!(!text.contains(char::is_control), "{text:?}: a Slurm script cannot hold this path");
    }
    let search = manifest.runs.iter().filter(|run| !run.repeats_the_best).count();
    let mut scripts = vec![SlurmScript {
        name: "slurm.sh",
        text: script(manifest, options, 0, search - 1),
        waits: false,
    }];
    if search < manifest.runs.len() {
        let text = script(manifest, options, search, manifest.runs.len() - 1);
        scripts.push(SlurmScript { name: "slurm-repeat.sh", text, waits: true });
    }
    Ok(scripts)
}

fn script(manifest: &SweepManifest, options: &SlurmOptions, first: usize, last: usize) -> String {
    let (jobs, processes, threads) = (options.jobs, options.processes, manifest.threads);
    let name = &manifest.name;
    // Twice the expected time and half as much memory again: expectations are from an idle machine.
    let minutes = (2.0 * options.seconds / 60.0).ceil().max(5.0) as u64 + u64::from(GRACE / 60);
    let megabytes = (options.memory as f64 * 1.5 / f64::from(1 << 20)).ceil() as u64 + 256;
    let (working, folder) = (quoted(options.working_folder), quoted(options.folder));
    let run =
        format!("{} sweep {folder} --run-index \"$SLURM_ARRAY_TASK_ID\"", quoted(options.program));
    let (resources, body) = match processes {
        1 => {
            (format!("#SBATCH --mem={megabytes}M\n#SBATCH --signal=B:TERM@{GRACE}\n"), alone(&run))
        }
        _ => {
            let nodes = options.nodes.map(|nodes| format!("#SBATCH --nodes={nodes}\n"));
            let of_core = megabytes.div_ceil(threads as u64);
            let resources = format!(
                "{}#SBATCH --mem-per-cpu={of_core}M\n\
                 #SBATCH --signal=USR1@{GRACE}\n\
                 #SBATCH --requeue\n\
                 #SBATCH --open-mode=append\n",
                nodes.unwrap_or_default()
            );
            (resources, together(&run, threads, options.by_mpi))
        }
    };
    let data = match crate::data::cache_dir() {
        folder if folder == Path::new("data") => String::new(),
        folder => format!("export LRPT_DATA={}\n", quoted(folder)),
    };
    let logs = options.working_folder.join(options.folder).join("logs").join("slurm-%A_%a.log");
    format!(
        "#!/bin/bash\n\
         # Runs {first} to {last} of the sweep `{name}`; written by `lrpt sweep --launcher slurm`. Submitted again, it goes on where it stopped.\n\
         #SBATCH --job-name=lrpt-{name}\n\
         #SBATCH --array={first}-{last}%{jobs}\n\
         #SBATCH --ntasks={processes}\n\
         #SBATCH --cpus-per-task={threads}\n\
         {resources}\
         #SBATCH --time={:02}:{:02}:00\n\
         #SBATCH --output={}\n\
         set -eu\n\
         cd {working}\n\
         {data}{body}",
        minutes / 60,
        minutes % 60,
        logs.display()
    )
}

/// One process, which gets Slurm's signal by itself.
fn alone(run: &str) -> String {
    format!(
        "# exec, so that Slurm's signal reaches the program, which then saves its state.\n\
         exec {run}\n"
    )
}

/// A task for each process; the job puts itself back into the queue once they have saved their
/// state before its end.
fn together(run: &str, threads: usize, by_mpi: bool) -> String {
    let mpi = if by_mpi { " --mpi=pmix" } else { "" };
    format!(
        "# Where rank 0 listens, if processes meet over TCP; no port of outgoing connections.\n\
         MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\n\
         MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))\n\
         export MASTER_ADDR MASTER_PORT\n\
         # Slurm's signals reach this shell, too, which waits for the program to save its state.\n\
         trap : TERM USR1\n\
         code=0\n\
         srun --cpus-per-task={threads}{mpi} {run} || code=$?\n\
         # Stopped with its state saved: by USR1 before its time is over, or by the SIGTERM of a\n\
         # preemption. scancel sends SIGTERM, too, and is to end the job.\n\
         is_preempted() {{ scontrol show job \"$SLURM_JOB_ID\" | grep -q 'PreemptTime=[0-9]'; }}\n\
         if [ $code -eq 138 ] || {{ [ $code -eq 143 ] && is_preempted; }}; then\n    \
             scontrol requeue \"$SLURM_JOB_ID\"\n\
         fi\n\
         exit $code\n"
    )
}

/// For bash: in single quotes.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
