//! Training steps on random tokens, timed.

use super::alone::Alone;
use super::by_operation::OperationTable;
use super::low_rank_parts::LowRankParts;
use super::product_peak::product_peak;
use super::report::{Memory, Operations, Report, SecondsPerStep, Shape, median};
use crate::account::Ledger;
use crate::data::TokenShard;
use crate::device;
use crate::ops::profile::{Profile, profiled};
use crate::rng;
use crate::spec::Plan;
use crate::train::{Meter, Trainer, measured_memory};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use rand::Rng;
use std::sync::Arc;

/// The largest number of random tokens made; longer benchmarks see them again in another order.
const MOST_TOKENS: u64 = 1 << 22;

/// Steps of a benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepCounts {
    /// Steps taken before the clock starts.
    pub warm_up: u64,
    /// Timed steps, at least one.
    pub timed: u64,
    /// Whether the operations of the timed steps are timed one by one.
    pub by_operation: bool,
}

/// Takes a plan's training steps on random tokens of a vocabulary of this size, then measures the
/// product peak in the same process.
///
/// Network, optimizer and step are those of `lrpt train`. Only the text differs, and its content
/// does not affect the time. At the end of every phase the step waits for the device, which would
/// otherwise lag behind the host.
///
/// # Errors
/// If the vocabulary is empty or a step fails.
pub fn measure(
    plan: &Plan,
    vocabulary_size: usize,
    counts: StepCounts,
    device: &Device,
) -> Result<Report> {
    let resident_before = measured_memory(device).get("resident").copied();
    let TimedSteps { trainer, seconds_per_step, loss, profile } =
        time_steps(plan, vocabulary_size, counts, device)?;
    // Before the product peak, whose matrices are not part of the training.
    let memory = measured_memory(device);
    let ledger = Ledger::new(plan, vocabulary_size, rayon::current_num_threads());
    let stacked = trainer.optimizer.settings().execution.linalg.is_device();
    let low_rank_parts = plan
        .optimizer
        .dlra()
        .filter(|_| trainer.params.low_rank().next().is_some())
        .map(|dlra| LowRankParts::measure(&trainer.params, dlra, stacked))
        .transpose()?;
    let dtype = trainer.model.compute().half.unwrap_or(DType::F32);
    let product_peak = product_peak(device, dtype)?;
    let by_operation = match profile {
        None => None,
        Some(profile) => {
            let (alone, peak) = (Alone::measure(&profile)?, product_peak.flops_per_second);
            Some(OperationTable::new(&profile, counts.timed, &seconds_per_step, peak, &alone))
        }
    };
    Ok(Report {
        name: plan.name.clone(),
        device: device::describe(device)?.map_or_else(
            || device::short_name(device),
            |info| format!("{} ({info})", device::short_name(device)),
        ),
        compute_dtype: dtype.as_str(),
        threads: rayon::current_num_threads(),
        debug_build: cfg!(debug_assertions),
        shape: Shape::new(plan, vocabulary_size),
        parameters: trainer.params.element_count() as u64,
        rank_mean: trainer.params.mean_rank(),
        timed_steps: counts.timed,
        loss,
        operations: Operations::new(&ledger, &seconds_per_step, product_peak),
        tokens_per_second: plan.tokens_per_step as f64 / seconds_per_step.median,
        tokens_per_second_best: plan.tokens_per_step as f64 / seconds_per_step.best,
        low_rank_optimizer_share: seconds_per_step.low_rank_optimizer / seconds_per_step.mean,
        seconds_per_step,
        low_rank_parts,
        memory: Memory::new(&ledger.memory, &memory, resident_before),
        by_operation,
    })
}

/// Median seconds of a plan's training step on random tokens.
///
/// # Errors
/// As for [`measure`].
pub fn seconds_per_step(
    plan: &Plan,
    vocabulary_size: usize,
    counts: StepCounts,
    device: &Device,
) -> Result<f64> {
    Ok(time_steps(plan, vocabulary_size, counts, device)?.seconds_per_step.median)
}

/// Steps taken and timed.
pub(super) struct TimedSteps<'a> {
    /// The trainer that took them, as it is after the last step.
    pub trainer: Trainer<'a>,
    /// Where the time went.
    pub seconds_per_step: SecondsPerStep,
    /// Loss of the last step, in nats.
    pub loss: f64,
    /// The operations of the timed steps, if they were to be timed.
    pub profile: Option<Profile>,
}

/// Takes a plan's training steps on random tokens.
///
/// # Errors
/// As for [`measure`].
pub(super) fn time_steps<'a>(
    plan: &'a Plan,
    vocabulary_size: usize,
    counts: StepCounts,
    device: &'a Device,
) -> Result<TimedSteps<'a>> {
    ensure!(vocabulary_size > 0, "a vocabulary of 0 tokens; give its size with --vocab-size");
    ensure!(counts.timed > 0, "a benchmark needs at least one timed step");
    let text = random_tokens(plan, vocabulary_size, counts.warm_up.saturating_add(counts.timed));
    let mut trainer = Trainer::fresh(plan, device, vocabulary_size, Arc::new(text))?;
    for step in 1..=counts.warm_up {
        trainer.step(step)?;
    }
    let mut meter = Meter::default();
    let (mut seconds, mut loss) = (Vec::new(), f64::NAN);
    let mut steps = || -> Result<()> {
        for step in counts.warm_up + 1..=counts.warm_up + counts.timed {
            let timed = trainer.step(step)?;
            meter.add(plan.tokens_per_step, &timed);
            seconds.push(timed.seconds);
            loss = timed.report.loss;
        }
        Ok(())
    };
    let profile = if counts.by_operation {
        let (result, profile) = profiled(&mut steps);
        result?;
        Some(profile)
    } else {
        steps()?;
        None
    };
    let means = meter.take();
    let time = |phase: &str| {
        means
            .times
            .get(phase)
            .copied()
            .with_context(|| format!("the meter has no time of `{phase}`"))
    };
    let seconds_per_step = SecondsPerStep {
        data: time("data")?,
        forward: time("forward")?,
        backward: time("backward")?,
        dense_optimizer: time("optimizer")?,
        low_rank_optimizer: time("linalg")?,
        mean: time("step")?,
        median: median(&mut seconds),
        best: seconds[0],
    };
    Ok(TimedSteps { trainer, seconds_per_step, loss, profile })
}

/// Uniformly random tokens, as many as the steps read, up to [`MOST_TOKENS`].
fn random_tokens(plan: &Plan, vocabulary_size: usize, steps: u64) -> TokenShard {
    let block = plan.model.block_size as u64;
    let count = steps.saturating_mul(plan.tokens_per_step).min(MOST_TOKENS.max(block)) + 1;
    let mut random = rng::stream(plan.seed, "benchmark tokens", &[]);
    TokenShard::from_tokens(
        (0..count).map(|_| random.random_range(0..vocabulary_size as u32)).collect(),
    )
}
