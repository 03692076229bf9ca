//! The seconds that a training took, as its logged steps report them.

use crate::record::MetricsLine;
use std::collections::BTreeMap;

/// Seconds of training, summed from the means that the lines report.
#[derive(Default)]
pub(super) struct Clock {
    step: u64,
    seconds: f64,
    phases: BTreeMap<String, f64>,
    seconds_per_step: f64,
}

impl Clock {
    /// Counts the steps up to this one, of which a line reports.
    pub(super) fn advance(&mut self, step: u64, line: MetricsLine) {
        let steps = step.saturating_sub(self.step) as f64;
        for (phase, seconds) in line.seconds() {
            if phase == "step" {
                self.seconds += steps * seconds;
                self.seconds_per_step = seconds;
            }
            *self.phases.entry(phase.to_owned()).or_default() += steps * seconds;
        }
        self.step = step;
    }

    /// Seconds at a step at or after the last line, assuming the rate of the last line from there
    /// on.
    pub(super) fn seconds_at(&self, step: u64) -> f64 {
        self.seconds + step.saturating_sub(self.step) as f64 * self.seconds_per_step
    }

    /// Mean seconds of a step by phase.
    pub(super) fn means(self) -> BTreeMap<String, f64> {
        let steps = self.step.max(1) as f64;
        self.phases.into_iter().map(|(phase, seconds)| (phase, seconds / steps)).collect()
    }
}
