//! The training loop: step, log, evaluate, checkpoint, stop; the same bytes whether interrupted or
//! not.

mod deadline;
mod divergence;
mod identity;
mod recovery;
mod report;
mod start;
mod together;

pub use start::train;
pub use together::refuse_idle_processes;

use super::evaluate::{ValidationLoss, evaluate_shared};
use super::fresh_start::FreshStart;
use super::meter::Meter;
use super::run_folder::RunFolder;
use super::stop::StopSignal;
use super::trainer::Trainer;
use crate::checkpoint::{Checkpoints, RunLock, Snapshot};
use crate::data::{self, Dataset, ValidationSet};
use crate::error::Failure;
use crate::parallel::Communicator;
use crate::record::{EndReason, Event, Observer, Observers};
use crate::spec::Plan;
use anyhow::Result;
use candle_core::{Device, Tensor};
use deadline::Deadline;
use identity::Identity;
use serde::{Deserialize, Serialize};
use start::Started;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use together::Asked;

/// Where and how to train, beside the plan.
pub struct TrainOptions<'a> {
    /// Folder of the run.
    pub run_dir: &'a Path,
    /// Folder of prepared data.
    pub data_cache: &'a Path,
    /// The spec as the user wrote it, kept in the run.
    pub spec_yaml: &'a str,
    /// From the start or from a checkpoint.
    pub beginning: Beginning,
    /// Stop cleanly after this step, as if interrupted, with a checkpoint.
    pub stop_after: Option<u64>,
    /// Stop cleanly in time for a checkpoint to be on the disk by then.
    pub deadline: Option<Instant>,
    /// Where to compute.
    pub device: &'a Device,
    /// Set by Ctrl-C.
    pub stop: StopSignal,
    /// The processes that train this run together.
    pub processes: &'a dyn Communicator,
    /// How long one of them waits for another, once all have begun.
    pub patience: Duration,
}

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Anew, in a folder without a history.
    Fresh,
    /// Anew, with the metrics and checkpoints that are there kept aside.
    Restart,
    /// Anew; the run that is there goes once the new one has taken its first step.
    Overwrite,
    /// From the newest sound checkpoint; with the plan's settings where they may differ from those
    /// of the run.
    Resume {
        /// Whether the plan may have more steps.
        extend: bool,
    },
}

impl Beginning {
    /// Whether it goes on from a checkpoint.
    pub fn continues(self) -> bool {
        matches!(self, Self::Resume { .. })
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Last step taken.
    pub step: u64,
    /// Validation at the last step, or of the first weights where no step was asked for; absent if
    /// the run was stopped between.
    pub validation: Option<ValidationLoss>,
}

/// What a checkpoint knows beside tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct SessionState {
    step: u64,
    tokens: u64,
    /// Counted operations, at the ranks each step had.
    #[serde(default)]
    flops: u64,
    best: Option<Best>,
    /// Rollbacks so far, which decide batches and learning rates.
    #[serde(default, skip_serializing_if = "is_zero")]
    rollbacks: u64,
    /// Steps left out so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    skipped_steps: u64,
    /// Steps left out since the last one that was taken.
    #[serde(default, skip_serializing_if = "is_zero")]
    skipped_in_a_row: u64,
    /// The run it belongs to; none in checkpoints of before it was written.
    #[serde(default)]
    identity: Option<Identity>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    loss: f64,
}

/// What a step and all that was due after it came to.
struct Taken {
    step: u64,
    /// Validation at the run's last step.
    validation: Option<ValidationLoss>,
    asked_to_stop: bool,
    /// What asked for it, if not `stop_after`.
    asked: Option<Asked>,
}

/// Everything a run holds in memory.
struct Session<'a> {
    plan: &'a Plan,
    options: &'a TrainOptions<'a>,
    trainer: Trainer<'a>,
    tokenizer: data::Tokenizer,
    validation: ValidationSet,
    checkpoints: Checkpoints,
    /// Until the first step is taken; before the lock, which it needs.
    fresh: Option<FreshStart>,
    /// Of the process that writes.
    lock: Option<RunLock>,
    deadline: Deadline,
    state: SessionState,
    /// The step that is being taken or was taken last.
    attempted: u64,
    /// Training loss of the last step.
    last_loss: Option<f64>,
}

