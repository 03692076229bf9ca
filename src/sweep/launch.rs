//! Runs as child processes, side by side: each resumed where it stopped, none started twice, none
//! lost.

use super::manifest::{RunState, Stage, SweepManifest, spec_path};
use crate::checkpoint::RunLock;
use crate::data;
use crate::error::Failure;
use crate::record::Terminal;
use crate::train::{RunFolder, StopSignal};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How to run a sweep here.
pub struct LaunchOptions<'a> {
    /// Most runs at a time.
    pub jobs: usize,
    /// Processes that train each run together.
    pub processes: usize,
    /// Whether runs that failed are tried again.
    pub retry_failed: bool,
    /// Bytes each run is expected to need, in the manifest's order.
    pub memory: &'a [u64],
    /// Bytes available; `None` if the system does not tell.
    pub available_memory: Option<u64>,
    /// Only runs for which this holds.
    pub wanted: &'a dyn Fn(&str) -> bool,
    /// Set by Ctrl-C.
    pub stop: StopSignal,
    /// Where the live table goes.
    pub terminal: &'a Terminal,
}

/// What a sweep has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launched {
    /// Runs that were finished before.
    pub skipped: usize,
    /// Runs finished now.
    pub finished: usize,
    /// Runs not needed by the sweep's own rule.
    pub not_needed: usize,
    /// Runs that failed, now or before, and why.
    pub failed: Vec<(String, String)>,
}

/// Time between two looks at the children.
const POLL: Duration = Duration::from_millis(100);
/// Looks at the children between two looks at their metrics.
const LOOKS_PER_PROGRESS: u64 = 10;

struct Running {
    index: usize,
    child: Child,
    bar: ProgressBar,
    asked_to_stop: bool,
}

/// Runs everything that is not finished.
///
/// A child writes its messages to `logs/<run>.log` and stops with a checkpoint when this process
/// dies, since its stdin closes.
///
/// # Errors
/// [`Failure::Interrupted`] after a signal, when all children have saved their state; or if a child
/// cannot be started or the folder not be read.
pub fn launch(
    manifest: &SweepManifest,
    folder: &Path,
    options: &LaunchOptions,
) -> Result<Launched> {
    let mut states: Vec<RunState> =
        manifest.runs.iter().map(|run| run.state_to_go_on(folder)).collect::<Result<_>>()?;
    let mut launched = Launched::default();
    for (index, run) in manifest.runs.iter().enumerate() {
        if options.retry_failed
            && matches!(states[index], RunState::Failed(..))
            && (options.wanted)(&run.id)
        {
            run.forget_failure(folder);
            states[index] = run.state_to_go_on(folder)?;
        }
    }
    launched.skipped = states.iter().filter(|state| matches!(state, RunState::Finished(_))).count();
    let total = overall_bar(manifest, options.terminal);
    let mut running: Vec<Running> = Vec::new();
    let mut waited_for: BTreeSet<usize> = BTreeSet::new();
    for look in 0u64.. {
        let (mut index, mut waits_for_lock) = (0, false);
        while running.len() < options.jobs
            && options.stop.requested().is_none()
            && index < manifest.runs.len()
        {
            let busy: Vec<usize> = running.iter().map(|running| running.index).collect();
            if startable(manifest, options, &states, &busy, index) {
                match start(manifest, folder, options, index)? {
                    Some(child) => running.push(child),
                    None => {
                        waits_for_lock = true;
                        if waited_for.insert(index) {
                            tracing::info!(
                                "{}: another process is training in its folder; waiting for it",
                                manifest.runs[index].id
                            );
                        }
                    }
                }
            }
            index += 1;
        }
        if running.is_empty() && !waits_for_lock {
            break;
        }
        let mut still = Vec::new();
        for mut run in std::mem::take(&mut running) {
            match run.child.try_wait().context("cannot wait for a run")? {
                Some(status) => {
                    run.bar.finish_and_clear();
                    let planned = &manifest.runs[run.index];
                    let interrupted = matches!(status.code(), Some(129 | 130 | 138 | 143 | 152))
                        || options.stop.requested().is_some();
                    if !status.success() && !interrupted {
                        let message = last_line(&log_path(folder, &planned.id));
                        planned.note_failure(folder, status.code(), &message)?;
                    }
                    states[run.index] = planned.state(folder)?;
                    tell(&planned.id, &states[run.index]);
                    launched.finished +=
                        usize::from(matches!(states[run.index], RunState::Finished(_)));
                }
                None => still.push(run),
            }
        }
        running = still;
        // Ctrl-C reaches the children by itself, as they share the terminal; a signal to this
        // process alone does not. Each is asked once: a second signal would make it leave without a
        // checkpoint.
        if options.stop.requested().is_some() {
            for run in running.iter_mut().filter(|run| !run.asked_to_stop) {
                terminate(&run.child);
                run.asked_to_stop = true;
            }
        }
        if look.is_multiple_of(LOOKS_PER_PROGRESS) {
            show_progress(manifest, folder, &running, &states, &total);
        }
        std::thread::sleep(POLL);
    }
    total.finish_and_clear();
    if let Some(signal) = options.stop.requested() {
        return Err(Failure::Interrupted(signal).into());
    }
    for (index, run) in manifest.runs.iter().enumerate() {
        if let RunState::Failed(_, message) = &states[index] {
            launched.failed.push((run.id.clone(), message.clone()));
        }
        let is_open = matches!(states[index], RunState::Pending | RunState::Begun(_));
        launched.not_needed +=
            usize::from(is_open && manifest.stage(index, &states) == Stage::NotNeeded);
    }
    Ok(launched)
}

