//! Loss and gradients of one step's batch, micro-batch by micro-batch.

use super::diagnose::first_non_finite;
use crate::data::Batches;
use crate::error::Failure;
use crate::model::{DropoutKey, Network};
use crate::ops::{Gradients, scalar};
use crate::optim::{BatchLoss, GradientOracle};
use crate::params::ParamStore;
use candle_core::Device;
use std::time::{Duration, Instant};

/// Evaluates the batch of one step; made anew for every step.
pub struct BatchOracle<'a> {
    /// The network.
    pub model: &'a dyn Network,
    /// Where the batches come from.
    pub batches: &'a Batches,
    /// Where to compute.
    pub device: &'a Device,
    /// Seed of the run, for dropout.
    pub seed: u64,
    /// Step, counted from 1; the data order counts from 0.
    pub step: u64,
    /// Micro-batches per step.
    pub micro_batches: usize,
    /// Time spent so far.
    pub times: OracleTimes,
}

/// Where an oracle's time went.
#[derive(Clone, Copy, Debug, Default)]
pub struct OracleTimes {
    /// Reading and stacking batches.
    pub data: Duration,
    /// Forward passes.
    pub forward: Duration,
    /// Backward passes.
    pub backward: Duration,
}

impl GradientOracle for BatchOracle<'_> {
    fn evaluate(
        &mut self,
        params: &ParamStore,
        gradients: &mut Gradients,
    ) -> anyhow::Result<BatchLoss> {
        let mut sum = 0.0;
        for micro in 0..self.micro_batches {
            let started = Instant::now();
            let batch = self.batches.at(self.step - 1, micro)?;
            let (inputs, targets) =
                (batch.inputs.to_device(self.device)?, batch.targets.to_device(self.device)?);
            self.times.data += started.elapsed();

            let started = Instant::now();
            let dropout = DropoutKey { seed: self.seed, step: self.step, micro: micro as u64 };
            let tape = self.model.training_tape();
            let loss = self.model.loss(params, &tape, &inputs, &targets, Some(dropout))?;
            let value = scalar(loss.tensor())?;
            if !value.is_finite() {
                let place = first_non_finite(self.model, params, &inputs, Some(dropout))?;
                let place = place
                    .unwrap_or_else(|| "the loss itself (every layer's output is finite)".into());
                return Err(Failure::Diverged(format!(
                    "the loss is {value} at step {}: {place} is the first that is not finite",
                    self.step
                ))
                .into());
            }
            sum += value;
            self.times.forward += started.elapsed();

            let started = Instant::now();
            tape.backward(&loss, gradients)?;
            self.device.synchronize()?;
            self.times.backward += started.elapsed();
        }
        Ok(BatchLoss { loss: sum / self.micro_batches as f64, micro_batches: self.micro_batches })
    }
}
