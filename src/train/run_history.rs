//! What a run's folder already holds: whether there is something to lose, how it is kept aside, and
//! whether the folder is what it says.

use super::run_folder::RunFolder;
use crate::checkpoint::LOCK_FILE;
use crate::error::Failure;
use crate::fs::{read_ordinary, read_text, write_atomic};
use crate::record::MetricsLine;
use crate::spec::{self, Plan, RunSpec};
use anyhow::{Context, Result};
use serde_json::Map;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What a run records: files, and folders, whose names have no ending.
pub(super) const RECORDED: [&str; 7] = [
    "metrics.jsonl",
    "metrics.csv",
    "spectra.jsonl",
    "tensorboard",
    "checkpoints",
    "samples",
    "log.txt",
];
/// What of it a new beginning leaves in place unless it replaces all: the log goes on in its file, and
/// samples have a file for each step.
const GOES_ON: [&str; 2] = ["samples", "log.txt"];
/// Written once the first checkpoint is sound: from then on a folder without one has lost it.
const FIRST_CHECKPOINT: &str = "first-checkpoint.json";

impl RunFolder {
    /// Refuses a folder in which something that is written is a symbolic link, a pipe or a device.
    ///
    /// # Errors
    /// [`Failure::Usage`] naming it.
    pub fn refuse_links(&self) -> Result<()> {
        let written = RECORDED.iter().chain([&LOCK_FILE]);
        for at in written.map(|name| self.root().join(name)) {
            let Ok(found) = at.symlink_metadata() else { continue };
            let problem = match () {
                () if found.is_symlink() => {
                    "is a symbolic link, through which files outside the run would be changed; \
                     delete the link (to keep a run on another disk, link or choose its whole \
                     folder)"
                }
                () if !(found.is_file() || found.is_dir()) => {
                    "is a pipe or a device, which a run does not write to; delete it"
                }
                () => continue,
            };
            return Err(Failure::Usage(format!("{} {problem}", at.display())).into());
        }
        Ok(())
    }

