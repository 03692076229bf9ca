//! Where a step's time goes, averaged between two lines of the log.

use super::trainer::TimedStep;
use std::collections::BTreeMap;

/// Sums over the steps since the last line.
#[derive(Debug, Default)]
pub struct Meter {
    steps: u64,
    tokens: u64,
    seconds: f64,
    data: f64,
    forward: f64,
    backward: f64,
    dense_optimizer: f64,
    low_rank_optimizer: f64,
}

/// Means over the steps since the last line.
#[derive(Debug)]
pub struct Means {
    /// Trained tokens per second of stepping (evaluation and checkpoints left out).
    pub tokens_per_second: f64,
    /// Seconds per step by phase.
    pub times: BTreeMap<&'static str, f64>,
}

impl Meter {
    /// Counts one step.
    pub fn add(&mut self, tokens: u64, TimedStep { report, times, seconds, .. }: &TimedStep) {
        self.steps += 1;
        self.tokens += tokens;
        self.seconds += *seconds;
        self.data += times.data.as_secs_f64();
        self.forward += times.forward.as_secs_f64();
        self.backward += times.backward.as_secs_f64();
        self.dense_optimizer += report.dense_time.as_secs_f64();
        self.low_rank_optimizer += report.low_rank_time.as_secs_f64();
    }

    /// The means so far; counting starts anew.
    pub fn take(&mut self) -> Means {
        let Meter {
            steps,
            tokens,
            seconds,
            data,
            forward,
            backward,
            dense_optimizer,
            low_rank_optimizer,
        } = std::mem::take(self);
        let mean = |sum: f64| sum / steps.max(1) as f64;
        Means {
            tokens_per_second: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            times: BTreeMap::from([
                ("step", mean(seconds)),
                ("data", mean(data)),
                ("forward", mean(forward)),
                ("backward", mean(backward)),
                ("optimizer", mean(dense_optimizer)),
                ("linalg", mean(low_rank_optimizer)),
            ]),
        }
    }
}
