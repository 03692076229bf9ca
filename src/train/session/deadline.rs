//! When to stop so that a checkpoint is on the disk in time, judged by what steps, validations and
//! checkpoints have taken so far. It decides when a run pauses, never what it computes.

use crate::spec::Plan;
use std::time::{Duration, Instant};

/// Bytes a second that a disk is taken to write before one was timed.
const ASSUMED_BYTES_PER_SECOND: f64 = 50e6;
/// Numbers stored for a parameter: itself and two moments.
const STORED_PER_PARAMETER: f64 = 3.0;
/// How much longer than the longest so far anything may take.
const MARGIN: f64 = 1.5;

/// A time by which the run has stopped with a checkpoint, and the longest that each part of it has
/// taken, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Option<Instant>,
    evaluates_every: u64,
    saves_every: u64,
    /// Steps whose batches hold as many tokens as a validation.
    steps_per_validation: f64,
    step: f64,
    validation: Option<f64>,
    checkpoint: f64,
}

impl Deadline {
    /// The deadline, if there is one, of a run of this plan and number of parameters.
    pub fn new(at: Option<Instant>, plan: &Plan, parameters: usize) -> Self {
        let bytes = parameters as f64 * STORED_PER_PARAMETER * size_of::<f32>() as f64;
        Self {
            at,
            evaluates_every: plan.eval.every.0,
            saves_every: plan.checkpoint.every.0,
            steps_per_validation: plan.eval.tokens.0 as f64 / plan.tokens_per_step.max(1) as f64,
            step: 0.0,
            validation: None,
            checkpoint: bytes / ASSUMED_BYTES_PER_SECOND,
        }
    }

    /// A step took this long.
    pub fn note_step(&mut self, seconds: f64) {
        self.step = self.step.max(seconds);
    }

    /// A validation with its sample took this long.
    pub fn note_validation(&mut self, seconds: f64) {
        self.validation = Some(self.validation.unwrap_or(0.0).max(seconds));
    }

    /// A checkpoint took this long.
    pub fn note_checkpoint(&mut self, seconds: f64) {
        self.checkpoint = self.checkpoint.max(seconds);
    }

    /// Whether the step `next`, with what is due after it and a checkpoint, might not be done in
    /// time.
    pub fn is_due(&self, next: u64) -> bool {
        self.at.is_some_and(|at| Instant::now() + self.needed(next) >= at)
    }

    /// The time that the step `next`, what is due after it and a checkpoint may take.
    fn needed(&self, next: u64) -> Duration {
        let validation = match next.is_multiple_of(self.evaluates_every.max(1)) {
            true => self.validation.unwrap_or(self.step * self.steps_per_validation),
            false => 0.0,
        };
        let checkpoints = 1.0 + f64::from(next.is_multiple_of(self.saves_every.max(1)));
        let seconds = MARGIN * (self.step + validation + checkpoints * self.checkpoint);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse_plan;

    #[test]
    fn what_is_due_next_is_reckoned_with() {
        let yaml = "name: small\nmodel: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 4, weights: dense}\n\
                    data: {source: {text: {path: a.txt}}, tokenizer: chars}\n\
                    train: {max_steps: 90, batch_size: 1}\neval: {every: 10, tokens: 40}\n\
                    checkpoint: {every: 15}\n";
        let (_, plan) = parse_plan(yaml, "small.yaml", &[]).expect("a good spec");
        let after = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
        let mut deadline = Deadline::new(after(100), &plan, 1000);
        assert!(deadline.needed(1) < Duration::from_millis(1), "nothing was timed");
        deadline.note_step(2.0);
        deadline.note_step(1.0);
        deadline.note_checkpoint(4.0);
        let needed = |deadline: &Deadline, next| deadline.needed(next).as_secs_f64();
        assert_eq!(needed(&deadline, 1), 1.5 * 6.0);
        assert_eq!(needed(&deadline, 10), 1.5 * 26.0, "as if a validation were ten steps");
        deadline.note_validation(3.0);
        assert_eq!([10, 15, 30].map(|next| needed(&deadline, next)), [13.5, 15.0, 19.5]);
        assert!(!deadline.is_due(1));
        deadline.at = after(5);
        assert!(deadline.is_due(1));
        deadline.at = None;
        assert!(!deadline.is_due(1));
    }
}
