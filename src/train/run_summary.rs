//! The runs of a folder, each with where it stands.

use super::run_folder::RunFolder;
use super::run_state::{Progress, RunState};
use crate::fs::{read_text, size_on_disk};
use crate::record::Follower;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Folders in folders that are searched: the runs of a sweep lie in the sweep's folder.
const DEPTH: usize = 2;

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSummary {
    /// Its folder.
    pub folder: PathBuf,
    /// What has become of it.
    pub state: RunState,
    /// The last step of which there are figures.
    pub step: u64,
    /// Steps at its end; unknown where its plan cannot be read.
    pub max_steps: Option<u64>,
    /// Step and loss of the last validation, in nats per token; NaN where it was not finite.
    pub validation: Option<(u64, f64)>,
    /// When it was begun.
    pub begun: SystemTime,
    /// Bytes of its files.
    pub bytes: u64,
}

impl RunSummary {
    /// Reads where the run in this folder stands. One whose plan is of another version, or whose
    /// figures cannot be read, has failed with that.
    pub fn read(folder: &Path) -> Self {
        let run = RunFolder::new(folder);
        let mut progress = Progress::default();
        let figures = Follower::new(run.metrics()).poll();
        let figures = figures.map(|news| news.lines.iter().for_each(|line| progress.take(line)));
        let plan = run.plan();
        let max_steps = plan.as_ref().ok().map(|plan| plan.train.max_steps.0);
        let state = match figures.and(plan) {
            Ok(plan) => run.state(&progress, plan.train.max_steps.0),
            Err(_) if run.is_running() => RunState::Running,
            Err(error) => RunState::Failed(format!("{error:#}")),
        };
        Self {
            folder: folder.to_path_buf(),
            state,
            step: progress.step,
            max_steps,
            validation: progress.validation,
            begun: begun(&run),
            bytes: size_on_disk(folder),
        }
    }
}

/// The runs in a folder and in the folders of its sweeps, the newest first; the folder itself if it
/// is a run's. Links are not followed.
///
/// # Errors
/// If the folder cannot be read.
pub fn runs_in(folder: &Path) -> Result<Vec<RunSummary>> {
    let mut found = Vec::new();
    search(folder, DEPTH, &mut found).with_context(|| format!("{}: not read", folder.display()))?;
    let mut runs: Vec<RunSummary> = found.iter().map(|folder| RunSummary::read(folder)).collect();
    runs.sort_by(|a, b| b.begun.cmp(&a.begun).then_with(|| a.folder.cmp(&b.folder)));
    Ok(runs)
}

fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if RunFolder::new(folder).holds_a_run() {
        found.push(folder.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if depth > 0 && !is_hidden && entry.file_type()?.is_dir() {
            // What may not be looked into, or has just gone, holds no run to show.
            let _ = search(&entry.path(), depth - 1, found);
        }
    }
    Ok(())
}

/// When a run was begun: as it noted, else when its plan was written.
fn begun(run: &RunFolder) -> SystemTime {
    let plan = run.root().join("plan.yaml");
    let noted = || {
        let text = read_text(&run.root().join("env.json")).ok()?;
        let environment: serde_json::Value = serde_json::from_str(&text).ok()?;
        let seconds = environment.get("started_unix_seconds")?.as_u64()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let written = || plan.metadata().ok()?.modified().ok();
    noted().or_else(written).unwrap_or(UNIX_EPOCH)
}