impl<'a> Session<'a> {
    fn new(
        plan: &'a Plan,
        options: &'a TrainOptions<'a>,
        dataset: Dataset,
        begun: Started,
        resumed: Option<(Snapshot, SessionState)>,
    ) -> Result<Self> {
        // In this order: the lock is held until a start that fails has cleaned up.
        let Started { checkpoints, lock, fresh, identity } = begun;
        let byte_lengths = dataset.token_byte_lengths();
        let (vocabulary_size, text) = (dataset.tokenizer_vocab_size(), Arc::new(dataset.train));
        let (trainer, state) = match resumed {
            Some((snapshot, state)) => {
                let trainer = Trainer::restored(plan, options.device, snapshot, text)?;
                // What the run is known by may have grown by steps since.
                (trainer, SessionState { identity: Some(identity), ..state })
            }
            None => (
                Trainer::fresh(plan, options.device, vocabulary_size, text)?,
                SessionState { identity: Some(identity), ..SessionState::default() },
            ),
        };
        let trainer = trainer.after_rollbacks(state.rollbacks).shared_over(options.processes);
        let validation = ValidationSet::new(
            Arc::new(dataset.val),
            plan.model.block_size,
            plan.eval.tokens.0,
            &byte_lengths,
        )?;
        Ok(Self {
            plan,
            options,
            tokenizer: dataset.tokenizer,
            validation,
            deadline: Deadline::new(options.deadline, plan, trainer.params.total_element_count()),
            checkpoints,
            fresh,
            lock,
            attempted: state.step,
            trainer,
            state,
            last_loss: None,
        })
    }

    /// Trains to the end, and tells the observers how it ended.
    fn run(&mut self, observers: &mut Observers) -> Result<Outcome> {
        let started = Instant::now();
        self.steps(observers, started).or_else(|error| {
            let Some(error) = self.divergence(&error) else { return Err(error) };
            observers.on(&Event::Finished {
                step: self.attempted,
                reason: EndReason::Diverged,
                seconds: started.elapsed().as_secs_f64(),
                peak_memory: Vec::new(),
            })?;
            Err(error)
        })
    }

    fn steps(&mut self, observers: &mut Observers, started: Instant) -> Result<Outcome> {
        self.by_root(|session| {
            session.point_to_best()?;
            if session.state.step > 0 {
                let keep_last = session.plan.checkpoint.keep_last;
                session.checkpoints.repair(session.state.step, keep_last)?;
            }
            Ok(())
        })?;
        self.ensure_same_parameters()?;
        if self.options.stop_after.is_some_and(|last| last <= self.state.step)
            && self.state.step > 0
            && self.state.step < self.plan.train.max_steps.0
        {
            return Ok(Outcome { step: self.state.step, validation: None });
        }
        if self.options.stop_after == Some(0) && self.state.step == 0 {
            return self.stop_before_the_first_step(observers, started);
        }
        let last = self.plan.train.max_steps.0;
        let mut validation = None;
        let mut meter = Meter::default();
        while self.state.step < last {
            match self.take_step(observers, &mut meter) {
                Ok(Taken { asked_to_stop: false, validation: found, .. }) => validation = found,
                Ok(Taken { step, asked, .. }) => {
                    observers.on(&Event::Finished {
                        step,
                        reason: EndReason::Interrupted,
                        seconds: started.elapsed().as_secs_f64(),
                        peak_memory: self.peaks()?,
                    })?;
                    return match asked {
                        Some(Asked::BySignal(signal)) => Err(Failure::Interrupted(signal).into()),
                        Some(Asked::ByDeadline) | None => Ok(Outcome { step, validation: None }),
                    };
                }
                Err(error) => self.roll_back(error, observers)?,
            }
        }
        self.warn_of_high_loss(observers)?;
        observers.on(&Event::Finished {
            step: last,
            reason: EndReason::Completed,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: self.peaks()?,
        })?;
        // A finished run that is resumed has nothing to do but to say where it stands.
        let validation = match validation {
            Some(validation) => validation,
            None => self.validation_loss()?,
        };
        Ok(Outcome { step: last, validation: Some(validation) })
    }

