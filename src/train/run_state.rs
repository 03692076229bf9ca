//! What has become of a run, as its folder says.

use super::run_folder::RunFolder;
use crate::checkpoint::RunLock;
use crate::error::Failure;
use crate::fs::open_ordinary;
use crate::record::MetricsLine;
use serde_json::{Map, Value};
use std::fmt;
use std::io::{Read, Seek, SeekFrom};

/// Bytes at the end of a log in which its last line is looked for.
const LOG_END: u64 = 64 << 10;

/// What has become of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// A process trains in its folder.
    Running,
    /// Its last step was taken and validated.
    Finished,
    /// Stopped before its last step: by a signal, by `--stop-after`, or killed.
    Interrupted,
    /// A loss, gradient, parameter or moment was not finite.
    Diverged,
    /// Ended with this error.
    Failed(String),
}

impl RunState {
    /// The state in one word.
    pub fn name(&self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Finished => "finished",
            RunState::Interrupted => "interrupted",
            RunState::Diverged => "diverged",
            RunState::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How far a run has come, from the lines of its metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The last step of which there are figures.
    pub step: u64,
    /// Step and loss in nats per token of the last validation; NaN where it was not finite.
    pub validation: Option<(u64, f64)>,
    /// Whether the run ended by diverging.
    pub diverged: bool,
}

impl Progress {
    /// Takes note of a line of the metrics.
    pub fn take(&mut self, line: &Map<String, Value>) {
        let line = MetricsLine::from(line);
        self.step = self.step.max(line.step().unwrap_or(0));
        if let Some(validation) = line.validation() {
            self.validation = Some((validation.step, validation.loss));
        }
        self.diverged |= line.is_divergence();
    }
}

impl RunFolder {
    /// Whether a process trains here now.
    pub fn is_running(&self) -> bool {
        RunLock::is_held(self.root())
    }

    /// What has become of the run that came so far, of so many steps in all.
    pub fn state(&self, progress: &Progress, max_steps: u64) -> RunState {
        let is_complete =
            progress.validation.is_some_and(|(step, loss)| step >= max_steps && loss.is_finite());
        match () {
            () if self.is_running() => RunState::Running,
            () if progress.diverged => RunState::Diverged,
            () if is_complete => RunState::Finished,
            () => self.last_error().map_or(RunState::Interrupted, RunState::Failed),
        }
    }

    /// The error that the last process ended with, as its log says; none where it was stopped by a
    /// signal, killed, or ended well.
    fn last_error(&self) -> Option<String> {
        let path = self.root().join("log.txt");
        let mut file = open_ordinary(&path).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END))).ok()?;
        let mut end = Vec::new();
        file.take(LOG_END).read_to_end(&mut end).ok()?;
        error_at_end(&String::from_utf8_lossy(&end))
    }
}

/// The error in the last entry of a log, of which every entry begins with time and level and may
/// have further lines.
fn error_at_end(log: &str) -> Option<String> {
    const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
    fn entry(line: &str) -> Option<(&str, &str)> {
        let (time, rest) = line.split_once(' ')?;
        let (level, message) = rest.trim_start().split_once(' ')?;
        (time.ends_with('Z') && LEVELS.contains(&level)).then_some((level, message))
    }
    let (level, message) = log.lines().rev().find_map(entry)?;
    let is_a_stop = message.contains(&Failure::Interrupted(0).to_string());
    (level == "ERROR" && !is_a_stop).then(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(lines: &str) -> Progress {
        let mut progress = Progress::default();
        lines.lines().for_each(|line| progress.take(&serde_json::from_str(line).unwrap()));
        progress
    }

    #[test]
    fn every_state_is_told_from_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        let log = |text: &str| std::fs::write(folder.path().join("log.txt"), text).unwrap();
        let half = progress("{\"step\":5,\"train/loss\":2.0}\n{\"step\":5,\"val/loss\":2.5}");
        assert_eq!(half, Progress { step: 5, validation: Some((5, 2.5)), diverged: false });
        assert_eq!(run.state(&half, 10), RunState::Interrupted);
        assert_eq!(run.state(&half, 5), RunState::Finished);
        let diverged = progress("{\"step\":5,\"val/loss\":2.5}\n{\"step\":7,\"diverged\":true}");
        assert_eq!(run.state(&diverged, 10), RunState::Diverged);
        let not_finite = progress("{\"step\":10,\"val/loss\":null}");
        assert_eq!(run.state(&not_finite, 10), RunState::Interrupted);

        log("2026-11-25T20:00:00Z  INFO a\n2026-11-25T20:00:01Z ERROR no space left\non /dev\n");
        assert_eq!(run.state(&half, 10), RunState::Failed("no space left".into()));
        log(&format!("2026-11-25T20:00:00Z ERROR {}\n", Failure::Interrupted(2)));
        assert_eq!(run.state(&half, 10), RunState::Interrupted);
        // Resumed after an error, and killed.
        log("2026-11-25T20:00:01Z ERROR no space left\n2026-11-25T20:00:02Z  INFO resumed\n");
        assert_eq!(run.state(&half, 10), RunState::Interrupted);

        assert!(!run.is_running());
        let lock = RunLock::acquire(folder.path()).unwrap();
        assert_eq!(run.state(&diverged, 10), RunState::Running);
        drop(lock);
        assert_eq!(run.state(&half, 5), RunState::Finished);
    }
}
