//! A sweep's folder: `manifest.json`, `sweep.yaml`, `specs/`, `failures/`, `logs/`, and a folder
//! for each run; and what these say of it.
//!
//! The manifest holds what was planned and never what has happened: a run's state is read from its
//! own folder, so that processes on several machines can work in one sweep without agreeing on a
//! file.

use super::expand::{PlannedRun, Sweep};
use super::sweep_spec::{Equal, SearchSpec, SweepSpec};
use crate::checkpoint::{self, Checkpoints};
use crate::error::Failure;
use crate::fs::{read_text, refuse_link, write_atomic};
use crate::report::{Goal, RunResults};
use crate::spec::{bounds, name_problem, to_yaml};
use crate::train::RunFolder;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Version of the format below.
const FORMAT: u32 = 1;

/// What a sweep's folder says was planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepManifest {
    /// Version of this format.
    pub format: u32,
    /// Name of the sweep.
    pub name: String,
    /// The variant that others are compared with.
    pub baseline: String,
    /// What every run spends alike.
    pub equal: Option<Equal>,
    /// On which seeds values are searched.
    pub search: SearchSpec,
    /// What counts as success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Computing threads of each run: part of what makes a run repeat bit for bit.
    pub threads: usize,
    /// The runs.
    pub runs: Vec<ManifestRun>,
}

/// A run of the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestRun {
    /// Name, and that of its folder in the sweep's folder.
    pub id: String,
    /// Variant.
    pub variant: String,
    /// The method of which it is one size; none where that is the variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// What a table calls it: the variant and the axes' values.
    pub group: String,
    /// Values of the axes by key path.
    pub axes: BTreeMap<String, String>,
    /// Searched values by key path.
    pub tuned: BTreeMap<String, String>,
    /// Seed.
    pub seed: u64,
    /// Whether it only searches: its seed is not among those reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub searches_only: bool,
    /// Whether it is run only if its searched values are the best of the search.
    pub repeats_the_best: bool,
    /// Steps.
    pub max_steps: u64,
    /// Identity of its plan.
    pub plan_hash: String,
}

/// What has become of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum RunState {
    /// Not begun.
    Pending,
    /// Begun; the last validated step.
    Begun(u64),
    /// Done; final validation loss.
    Finished(f64),
    /// Ended with an error: exit code (if it had one) and the last line it wrote.
    Failed(Option<i32>, String),
}

/// Whether it is a run's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It can run.
    Ready,
    /// The search it depends on is not over.
    Waiting,
    /// Its searched values were not the best.
    NotNeeded,
}

#[derive(Serialize, Deserialize)]
struct FailureRecord {
    exit_code: Option<i32>,
    message: String,
}

impl SweepManifest {
    /// Lays a sweep out in its folder: manifest, sweep file, a spec for each run.
    ///
    /// Runs that are there already stay as they are; runs of an earlier version of the sweep that
    /// are no longer in it stay, too, and are no longer part of it.
    ///
    /// # Errors
    /// [`Failure::Usage`] if a run's folder holds a run of another plan; or if a file cannot be
    /// written.
    pub fn lay_out(sweep: &Sweep, written: &str, threads: usize, folder: &Path) -> Result<Self> {
        let SweepSpec { name, equal, search, goal, .. } = &sweep.spec;
        let baseline =
            sweep.spec.baseline.clone().unwrap_or_else(|| sweep.spec.variants[0].name.clone());
        let runs: Vec<ManifestRun> = sweep.runs.iter().map(ManifestRun::of).collect();
        let conflicts: Vec<String> =
            sweep.runs.iter().filter_map(|run| conflict(folder, run)).collect();
        if !conflicts.is_empty() {
            let remedy = "give the sweep or its variants another name, or delete these folders";
            return Err(Failure::Usage(format!(
                "these runs were begun with other settings; {remedy}:\n{}",
                conflicts.join("\n")
            ))
            .into());
        }
        let manifest = Self {
            format: FORMAT,
            name: name.clone(),
            baseline,
            equal: *equal,
            search: search.clone(),
            goal: *goal,
            threads,
            runs,
        };
        for inside in ["specs", "failures", "logs"] {
            std::fs::create_dir_all(folder.join(inside))
                .with_context(|| format!("cannot create {}", folder.join(inside).display()))?;
        }
        for run in &sweep.runs {
            write_atomic(&spec_path(folder, &run.id), to_yaml(&run.spec)?.as_bytes())?;
        }
        write_atomic(&folder.join("sweep.yaml"), written.as_bytes())?;
        let mut text = serde_json::to_vec_pretty(&manifest)?;
        text.push(b'\n');
        write_atomic(&folder.join("manifest.json"), &text)?;
        Ok(manifest)
    }