    /// One step, and what is due after it.
    fn take_step(&mut self, observers: &mut Observers, meter: &mut Meter) -> Result<Taken> {
        let last = self.plan.train.max_steps.0;
        let step = self.state.step + 1;
        self.attempted = step;
        let flops = self.trainer.flops_of_step(step);
        self.options.stop.takes_step(step);
        let timed = self.trainer.step(step);
        if (timed.is_ok() || timed.as_ref().is_err_and(|e| self.reason_of_divergence(e).is_some()))
            && let Some(fresh) = self.fresh.take()
        {
            fresh.has_begun();
        }
        let timed = match timed {
            Ok(timed) => Some(timed),
            Err(error) => {
                self.leave_out(step, error, observers)?;
                None
            }
        };
        self.state.step = step;
        let tokens = self.trainer.tokens_of_step(step);
        self.state.tokens += tokens;
        self.state.flops += flops;
        let is_last = step == last;
        observers.on(&Event::Progress { step })?;
        if let Some(timed) = &timed {
            let report = &timed.report;
            self.state.skipped_in_a_row = 0;
            self.deadline.note_step(timed.seconds);
            self.last_loss = Some(report.loss);
            meter.add(tokens, timed);
            if step == 1 || is_last || step.is_multiple_of(self.plan.train.log_every.0) {
                let of_all = self.of_all_processes(timed.bytes_sent)?;
                observers.on(&Event::Step(self.step_record(report, of_all, meter)))?;
            }
            if !report.truncations.is_empty() {
                observers.on(&Event::Ranks(self.ranks(&report.truncations, None)))?;
            }
        }
        let mut improved = false;
        let mut validation = None;
        if is_last || step.is_multiple_of(self.plan.eval.every.0) {
            let truncations = timed.map(|timed| timed.report.truncations).unwrap_or_default();
            let started = Instant::now();
            let loss = self.evaluate(&truncations, observers)?;
            self.deadline.note_validation(started.elapsed().as_secs_f64());
            improved =
                loss.loss.is_finite() && self.state.best.is_none_or(|best| loss.loss < best.loss);
            if improved {
                self.state.best = Some(Best { step, loss: loss.loss });
            }
            validation = is_last.then_some(loss);
        }
        let asked = self.asked()?;
        let asked_to_stop = !is_last && (asked.is_some() || self.options.stop_after == Some(step));
        if is_last || improved || asked_to_stop || step.is_multiple_of(self.plan.checkpoint.every.0)
        {
            let started = Instant::now();
            self.ensure_same_parameters()?;
            let moments = self.of_this_process(self.trainer.moments())?;
            self.by_root(|session| {
                // Whatever counts on figures comes after they are on the disk.
                observers.on(&Event::CheckpointDue { step })?;
                let path = session.save(moments)?;
                if improved {
                    session.checkpoints.mark_best(step)?;
                }
                session.checkpoints.prune(session.plan.checkpoint.keep_last)?;
                observers.on(&Event::CheckpointSaved { step, path })
            })?;
            self.deadline.note_checkpoint(started.elapsed().as_secs_f64());
        }
        Ok(Taken { step, validation, asked_to_stop, asked })
    }

    /// A process killed between a save and its mark leaves `best` behind the state; the state is
    /// right.
    fn point_to_best(&mut self) -> Result<()> {
        match self.state.best.map(|best| best.step) {
            Some(step)
                if self.checkpoints.best() != Some(step)
                    && self.checkpoints.path(step).exists() =>
            {
                self.checkpoints.mark_best(step)
            }
            _ => Ok(()),
        }
    }

    /// Saves a checkpoint of finite numbers, with these moments, into the folder that is still this
    /// run's.
    fn save(&mut self, moments: Vec<(String, Tensor)>) -> Result<PathBuf> {
        let state = serde_json::to_value(&self.state)?;
        let snapshot = self.trainer.snapshot(self.state.step, moments, state)?;
        divergence::ensure_finite(&snapshot)?;
        self.check_lock()?;
        let saved = self.checkpoints.save(&snapshot).and_then(|path| {
            RunFolder::new(self.options.run_dir).note_checkpoint(self.state.step)?;
            Ok(path)
        });
        // A folder that has gone meanwhile is told as that.
        saved.or_else(|error| self.check_lock().and(Err(error)))
    }

    fn check_lock(&self) -> Result<()> {
        self.lock.as_ref().map_or(Ok(()), RunLock::check_held)
    }

    /// The loss over the validation set, by all processes together.
    fn validation_loss(&self) -> Result<ValidationLoss> {
        let Trainer { model, params, .. } = &self.trainer;
        let processes = self.options.processes;
        let loss = evaluate_shared(model.as_ref(), params, &self.validation, processes);
        self.of_this_process(loss)
    }
}
