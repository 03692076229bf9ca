//! The training loop: step, log, evaluate, checkpoint, stop; the same bytes whether interrupted or
//! not.

use super::evaluate::{ValidationLoss, evaluate};
use super::memory;
use super::meter::Meter;
use super::run_folder::RunFolder;
use super::stop::StopSignal;
use super::trainer::Trainer;
use crate::checkpoint::{Checkpoints, RunLock, Snapshot};
use crate::data::{self, Dataset, ValidationSet};
use crate::error::Failure;
use crate::lowrank::LowRank;
use crate::model::{Sampling, generate};
use crate::optim::StepReport;
use crate::params::{ParamId, Parameter};
use crate::record::{
    EndReason, Evaluation, Event, LayerRank, Observer, Observers, Ranks, RunStarted, Sample,
    Spectra, Step,
};
use crate::rng;
use crate::spec::Plan;
use anyhow::{Context, Result};
use candle_core::Device;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where and how to train, beside the plan.
pub struct TrainOptions<'a> {
    /// Folder of the run.
    pub run_dir: &'a Path,
    /// Folder of prepared data.
    pub data_cache: &'a Path,
    /// The spec as the user wrote it, kept in the run.
    pub spec_yaml: &'a str,
    /// Continue from the newest sound checkpoint.
    pub resume: bool,
    /// Stop cleanly after this step, as if interrupted, with a checkpoint.
    pub stop_after: Option<u64>,
    /// Where to compute.
    pub device: &'a Device,
    /// Set by Ctrl-C.
    pub stop: StopSignal,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Last step taken.
    pub step: u64,
    /// Validation at the last step; absent if the run was stopped before its end.
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
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Best {
    step: u64,
    loss: f64,
}

/// Trains to the plan's last step, or until a signal or `stop_after`.
///
/// `observers` is called once the run's folder exists, with the step the run continues from.
///
/// # Errors
/// [`Failure::Usage`] if the folder holds another run; [`Failure::Diverged`] if a loss or gradient
/// is not finite;
/// [`Failure::Interrupted`] after a signal, once the checkpoint is written.
pub fn train(
    plan: &Plan,
    options: &TrainOptions,
    observers: impl FnOnce(&RunFolder, Option<u64>) -> Result<Observers>,
) -> Result<Outcome> {
    let folder = RunFolder::new(options.run_dir);
    check_folder(&folder, plan, options.resume)?;
    let dataset = data::prepare(&plan.data, options.data_cache)?;
    options.stop.preparation_ends();
    let _lock = RunLock::acquire(options.run_dir)?;
    let mut checkpoints = Checkpoints::open(options.run_dir);
    if folder.holds_a_run() {
        check_data(&folder, &dataset)?;
    } else {
        folder.describe(
            options.spec_yaml,
            plan,
            &dataset.summary,
            &dataset.tokenizer,
            options.device,
        )?;
    }
    let resumed = if options.resume { load_newest(&mut checkpoints)? } else { None };
    let from = resumed.as_ref().map_or(0, |snapshot| snapshot.step);
    let mut observers = observers(&folder, options.resume.then_some(from))?;
    let mut session = Session::new(plan, options, dataset, checkpoints, resumed)?;
    observers.on(&Event::RunStarted(RunStarted {
        name: plan.name.clone(),
        run_dir: options.run_dir.to_path_buf(),
        parameters: session.trainer.params.element_count() as u64,
        dense_parameters: session.trainer.model.dense_parameter_count() as u64,
        start_step: from,
        max_steps: plan.train.max_steps.0,
        tokens_per_step: plan.tokens_per_step,
        device: format!("{:?}", options.device.location()).to_lowercase(),
        threads: rayon::current_num_threads(),
    }))?;
    if from > 0 {
        observers.on(&Event::Resumed { step: from, path: session.checkpoints.path(from) })?;
    }
    session.run(&mut observers)
}

/// Refuses to write into a folder that holds another run.
fn check_folder(folder: &RunFolder, plan: &Plan, resume: bool) -> Result<()> {
    let root = folder.root().display();
    match (resume, folder.holds_a_run()) {
        (false, true) => Err(Failure::Usage(format!(
            "{root} already holds a run; continue it with --resume, choose another folder with --run-dir, or delete it first"
        ))
        .into()),
        (true, false) => Err(Failure::Usage(format!("{root} holds no run to resume; start one by leaving out --resume")).into()),
        (true, true) => {
            let differences = folder.plan()?.differences_but_of_paths(plan);
            if differences.is_empty() {
                return Ok(());
            }
            Err(Failure::Usage(format!(
                "{root} was started with another plan; to resume it, undo these changes (run -> now), or start a new run with --run-dir:\n  {}",
                differences.join("\n  ")
            ))
            .into())
        }
        (false, false) => Ok(()),
    }
}

