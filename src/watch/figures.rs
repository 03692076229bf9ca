//! All that the lines of `metrics.jsonl` say of a run.

use super::curve::Curve;
use crate::record::{MetricsLine, StepFigures};
use crate::train::Progress;
use serde_json::{Map, Value};

/// The figures of a run, as far as its metrics have been read.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How far it has come.
    pub progress: Progress,
    /// Training loss.
    pub loss: Curve,
    /// Validation loss.
    pub validation: Curve,
    /// Learning rate of the dense parameters.
    pub rate: Curve,
    /// Learning rate of the low-rank weights.
    pub low_rank_rate: Curve,
    /// Gradient norm before clipping.
    pub gradient_norm: Curve,
    /// Tokens per second.
    pub speed: Curve,
    /// Bytes of memory of the process.
    pub memory: Curve,
    /// Bytes of tensors on the device, where it has a memory of its own.
    pub device_memory: Curve,
    /// Mean rank of the low-rank weights.
    pub rank_mean: Curve,
    /// Smallest rank.
    pub rank_least: Curve,
    /// Largest rank.
    pub rank_most: Curve,
    /// The low-rank weights in the model's order, each with its rank as last recorded.
    pub ranks: Vec<(String, usize)>,
    /// Seconds per step by phase, as last recorded, without the step itself.
    pub phases: Vec<(String, f64)>,
    /// Steps left out since they diverged.
    pub skipped_steps: u64,
    /// Times that the run went back to a checkpoint.
    pub rollbacks: u64,
}

/// A validation, with what was known of the training then.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// Steps taken.
    pub step: u64,
    /// Loss in nats per token; NaN where it was not finite.
    pub loss: f64,
    /// Bits per byte of text, where known.
    pub bits_per_byte: Option<f64>,
    /// Training loss before it.
    pub training_loss: Option<f64>,
    /// Tokens per second before it.
    pub speed: Option<f64>,
    /// Mean rank before it.
    pub rank_mean: Option<f64>,
}

impl Figures {
    /// Takes note of a line; a validation's is given back.
    pub fn take(&mut self, line: &Map<String, Value>) -> Option<Validation> {
        self.progress.take(line);
        let line = MetricsLine::from(line);
        let step = line.step()?;
        self.skipped_steps = self.skipped_steps.max(line.skipped_steps());
        self.rollbacks = self.rollbacks.max(line.rollbacks());
        if let Some(trained) = line.training() {
            self.take_training(&trained);
            let phases = line.seconds().filter(|(phase, _)| *phase != "step");
            self.phases = phases.map(|(phase, seconds)| (phase.to_owned(), seconds)).collect();
        }
        self.take_ranks(step, line);
        let validation = line.validation()?;
        self.validation.push(step, validation.loss);
        Some(Validation {
            step,
            loss: validation.loss,
            bits_per_byte: validation.bits_per_byte,
            training_loss: self.loss.last(),
            speed: self.speed.last(),
            rank_mean: self.rank_mean.last(),
        })
    }

    fn take_training(&mut self, trained: &StepFigures) {
        let memory = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
        let curves = [
            (&mut self.loss, Some(trained.loss)),
            (&mut self.rate, Some(trained.learning_rate)),
            (&mut self.low_rank_rate, trained.low_rank_learning_rate),
            (&mut self.gradient_norm, Some(trained.gradient_norm)),
            (&mut self.speed, Some(trained.tokens_per_second)),
            (&mut self.memory, memory(trained.resident_memory)),
            (&mut self.device_memory, memory(trained.device_memory)),
            (&mut self.rank_mean, trained.rank_mean),
        ];
        for (curve, value) in curves {
            if let Some(value) = value {
                curve.push(trained.step, value);
            }
        }
    }

    fn take_ranks(&mut self, step: u64, line: MetricsLine) {
        let ranks: Vec<(String, usize)> =
            line.ranks().map(|(name, rank)| (name.to_owned(), rank)).collect();
        let Some(least) = ranks.iter().map(|(_, rank)| *rank).min() else { return };
        let most = ranks.iter().map(|(_, rank)| *rank).max().unwrap_or(least);
        self.rank_least.push(step, least as f64);
        self.rank_most.push(step, most as f64);
        // A truncation may have concerned some of the weights only.
        if ranks.len() >= self.ranks.len() {
            self.ranks = ranks;
        } else {
            for (name, rank) in ranks {
                match self.ranks.iter_mut().find(|(known, _)| *known == name) {
                    Some(known) => known.1 = rank,
                    None => self.ranks.push((name, rank)),
                }
            }
        }
    }

    /// Seconds that the rest of so many steps takes at the last speed, validations left out.
    pub fn seconds_left(&self, max_steps: u64, tokens_per_step: u64) -> Option<f64> {
        let speed = self.speed.last().filter(|speed| *speed > 0.0)?;
        let steps = max_steps.saturating_sub(self.progress.step);
        Some(steps as f64 * tokens_per_step as f64 / speed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_curves_ranks_and_validations() {
        let mut figures = Figures::default();
        let mut take = |line: &str| figures.take(&serde_json::from_str(line).unwrap());
        assert_eq!(
            take(
                r#"{"step":10,"train/loss":3.5,"train/lr":1e-3,"train/lr_low_rank":0.01,
                "train/tok_per_sec":500.0,"rank/mean":6.0,"time/step":0.3,"time/forward":0.1,
                "mem/resident":1000}"#
            ),
            None
        );
        take(r#"{"step":10,"rank/a":4,"rank/b":8,"lowrank/truncation_error/a":0.1}"#);
        let validation = take(r#"{"step":10,"val/loss":3.25,"val/bpb":1.5}"#).unwrap();
        assert_eq!(
            validation,
            Validation {
                step: 10,
                loss: 3.25,
                bits_per_byte: Some(1.5),
                training_loss: Some(3.5),
                speed: Some(500.0),
                rank_mean: Some(6.0)
            }
        );
        assert!(take(r#"{"step":20,"val/loss":null}"#).unwrap().loss.is_nan());
        take(r#"{"step":20,"rank/b":2}"#);
        take(r#"{"step":25,"train/skipped_steps":3}"#);
        take(r#"{"without":"a step"}"#);
        assert_eq!(figures.ranks, [("a".to_owned(), 4), ("b".to_owned(), 2)]);
        assert_eq!(figures.phases, [("forward".to_owned(), 0.1)]);
        assert_eq!(figures.validation.points(), [(10.0, 3.25)]);
        assert_eq!(figures.low_rank_rate.last(), Some(0.01));
        assert_eq!(figures.rank_least.points(), [(10.0, 4.0), (20.0, 2.0)]);
        assert_eq!((figures.skipped_steps, figures.progress.step), (3, 25));
        // 75 steps of 100 tokens at 500 tokens a second.
        assert_eq!(figures.seconds_left(100, 100), Some(15.0));
        assert_eq!(Figures::default().seconds_left(100, 100), None);
    }
}
