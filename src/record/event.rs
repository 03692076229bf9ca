//! Everything that training tells the outside.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// One thing that happened during training.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Training is about to begin, from the start or from a checkpoint.
    RunStarted(RunStarted),
    /// The state of this step was read from this checkpoint.
    Resumed {
        /// Steps taken before.
        step: u64,
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// A step was taken. Comes at every step; figures come with [`Event::Step`].
    Progress {
        /// Steps taken.
        step: u64,
    },
    /// Figures of a step, every `train.log_every` steps.
    Step(Step),
    /// A validation.
    Evaluation(Evaluation),
    /// The ranks of the low-rank weights.
    Ranks(Ranks),
    /// The singular values of the low-rank weights.
    Spectra(Spectra),
    /// Text written by the model.
    Sample(Sample),
    /// A checkpoint is about to be written; figures up to its step must be on the disk first.
    CheckpointDue {
        /// Steps taken.
        step: u64,
    },
    /// A checkpoint is on disk.
    CheckpointSaved {
        /// Steps taken.
        step: u64,
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// A step diverged and was left out or undone; the run goes on.
    Recovered(Recovered),
    /// Something the user should know, and can act on.
    Warning {
        /// What it is and what to do about it.
        message: String,
    },
    /// Training has ended.
    Finished {
        /// Steps taken; where the run diverged, the step that did.
        step: u64,
        /// Why it ended.
        reason: EndReason,
        /// Seconds since [`Event::RunStarted`].
        seconds: f64,
        /// Largest resident memory in bytes of each process, by rank; empty where it is not known.
        peak_memory: Vec<u64>,
    },
}

/// The facts of a run, known before its first step.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStarted {
    /// Name of the run.
    pub name: String,
    /// Its folder.
    pub run_dir: PathBuf,
    /// Trainable numbers.
    pub parameters: u64,
    /// Numbers that training leaves as they are.
    pub frozen_parameters: u64,
    /// Numbers of the same model with dense weights.
    pub dense_parameters: u64,
    /// Steps already taken (not 0 after a resume).
    pub start_step: u64,
    /// Steps at the end of the run.
    pub max_steps: u64,
    /// Tokens per optimizer step, all micro-batches together.
    pub tokens_per_step: u64,
    /// Compute device, as text.
    pub device: String,
    /// Threads used on the CPU.
    pub threads: usize,
}

/// Figures of one optimizer step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Steps taken, this one included.
    pub step: u64,
    /// Tokens trained on, this step's included.
    pub tokens: u64,
    /// Counted operations of the training so far: model, attention, head, low-rank optimizer with
    /// its augmentation, at the ranks in force.
    pub flops: u64,
    /// Trained numbers after the step.
    pub parameters: u64,
    /// Mean cross-entropy of the step's batch in nats per token, before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the dense parameters in this step.
    pub learning_rate: f64,
    /// Learning rate of the low-rank weights in this step, where they have one.
    pub low_rank_learning_rate: Option<f64>,
    /// Tokens per second since the last such event, validation and checkpoints left out.
    pub tokens_per_second: f64,
    /// Mean rank of the low-rank weights, where there are any.
    pub rank_mean: Option<f64>,
    /// Bytes of gradient sums that all processes sent in this step, where there are several.
    pub wire_bytes: Option<u64>,
    /// Seconds per step since the last such event by phase: data, forward, backward, optimizer,
    /// linalg.
    pub times: BTreeMap<&'static str, f64>,
    /// Bytes of memory by what they are: resident, device, ...
    pub memory: BTreeMap<&'static str, u64>,
}

/// Result of a validation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Steps taken.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Counted operations of the training so far, validation left out.
    pub flops: u64,
    /// Trained numbers now.
    pub parameters: u64,
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Bits per byte of text, where the tokenizer lets bytes be counted.
    pub bits_per_byte: Option<f64>,
    /// Validation tokens the figures are over.
    pub validation_tokens: u64,
    /// Seconds it took.
    pub seconds: f64,
}

/// How a run went on after a step that diverged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// The step left out, or the first one to be taken again.
    pub step: u64,
    /// The checkpoint's step that the run went back to; none where a step was left out.
    pub back_to: Option<u64>,
    /// Steps left out so far.
    pub skipped_steps: u64,
    /// Rollbacks so far.
    pub rollbacks: u64,
    /// What was not finite.
    pub reason: String,
}

/// Ranks of the low-rank weights after a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranks {
    /// Steps taken.
    pub step: u64,
    /// The low-rank weights in the model's order.
    pub layers: Vec<LayerRank>,
    /// Largest ‖UᵀU − I‖ or ‖VᵀV − I‖ of all, where it was measured.
    pub defect: Option<f64>,
}

/// Singular values of the low-rank weights at a validation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spectra {
    /// Steps taken.
    pub step: u64,
    /// Name of each low-rank weight and its singular values in decreasing order, in the model's
    /// order.
    pub layers: Vec<(String, Vec<f64>)>,
}

/// Rank of one low-rank weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRank {
    /// Name of the weight.
    pub name: String,
    /// Its rank.
    pub rank: usize,
    /// Norm of what the step's truncation discarded over that of the weight, where it truncated: in
    /// the norm of the cut, that of the Fisher matrix where the rank policy cuts by it.
    pub truncation_error: Option<f64>,
    /// Energy Σ_{i>r'} σᵢ² that it discarded, where it truncated, in the same norm.
    pub discarded_energy: Option<f64>,
}

/// Text written by the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Steps taken.
    pub step: u64,
    /// The prompt and its continuation.
    pub text: String,
}

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// All steps were taken.
    Completed,
    /// A signal asked for it; the state was saved.
    Interrupted,
    /// A loss, gradient, parameter or moment was not finite.
    Diverged,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndReason::Completed => "completed",
            EndReason::Interrupted => "interrupted",
            EndReason::Diverged => "diverged",
        })
    }
}

/// Someone who watches the training.
pub trait Observer {
    /// Takes note of an event.
    ///
    /// # Errors
    /// When the note cannot be kept, a full disk for instance.
    fn on(&mut self, event: &Event) -> anyhow::Result<()>;
}

/// Several observers, told in their order.
#[derive(Default)]
pub struct Observers(pub Vec<Box<dyn Observer>>);

impl Observer for Observers {
    /// Tells everyone, also after one has failed.
    ///
    /// # Errors
    /// The first that any of them had.
    fn on(&mut self, event: &Event) -> anyhow::Result<()> {
        let results: Vec<_> = self.0.iter_mut().map(|observer| observer.on(event)).collect();
        results.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    struct Fussy(Rc<RefCell<Vec<&'static str>>>, &'static str, bool);

    impl Observer for Fussy {
        fn on(&mut self, _: &Event) -> anyhow::Result<()> {
            self.0.borrow_mut().push(self.1);
            anyhow::ensure!(!self.2, "{} cannot", self.1);
            Ok(())
        }
    }

    #[test]
    fn all_are_told_and_the_first_error_comes_back() {
        let told = Rc::new(RefCell::new(Vec::new()));
        let fussy = |name, fails| Box::new(Fussy(told.clone(), name, fails)) as Box<dyn Observer>;
        let mut observers = Observers(vec![fussy("a", false), fussy("b", true), fussy("c", true)]);
        assert_eq!(observers.on(&Event::Progress { step: 1 }).unwrap_err().to_string(), "b cannot");
        assert_eq!(*told.borrow(), ["a", "b", "c"]);
    }
}