/// Refuses to continue on other data than the run began with.
fn check_data(folder: &RunFolder, dataset: &Dataset) -> Result<()> {
    let before = folder.data_summary()?;
    if before.content_hash == dataset.summary.content_hash
        && before.tokenizer_hash == dataset.summary.tokenizer_hash
    {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the data of {} has changed since the run began (content {} -> {}, tokenizer {} -> {}); restore it, or start a new run with --run-dir",
        folder.root().display(),
        before.content_hash,
        dataset.summary.content_hash,
        before.tokenizer_hash,
        dataset.summary.tokenizer_hash
    ))
    .into())
}

/// The newest sound checkpoint; damaged ones are reported and passed over.
fn load_newest(checkpoints: &mut Checkpoints) -> Result<Option<Snapshot>> {
    let (snapshot, damaged) = checkpoints.load_latest()?;
    for skipped in damaged {
        let aside = checkpoints.set_aside(&skipped)?;
        tracing::warn!(
            "skipped the damaged checkpoint {} ({}); it is now {}",
            skipped.path.display(),
            skipped.reason,
            aside.display()
        );
    }
    if snapshot.is_none() {
        tracing::warn!("the run has no sound checkpoint; starting from step 0");
    }
    Ok(snapshot)
}

/// Everything a run holds in memory.
struct Session<'a> {
    plan: &'a Plan,
    options: &'a TrainOptions<'a>,
    trainer: Trainer<'a>,
    tokenizer: data::Tokenizer,
    validation: ValidationSet,
    checkpoints: Checkpoints,
    state: SessionState,
}

impl<'a> Session<'a> {
    fn new(
        plan: &'a Plan,
        options: &'a TrainOptions<'a>,
        dataset: Dataset,
        checkpoints: Checkpoints,
        resumed: Option<Snapshot>,
    ) -> Result<Self> {
        let byte_lengths = dataset.token_byte_lengths();
        let (vocabulary_size, text) = (dataset.tokenizer_vocab_size(), Arc::new(dataset.train));
        let (trainer, state) = match resumed {
            Some(mut snapshot) => {
                let state = serde_json::from_value(snapshot.state.take())
                    .context("state.json of the checkpoint")?;
                (Trainer::restored(plan, options.device, snapshot, text)?, state)
            }
            None => (
                Trainer::fresh(plan, options.device, vocabulary_size, text)?,
                SessionState::default(),
            ),
        };
        let validation = ValidationSet::new(
            Arc::new(dataset.val),
            plan.model.block_size,
            plan.eval.tokens.0,
            &byte_lengths,
        )?;
        Ok(Self {
            plan,
            options,
            trainer,
            tokenizer: dataset.tokenizer,
            validation,
            checkpoints,
            state,
        })
    }