    /// Whether a run here has come past its first checkpoint, so that a new beginning would lose
    /// something and a missing checkpoint is one that was lost.
    ///
    /// Training up to the first checkpoint, diverged or killed in saving it, is no history.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn has_history(&self) -> Result<bool> {
        if self.root().join(FIRST_CHECKPOINT).exists() {
            return Ok(true);
        }
        let checkpoints = self.root().join("checkpoints");
        match std::fs::read_dir(&checkpoints) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            entries => {
                for entry in entries.with_context(|| checkpoints.display().to_string())? {
                    // Names with a dot are of saves that never ended.
                    let name = entry?.file_name();
                    let name = name.to_string_lossy();
                    if !name.starts_with('.') || name.starts_with(".replaced-") {
                        return Ok(true);
                    }
                }
            }
        }
        let text = match read_ordinary(&self.metrics(), u64::MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            read => read.with_context(|| self.metrics().display().to_string())?,
        };
        if !self.holds_a_run() {
            return Ok(!text.is_empty());
        }
        let mut first_due = self.plan().map_or(u64::MAX, |plan| plan.checkpoint.every.0.max(1));
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<Map<_, _>>(line) else { continue };
            let line = MetricsLine::from(&line);
            let step = line.step().unwrap_or(0);
            // A validation that is the best so far is saved, and the first one is.
            if line.validation().is_some_and(|validation| validation.loss.is_finite()) {
                first_due = first_due.min(step);
            }
            if step > first_due && !line.is_divergence() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first number under which nothing of this run is kept aside yet.
    pub(super) fn free_number(&self) -> u64 {
        let is_free = |number: &u64| {
            RECORDED.iter().all(|name| self.aside(name, *number).symlink_metadata().is_err())
        };
        (1..).find(is_free).unwrap_or(1)
    }

    /// Where something of this run is kept aside: `metrics-<number>.jsonl`, `checkpoints-<number>`.
    pub(super) fn aside(&self, name: &str, number: u64) -> PathBuf {
        match name.split_once('.') {
            Some((stem, end)) => self.root().join(format!("{stem}-{number}.{end}")),
            None => self.root().join(format!("{name}-{number}")),
        }
    }

    /// Renames the metrics, spectra and checkpoints that are here (with `all`, samples and log,
    /// too) to `metrics-<n>.jsonl`, `spectra-<n>.jsonl`, `checkpoints-<n>` and so on, with the
    /// first number that is free; adds what was renamed, from and to, to `renamed`.
    ///
    /// # Errors
    /// If something cannot be renamed.
    pub fn set_history_aside(
        &self,
        all: bool,
        renamed: &mut Vec<(PathBuf, PathBuf)>,
    ) -> Result<()> {
        let number = self.free_number();
        for name in RECORDED.iter().filter(|name| all || !GOES_ON.contains(name)) {
            let path = self.root().join(name);
            let is_empty = path.metadata().is_ok_and(|found| found.is_file() && found.len() == 0);
            if !path.exists() || is_empty {
                continue;
            }
            let target = self.aside(name, number);
            std::fs::rename(&path, &target)
                .with_context(|| format!("{}: not kept aside", path.display()))?;
            renamed.push((path, target));
        }
        let mark = self.root().join(FIRST_CHECKPOINT);
        match std::fs::remove_file(&mark) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("{}: not deleted", mark.display())),
        }
    }

    /// Refuses to overwrite a folder that holds something and no run.
    ///
    /// # Errors
    /// [`Failure::Usage`] with what it holds.
    pub fn refuse_what_is_no_run(&self) -> Result<()> {
        let entries = match std::fs::read_dir(self.root()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(|| self.root().display().to_string())?,
        };
        let mut names = entries.flatten().map(|entry| entry.file_name());
        let found = match self.holds_a_run() {
            true => names.find(|name| name == "manifest.json"),
            false => names.find(|name| name != LOCK_FILE),
        };
        match found {
            None => Ok(()),
            Some(name) => Err(Failure::Usage(format!(
                "--overwrite replaces a run, and {} holds {} and is none; choose another folder \
                 with --run-dir",
                self.root().display(),
                name.to_string_lossy()
            ))
            .into()),
        }
    }

    /// Remembers that the run has a sound checkpoint, of `step` or of one before it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_checkpoint(&self, step: u64) -> Result<()> {
        let mark = self.root().join(FIRST_CHECKPOINT);
        if mark.exists() {
            return Ok(());
        }
        write_atomic(&mark, format!("{{\"step\":{step}}}\n").as_bytes())
    }

    /// What is missing between the end of the metrics and a checkpoint that is gone on from, where
    /// lines come every `log_every` steps: a warning, or none where nothing is.
    ///
    /// # Errors
    /// If the metrics cannot be read.
    pub fn hole_in_metrics(&self, checkpoint: u64, log_every: u64) -> Result<Option<String>> {
        let text = match read_ordinary(&self.metrics(), u64::MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.with_context(|| self.metrics().display().to_string())?,
        };
        let steps = text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| MetricsLine::from(&serde_json::from_slice(line).ok()?).step());
        let last = steps.filter(|step| *step <= checkpoint).max().unwrap_or(0);
        // The step of the last line that must be there; the first step always has one.
        let due = (checkpoint - checkpoint % log_every.max(1)).max(checkpoint.min(1));
        Ok((last < due).then(|| {
            format!(
                "{} ends at step {last}, but the checkpoint is of step {checkpoint}: the figures \
                 between them are lost (a crash of the machine, or an edit); training goes on \
                 exactly, and its curves have a hole there",
                self.metrics().display()
            )
        }))
    }

    /// Deletes the temporary files that a killed process left beside the run's files; the caller
    /// holds the run's lock.
    ///
    /// # Errors
    /// If the folder cannot be read or a file not deleted.
    pub fn remove_temporaries(&self) -> Result<()> {
        let failed = |path: &Path| format!("{}: not deleted", path.display());
        for entry in std::fs::read_dir(self.root()).with_context(|| failed(self.root()))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(".tmp") && entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path()).with_context(|| failed(&entry.path()))?;
            }
        }
        Ok(())
    }

    /// Refuses a plan that is not what the spec beside it resolves to, since it was edited; what
    /// may change where a run goes on may differ, and the number of steps where it may grow.
    ///
    /// # Errors
    /// [`Failure::Usage`] with the settings that differ.
    pub fn check_plan_is_as_written(&self, plan: &Plan) -> Result<()> {
        let path = self.root().join("plan.yaml");
        let spec = self.root().join("spec.yaml");
        let Ok(text) = read_text(&spec) else { return Ok(()) };
        let (_, written) = spec::parse_plan(&text, &spec.display().to_string(), &[])?;
        let differences = written.binding_differences(plan);
        // A process that died between writing the two has left them so.
        if differences.is_empty() || written.agrees_until(plan).is_some() {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "{} is not what the spec beside it says (spec.yaml -> plan.yaml); a run keeps its \
             settings, so undo these changes, or start a new run with --run-dir:\n  {}",
            path.display(),
            differences.join("\n  ")
        ))
        .into())
    }

    /// The run's spec and plan with settings laid over them, and `extend` steps more.
    ///
    /// # Errors
    /// [`Failure::Usage`] if the folder holds no run, or a setting is wrong.
    pub fn changed(&self, overrides: &[String], extend: Option<u64>) -> Result<(RunSpec, Plan)> {
        let before = self.plan().map_err(|error| Failure::Usage(format!("{error:#}")))?;
        let steps = extend.map(|more| before.train.max_steps.0.saturating_add(more));
        let steps = steps.map(|steps| format!("train.max_steps={steps}"));
        let overrides: Vec<String> = overrides.iter().cloned().chain(steps).collect();
        let place = self.root().join("spec.yaml").display().to_string();
        spec::parse_plan(&self.spec_yaml()?, &place, &overrides)
    }

    /// Writes the spec and plan that the run goes on with; the plan is what counts, and comes
    /// first.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn change_plan(&self, spec_yaml: &str, plan: &Plan) -> Result<()> {
        write_atomic(&self.root().join("plan.yaml"), spec::to_yaml(plan)?.as_bytes())?;
        write_atomic(&self.root().join("spec.yaml"), spec_yaml.as_bytes())
    }
}