/// Whether a run is wanted, its turn, not running, and fits into memory beside those that are.
fn startable(
    manifest: &SweepManifest,
    options: &LaunchOptions,
    states: &[RunState],
    busy: &[usize],
    index: usize,
) -> bool {
    let run = &manifest.runs[index];
    let is_open = matches!(states[index], RunState::Pending | RunState::Begun(_));
    if !is_open
        || busy.contains(&index)
        || !(options.wanted)(&run.id)
        || manifest.stage(index, states) != Stage::Ready
    {
        return false;
    }
    let used: u64 = busy.iter().map(|index| options.memory[*index]).sum();
    let fits =
        options.available_memory.is_none_or(|available| used + options.memory[index] <= available);
    if !fits && busy.is_empty() {
        tracing::warn!("{}: expected to need more memory than is available; it runs alone", run.id);
    }
    fits || busy.is_empty()
}

/// Starts a run; none if another process holds its folder.
fn start(
    manifest: &SweepManifest,
    folder: &Path,
    options: &LaunchOptions,
    index: usize,
) -> Result<Option<Running>> {
    let run = &manifest.runs[index];
    let run_dir = folder.join(&run.id);
    RunFolder::new(&run_dir).refuse_links()?;
    // A process that outlived an earlier sweep for a moment may still be saving its state there.
    if RunLock::acquire(&run_dir).is_err() {
        return Ok(None);
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(log_path(folder, &run.id))
        .context("cannot open the log of a run")?;
    let mut command = training(manifest, folder, index, options.processes)?;
    command.arg("--until-stdin-closes").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
    let child = command.spawn().context("cannot start a run")?;
    tracing::info!("{}: started", run.id);
    let style = ProgressStyle::with_template("{prefix:<48!} {bar:30} {pos:>6}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = options
        .terminal
        .add(ProgressBar::new(run.max_steps).with_style(style).with_prefix(run.id.clone()));
    Ok(Some(Running { index, child, bar, asked_to_stop: false }))
}

/// The training of a run from where it stands: `lrpt train` on its spec in its folder, by so many
/// processes that it starts.
///
/// # Errors
/// If this program cannot be found to be started again.
pub fn training(
    manifest: &SweepManifest,
    folder: &Path,
    index: usize,
    processes: usize,
) -> Result<Command> {
    let run_dir = folder.join(&manifest.runs[index].id);
    let mut command = Command::new(
        std::env::current_exe().context("cannot find this program to start it again")?,
    );
    command
        .args(["--threads", &manifest.threads.to_string(), "train"])
        .arg(spec_path(folder, &manifest.runs[index].id));
    command.env("LRPT_DATA", data::cache_dir());
    // The sweep has looked at the memory of all its runs together.
    command.arg("--force").arg("--run-dir").arg(&run_dir);
    if RunFolder::new(&run_dir).holds_a_run() {
        command.arg("--resume");
    }
    if processes > 1 {
        command.args(["--processes", &processes.to_string()]);
    }
    Ok(command)
}

fn overall_bar(manifest: &SweepManifest, terminal: &Terminal) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:<48!} {bar:30} {pos:>6}/{len} runs")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    terminal.add(
        ProgressBar::new(manifest.runs.len() as u64)
            .with_style(style)
            .with_prefix(manifest.name.clone()),
    )
}

fn show_progress(
    manifest: &SweepManifest,
    folder: &Path,
    running: &[Running],
    states: &[RunState],
    total: &ProgressBar,
) {
    for run in running {
        let figures =
            last_figures(&RunFolder::new(folder.join(&manifest.runs[run.index].id)).metrics());
        if let Some(step) = figures.get("step") {
            run.bar.set_position(*step as u64);
        }
        let shown = ["train/loss", "val/loss"]
            .iter()
            .filter_map(|key| Some(format!("{key} {:.4}", figures.get(*key)?)));
        run.bar.set_message(shown.collect::<Vec<_>>().join("  "));
    }
    let done = states
        .iter()
        .filter(|state| matches!(state, RunState::Finished(_) | RunState::Failed(..)))
        .count();
    total.set_position(done as u64);
}

/// The figures of the last whole lines of a metrics file.
fn last_figures(path: &Path) -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut figures = BTreeMap::new();
    for line in text.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev() {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).unwrap_or_default();
        figures.extend(object.into_iter().filter_map(|(key, value)| Some((key, value.as_f64()?))));
    }
    figures
}

fn tell(id: &str, state: &RunState) {
    match state {
        RunState::Finished(loss) => tracing::info!("{id}: finished, val/loss {loss:.4}"),
        RunState::Failed(code, message) => {
            tracing::warn!(
                "{id}: failed ({}): {message}",
                code.map_or("killed".to_owned(), |code| format!("exit code {code}"))
            )
        }
        RunState::Begun(step) => tracing::info!(
            "{id}: stopped after step {step}; it goes on when the sweep is started again"
        ),
        RunState::Pending => tracing::info!("{id}: stopped before its first step"),
    }
}

/// Asks a child to stop with a checkpoint.
fn terminate(child: &Child) {
    // The standard library can only kill; every system that has signals has this program.
    let _ = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

fn log_path(folder: &Path, id: &str) -> PathBuf {
    folder.join("logs").join(format!("{id}.log"))
}

/// The last line that is not empty.
fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it wrote nothing")
        .trim()
        .to_owned()
}