    fn run(&mut self, observers: &mut Observers) -> Result<Outcome> {
        let started = Instant::now();
        self.point_to_best()?;
        let last = self.plan.train.max_steps.0;
        let mut validation = None;
        let mut meter = Meter::default();
        while self.state.step < last {
            let step = self.state.step + 1;
            let flops = self.trainer.flops_of_step(step);
            let timed = self.trainer.step(step)?;
            let report = &timed.report;
            self.state.step = step;
            self.state.tokens += self.plan.tokens_per_step;
            self.state.flops += flops;
            meter.add(self.plan.tokens_per_step, &timed);

            let is_last = step == last;
            observers.on(&Event::Progress { step })?;
            if step == 1 || is_last || step.is_multiple_of(self.plan.train.log_every.0) {
                observers.on(&Event::Step(self.step_record(report, &mut meter)))?;
            }
            if !report.truncations.is_empty() {
                observers.on(&Event::Ranks(self.ranks(report, None)))?;
            }
            let mut improved = false;
            if is_last || step.is_multiple_of(self.plan.eval.every.0) {
                let loss = self.evaluate(report, observers)?;
                improved = loss.loss.is_finite()
                    && self.state.best.is_none_or(|best| loss.loss < best.loss);
                if improved {
                    self.state.best = Some(Best { step, loss: loss.loss });
                }
                validation = is_last.then_some(loss);
            }
            let signal = self.options.stop.requested();
            let asked_to_stop =
                !is_last && (signal.is_some() || self.options.stop_after == Some(step));
            if is_last
                || improved
                || asked_to_stop
                || step.is_multiple_of(self.plan.checkpoint.every.0)
            {
                let path = self.save()?;
                if improved {
                    self.checkpoints.mark_best(step)?;
                }
                self.checkpoints.prune(self.plan.checkpoint.keep_last)?;
                observers.on(&Event::CheckpointSaved { step, path })?;
            }
            if asked_to_stop {
                observers.on(&Event::Finished {
                    step,
                    reason: EndReason::Interrupted,
                    seconds: started.elapsed().as_secs_f64(),
                })?;
                return match signal {
                    Some(signal) => Err(Failure::Interrupted(signal).into()),
                    None => Ok(Outcome { step, validation: None }),
                };
            }
        }
        observers.on(&Event::Finished {
            step: last,
            reason: EndReason::Completed,
            seconds: started.elapsed().as_secs_f64(),
        })?;
        // A finished run that is resumed has nothing to do but to say where it stands.
        let validation = match validation {
            Some(validation) => validation,
            None => evaluate(self.trainer.model.as_ref(), &self.trainer.params, &self.validation)?,
        };
        Ok(Outcome { step: last, validation: Some(validation) })
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

    fn step_record(&self, report: &StepReport, meter: &mut Meter) -> Step {
        let settings = self.trainer.optimizer.settings();
        let has_low_rank = self.trainer.params.low_rank().next().is_some();
        let means = meter.take();
        Step {
            step: self.state.step,
            tokens: self.state.tokens,
            flops: self.state.flops,
            parameters: self.trainer.params.element_count() as u64,
            loss: report.loss,
            grad_norm: report.gradient_norm,
            learning_rate: settings.dense.learning_rate * report.schedule_factor,
            low_rank_learning_rate: has_low_rank
                .then_some(settings.low_rank.learning_rate * report.schedule_factor),
            tokens_per_second: means.tokens_per_second,
            rank_mean: self.trainer.params.mean_rank(),
            times: means.times,
            memory: memory::measured(self.options.device),
        }
    }

    /// The rank of every low-rank weight, with the truncation errors of this step.
    fn ranks(&self, report: &StepReport, defect: Option<f64>) -> Ranks {
        let truncations: BTreeMap<_, _> =
            report.truncations.iter().map(|(id, truncation)| (*id, truncation)).collect();
        let layers = self.trainer.params.low_rank().map(|(id, parameter, point)| LayerRank {
            name: parameter.name.clone(),
            rank: point.rank(),
            truncation_error: truncations.get(&id).map(|truncation| truncation.relative_error),
            discarded_energy: truncations.get(&id).map(|truncation| truncation.error.powi(2)),
        });
        Ranks { step: self.state.step, layers: layers.collect(), defect }
    }

    /// The singular values of every low-rank weight.
    fn spectra(&self) -> Result<Spectra> {
        let weights: Vec<_> = self.trainer.params.low_rank().collect();
        let layer = |(_, parameter, point): &(ParamId, &Parameter, &LowRank)| {
            Ok((parameter.name.clone(), point.singular_values()?))
        };
        Ok(Spectra {
            step: self.state.step,
            layers: weights.par_iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// Validation loss and a sample of text.
    fn evaluate(&self, report: &StepReport, observers: &mut Observers) -> Result<ValidationLoss> {
        let started = Instant::now();
        let loss = evaluate(self.trainer.model.as_ref(), &self.trainer.params, &self.validation)?;
        let step = self.state.step;
        observers.on(&Event::Evaluation(Evaluation {
            step,
            tokens: self.state.tokens,
            flops: self.state.flops,
            parameters: self.trainer.params.element_count() as u64,
            loss: loss.loss,
            perplexity: loss.perplexity,
            bits_per_byte: loss.bits_per_byte,
            validation_tokens: loss.tokens,
            seconds: started.elapsed().as_secs_f64(),
        }))?;
        if let Some(defect) = self.worst_defect()? {
            observers.on(&Event::Ranks(self.ranks(report, Some(defect))))?;
            observers.on(&Event::Spectra(self.spectra()?))?;
        }
        let sample = &self.plan.sample;
        if sample.tokens.0 > 0 {
            let prompt = if sample.prompt.is_empty() { "\n" } else { &sample.prompt };
            let sampling = Sampling {
                temperature: sample.temperature,
                top_k: sample.top_k,
                top_p: sample.top_p,
                seed: rng::key64(self.plan.seed, "sample", &[step]),
            };
            // A tokenizer that cannot encode the prompt (characters unseen in the text) is no
            // reason to end a run.
            let prompt = self.tokenizer.encode_or_first(prompt);
            let tokens = generate(
                self.trainer.model.as_ref(),
                &self.trainer.params,
                &prompt,
                sample.tokens.0 as usize,
                sampling,
                &mut |_| true,
            )?;
            let text = self.tokenizer.show(&[prompt, tokens].concat())?;
            observers.on(&Event::Sample(Sample { step, text }))?;
        }
        Ok(loss)
    }

    /// Largest ‖UᵀU − I‖_F or ‖VᵀV − I‖_F over the low-rank weights.
    fn worst_defect(&self) -> Result<Option<f64>> {
        let mut worst: Option<f64> = None;
        for (_, _, point) in self.trainer.params.low_rank() {
            let defect = point.orthonormality_defect()?;
            worst = Some(worst.map_or(defect, |w| w.max(defect)));
        }
        Ok(worst)
    }

    fn save(&mut self) -> Result<PathBuf> {
        let snapshot =
            self.trainer.snapshot(self.state.step, serde_json::to_value(&self.state)?)?;
        self.checkpoints.save(&snapshot)
    }
}
