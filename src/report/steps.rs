//! What the lines about single steps say: the curves of a training, and the seconds it took.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Figures of a step that was logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepAt {
    /// Steps taken.
    pub step: u64,
    /// Training loss in nats per token; NaN where it was not finite.
    pub loss: f64,
    /// Learning rate of the dense parameters.
    pub learning_rate: f64,
    /// Learning rate of the low-rank weights, where there are any.
    pub low_rank_learning_rate: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens per second since the step logged before.
    pub tokens_per_second: f64,
}

impl StepAt {
    /// The figures in a line of the metrics; none if it is about something else.
    pub(super) fn of(step: u64, line: &Map<String, Value>) -> Option<Self> {
        let number = |key: &str| line.get(key).and_then(Value::as_f64);
        let loss = line.get("train/loss")?.as_f64().unwrap_or(f64::NAN);
        Some(Self {
            step,
            loss,
            learning_rate: number("train/lr").unwrap_or(f64::NAN),
            low_rank_learning_rate: number("train/lr_low_rank"),
            gradient_norm: number("train/grad_norm").unwrap_or(f64::NAN),
            tokens_per_second: number("train/tok_per_sec").unwrap_or(f64::NAN),
        })
    }
}

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
    pub(super) fn advance(&mut self, step: u64, line: &Map<String, Value>) {
        let steps = step.saturating_sub(self.step) as f64;
        let times = line
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("time/")?, value.as_f64()?)));
        for (phase, seconds) in times {
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