    /// Reads a sweep's folder.
    ///
    /// # Errors
    /// If it holds no manifest that this version reads.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("manifest.json");
        let text = read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: Self = serde_json::from_str(&text)
            .with_context(|| format!("{}: not a sweep's manifest", path.display()))?;
        anyhow::ensure!(
            manifest.format == FORMAT,
            "{}: format {}, this version reads {FORMAT}",
            path.display(),
            manifest.format
        );
        manifest.check().map_err(|error| {
            Failure::Usage(format!(
                "{}: {error}; the manifest was edited or damaged",
                path.display()
            ))
        })?;
        refuse_links(folder, manifest.runs.iter().map(|run| run.id.as_str()))?;
        Ok(manifest)
    }

    /// Names become paths: those of a manifest, which may come from anyone, obey the rule of specs.
    fn check(&self) -> Result<()> {
        let mut ids = BTreeSet::new();
        for (index, run) in self.runs.iter().enumerate() {
            if let Some(problem) = name_problem(&run.id) {
                anyhow::bail!("runs[{index}].id: {problem}");
            }
            anyhow::ensure!(ids.insert(&run.id), "runs[{index}].id: `{}` is there twice", run.id);
        }
        if let Some(problem) = name_problem(&self.name) {
            anyhow::bail!("name: {problem}");
        }
        let threads = self.threads;
        anyhow::ensure!(
            (1..=bounds::MAX_THREADS).contains(&threads),
            "threads: is {threads}; it is 1 to {}",
            bounds::MAX_THREADS
        );
        Ok(())
    }

    /// Whether it is a run's turn, given the state of all runs in the manifest's order: one that
    /// repeats waits until all that search for its group have ended, and is run if its values had
    /// the smallest loss, the first of equals.
    pub fn stage(&self, index: usize, states: &[RunState]) -> Stage {
        let run = &self.runs[index];
        if !run.repeats_the_best {
            return Stage::Ready;
        }
        let rivals = || {
            self.runs
                .iter()
                .zip(states)
                .filter(|(other, _)| other.group == run.group && !other.repeats_the_best)
        };
        if rivals().any(|(_, state)| matches!(state, RunState::Pending | RunState::Begun(_))) {
            return Stage::Waiting;
        }
        // Every choice was tried on as many seeds, so sums say what means would; one that failed on
        // a seed is out.
        let mut choices: Vec<(&BTreeMap<String, String>, Option<f64>)> = Vec::new();
        for (other, state) in rivals() {
            let loss = match state {
                RunState::Finished(loss) => Some(*loss),
                _ => None,
            };
            match choices.iter_mut().find(|(tuned, _)| **tuned == other.tuned) {
                Some((_, sum)) => *sum = sum.zip(loss).map(|(sum, loss)| sum + loss),
                None => choices.push((&other.tuned, loss)),
            }
        }
        let finished = choices.iter().filter_map(|(tuned, loss)| Some((*tuned, (*loss)?)));
        let best = finished.min_by(|a, b| a.1.total_cmp(&b.1));
        if best.is_some_and(|(tuned, _)| *tuned == run.tuned) {
            Stage::Ready
        } else {
            Stage::NotNeeded
        }
    }

    /// The state of every run, in the manifest's order.
    ///
    /// # Errors
    /// If a run's folder cannot be read.
    pub fn states(&self, folder: &Path) -> Result<Vec<RunState>> {
        self.runs.iter().map(|run| run.state(folder)).collect()
    }
}

