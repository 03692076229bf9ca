//! What a line of `metrics.jsonl` says, read back under the keys it is written with.

use serde_json::{Map, Value};

/// A line of `metrics.jsonl`.
///
/// A figure that was not finite is `null` in the line and NaN here; one that an older run did not
/// record is NaN or none.
#[derive(Clone, Copy, Debug)]
pub struct MetricsLine<'a>(&'a Map<String, Value>);

/// Figures of a step that was logged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepFigures {
    /// Steps taken.
    pub step: u64,
    /// Training loss in nats per token.
    pub loss: f64,
    /// Learning rate of the dense parameters.
    pub learning_rate: f64,
    /// Learning rate of the low-rank weights, where there are any.
    pub low_rank_learning_rate: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens per second since the step logged before.
    pub tokens_per_second: f64,
    /// Mean rank of the low-rank weights, where there are any.
    pub rank_mean: Option<f64>,
    /// Bytes of memory of the process.
    pub resident_memory: Option<u64>,
    /// Largest of them so far; of several processes, that of the one that had most.
    pub peak_memory: Option<u64>,
    /// Bytes of tensors on the device, where it has a memory of its own.
    pub device_memory: Option<u64>,
}

/// Figures of a validation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValidationFigures {
    /// Steps taken.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: f64,
    /// Counted operations.
    pub flops: f64,
    /// Trained numbers.
    pub parameters: f64,
    /// Validation loss in nats per token.
    pub loss: f64,
    /// Bits per byte of text, where known.
    pub bits_per_byte: Option<f64>,
}

/// What a truncation discarded from one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct TruncationFigures {
    /// Steps taken.
    pub step: u64,
    /// Name of the weight.
    pub name: String,
    /// (Σ_{i>r'} σᵢ² / Σᵢ σᵢ²)^½.
    pub relative_error: f64,
    /// Σ_{i>r'} σᵢ²; none in older runs.
    pub discarded_energy: Option<f64>,
}

impl<'a> From<&'a Map<String, Value>> for MetricsLine<'a> {
    fn from(line: &'a Map<String, Value>) -> Self {
        Self(line)
    }
}

impl<'a> MetricsLine<'a> {
    /// Steps taken; none in what is no line of a run's.
    pub fn step(self) -> Option<u64> {
        self.count("step")
    }

    /// The figures of a step, where the line has them.
    pub fn training(self) -> Option<StepFigures> {
        Some(StepFigures {
            step: self.step()?,
            loss: self.loss("train/loss")?,
            learning_rate: self.number("train/lr").unwrap_or(f64::NAN),
            low_rank_learning_rate: self.number("train/lr_low_rank"),
            gradient_norm: self.number("train/grad_norm").unwrap_or(f64::NAN),
            tokens_per_second: self.number("train/tok_per_sec").unwrap_or(f64::NAN),
            rank_mean: self.number("rank/mean"),
            resident_memory: self.count("mem/resident"),
            peak_memory: self.count("mem/peak_largest").or_else(|| self.count("mem/peak")),
            device_memory: self.count("mem/device"),
        })
    }

    /// The figures of a validation, where the line has them.
    pub fn validation(self) -> Option<ValidationFigures> {
        Some(ValidationFigures {
            step: self.step()?,
            tokens: self.number("tokens").unwrap_or(f64::NAN),
            flops: self.number("flops").unwrap_or(f64::NAN),
            parameters: self.number("params").unwrap_or(f64::NAN),
            loss: self.loss("val/loss")?,
            bits_per_byte: self.number("val/bpb"),
        })
    }

    /// Name and rank of each low-rank weight that the line tells of, in the model's order.
    pub fn ranks(self) -> impl Iterator<Item = (&'a str, usize)> {
        let ranks = self.below("rank/").filter(|(name, _)| *name != "mean");
        ranks.filter_map(|(name, rank)| Some((name, usize::try_from(rank.as_u64()?).ok()?)))
    }

    /// What truncations of this step discarded.
    pub fn truncations(self) -> impl Iterator<Item = TruncationFigures> {
        self.below("lowrank/truncation_error/").filter_map(move |(name, error)| {
            Some(TruncationFigures {
                step: self.step()?,
                name: name.to_owned(),
                relative_error: error.as_f64()?,
                discarded_energy: self.number(&format!("lowrank/discarded_energy/{name}")),
            })
        })
    }

    /// Mean seconds per step since the step logged before, by phase, `step` being the whole.
    pub fn seconds(self) -> impl Iterator<Item = (&'a str, f64)> {
        self.below("time/").filter_map(|(phase, seconds)| Some((phase, seconds.as_f64()?)))
    }

    /// Name and singular values, in decreasing order, of each low-rank weight, where this is a line
    /// of `spectra.jsonl`.
    pub fn singular_values(self) -> impl Iterator<Item = (&'a str, Vec<f64>)> {
        self.below("").filter_map(|(name, values)| {
            Some((name, values.as_array()?.iter().filter_map(Value::as_f64).collect()))
        })
    }