impl ManifestRun {
    fn of(run: &PlannedRun) -> Self {
        Self {
            id: run.id.clone(),
            variant: run.variant.clone(),
            family: (run.family != run.variant).then(|| run.family.clone()),
            group: run.group(),
            axes: run.axes.clone(),
            tuned: run.tuned.clone(),
            seed: run.seed,
            searches_only: run.searches_only,
            repeats_the_best: run.repeats_the_best,
            max_steps: run.plan.train.max_steps.0,
            plan_hash: run.plan.hash(),
        }
    }

    /// What its folder says.
    ///
    /// # Errors
    /// If the folder holds a run but cannot be read.
    pub fn state(&self, folder: &Path) -> Result<RunState> {
        let run = folder.join(&self.id);
        if !RunFolder::new(&run).holds_a_run() {
            return Ok(self.failure(folder).unwrap_or(RunState::Pending));
        }
        let results = RunResults::read(&run)?;
        Ok(match (results.last(), self.failure(folder)) {
            (Some(point), _) => RunState::Finished(point.loss),
            (None, Some(failed)) => failed,
            (None, None) => {
                RunState::Begun(results.validations.last().map_or(0, |point| point.step))
            }
        })
    }

    /// What its folder says to whoever goes on with the sweep: a run is finished only when its last
    /// checkpoint is sound.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub(super) fn state_to_go_on(&self, folder: &Path) -> Result<RunState> {
        let state = self.state(folder)?;
        if !matches!(state, RunState::Finished(_)) {
            return Ok(state);
        }
        let last = Checkpoints::open(&folder.join(&self.id)).path(self.max_steps);
        Ok(match checkpoint::verify(&last) {
            Ok(_) => state,
            Err(error) => {
                tracing::warn!("{}: its last checkpoint is to be made again: {error:#}", self.id);
                RunState::Begun(self.max_steps)
            }
        })
    }

    fn failure(&self, folder: &Path) -> Option<RunState> {
        let text = read_text(&failure_path(folder, &self.id)).ok()?;
        let FailureRecord { exit_code, message } = serde_json::from_str(&text).ok()?;
        Some(RunState::Failed(exit_code, message))
    }

    /// Notes that the run ended with an error.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn note_failure(&self, folder: &Path, exit_code: Option<i32>, message: &str) -> Result<()> {
        let record = FailureRecord { exit_code, message: message.to_owned() };
        write_atomic(&failure_path(folder, &self.id), &serde_json::to_vec_pretty(&record)?)
    }

    /// Forgets an error, so that the run is tried again.
    pub fn forget_failure(&self, folder: &Path) {
        let _ = std::fs::remove_file(failure_path(folder, &self.id));
    }
}

/// Refuses a sweep's folder in which something that is written to is a link; `ids` are its runs.
///
/// # Errors
/// [`Failure::Usage`] that names the link.
pub fn refuse_links<'a>(folder: &Path, ids: impl Iterator<Item = &'a str>) -> Result<()> {
    let own = [
        "manifest.json",
        "sweep.yaml",
        "calibration.json",
        "lrpt.lock",
        "specs",
        "failures",
        "logs",
        "report",
        "slurm.sh",
        "slurm-repeat.sh",
    ];
    let of_run = |id: &'a str| {
        let log = format!("logs/{id}.log");
        [folder.join(id), spec_path(folder, id), failure_path(folder, id), folder.join(log)]
    };
    let paths = own.map(|name| folder.join(name)).into_iter().chain(ids.flat_map(of_run));
    for path in paths {
        refuse_link(&path).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    Ok(())
}

/// The spec of a run.
pub(super) fn spec_path(folder: &Path, id: &str) -> PathBuf {
    folder.join("specs").join(format!("{id}.yaml"))
}

fn failure_path(folder: &Path, id: &str) -> PathBuf {
    folder.join("failures").join(format!("{id}.json"))
}

/// What a run's folder has that the sweep does not say, if it holds another run.
fn conflict(folder: &Path, run: &PlannedRun) -> Option<String> {
    let held = RunFolder::new(folder.join(&run.id));
    if !held.holds_a_run() {
        return None;
    }
    let differences = match held.plan() {
        Ok(plan) => plan.trajectory_differences(&run.plan),
        Err(error) => vec![format!("{error:#}")],
    };
    (!differences.is_empty())
        .then(|| format!("  {}: {}", held.root().display(), differences.join(", ")))
}