    /// Steps left out so far since they diverged, where the line tells.
    pub fn skipped_steps(self) -> u64 {
        self.count("train/skipped_steps").unwrap_or(0)
    }

    /// Times that the run went back to a checkpoint so far, where the line tells.
    pub fn rollbacks(self) -> u64 {
        self.count("train/rollbacks").unwrap_or(0)
    }

    /// Whether the run ended here by diverging.
    pub fn is_divergence(self) -> bool {
        self.0.contains_key("diverged")
    }

    fn loss(self, key: &str) -> Option<f64> {
        self.0.get(key).map(|loss| loss.as_f64().unwrap_or(f64::NAN))
    }

    fn number(self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(Value::as_f64)
    }

    fn count(self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(Value::as_u64)
    }

    fn below(self, prefix: &'static str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.0.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{
        EndReason, Evaluation, Event, LayerRank, Ranks, Recovered, Spectra, Step, metrics, spectra,
    };

    /// What is written of an event is what is read.
    #[test]
    fn every_figure_that_is_written_is_read_back() {
        let written = |event: Event| metrics(&event).expect("a line");
        let line = written(Event::Step(Step {
            step: 10,
            loss: 2.5,
            grad_norm: 1.5,
            learning_rate: 3e-3,
            low_rank_learning_rate: Some(1e-2),
            tokens_per_second: 5000.25,
            rank_mean: Some(63.5),
            times: [("step", 0.25), ("data", 0.5)].into(),
            memory: [("resident", 1 << 30), ("peak", 1 << 31), ("device", 7)].into(),
            ..Step::default()
        }));
        let shared = Step { memory: [("peak", 5), ("peak_largest", 9)].into(), ..Step::default() };
        let shared = written(Event::Step(shared));
        let shared = MetricsLine::from(&shared).training().expect("figures of a step");
        assert_eq!(shared.peak_memory, Some(9));
        let read = MetricsLine::from(&line);
        assert_eq!(
            read.training(),
            Some(StepFigures {
                step: 10,
                loss: 2.5,
                learning_rate: 3e-3,
                low_rank_learning_rate: Some(1e-2),
                gradient_norm: 1.5,
                tokens_per_second: 5000.25,
                rank_mean: Some(63.5),
                resident_memory: Some(1 << 30),
                peak_memory: Some(1 << 31),
                device_memory: Some(7),
            })
        );
        assert!(read.validation().is_none() && read.ranks().next().is_none());
        assert_eq!(read.seconds().collect::<Vec<_>>(), [("data", 0.5), ("step", 0.25)]);

        let line = written(Event::Evaluation(Evaluation {
            step: 10,
            tokens: 40_960,
            flops: 123_000_000_000,
            parameters: 2_000_000,
            loss: f64::NAN,
            bits_per_byte: Some(1.25),
            ..Evaluation::default()
        }));
        let read = MetricsLine::from(&line).validation().expect("a validation");
        assert_eq!((read.step, read.tokens, read.flops), (10, 40_960.0, 1.23e11));
        assert_eq!((read.parameters, read.bits_per_byte), (2e6, Some(1.25)));
        assert!(read.loss.is_nan() && MetricsLine::from(&line).training().is_none());

        let truncated = LayerRank {
            name: "h.1.attn.q".into(),
            rank: 32,
            truncation_error: Some(0.01),
            discarded_energy: Some(2.5e-3),
        };
        let kept = LayerRank { name: "h.0.attn.q".into(), rank: 64, ..LayerRank::default() };
        let ranks = Ranks { step: 10, layers: vec![truncated, kept], defect: Some(1e-7) };
        let line = written(Event::Ranks(ranks));
        let read = MetricsLine::from(&line);
        assert_eq!(read.ranks().collect::<Vec<_>>(), [("h.1.attn.q", 32), ("h.0.attn.q", 64)]);
        assert_eq!(
            read.truncations().collect::<Vec<_>>(),
            [TruncationFigures {
                step: 10,
                name: "h.1.attn.q".into(),
                relative_error: 0.01,
                discarded_energy: Some(2.5e-3)
            }]
        );

        let layers = vec![("a".to_owned(), vec![2.0, 0.5]), ("b".to_owned(), vec![1.0])];
        let line = spectra(&Event::Spectra(Spectra { step: 10, layers })).expect("a line");
        let read = MetricsLine::from(&line);
        assert_eq!(read.step(), Some(10));
        let values: Vec<_> = read.singular_values().collect();
        assert_eq!(values, [("a", vec![2.0, 0.5]), ("b", vec![1.0])]);

        let recovered = Recovered { step: 7, skipped_steps: 3, rollbacks: 1, ..Default::default() };
        let line = written(Event::Recovered(recovered));
        let read = MetricsLine::from(&line);
        assert_eq!((read.step(), read.skipped_steps(), read.rollbacks()), (Some(7), 3, 1));
        assert!(!read.is_divergence());
        let reason = EndReason::Diverged;
        let line = written(Event::Finished { step: 8, reason, seconds: 1.0, peak_memory: vec![] });
        assert!(MetricsLine::from(&line).is_divergence());
        assert!(MetricsLine::from(&Map::new()).step().is_none());
    }
}
