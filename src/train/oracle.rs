//! Loss and gradients of one step's batch, micro-batch by micro-batch, over all processes.
//!
//! Micro-batch i is computed by the process of rank i mod world. Sums pass from each micro-batch to
//! the next ([`Relay`]), so that they are those of one process to the byte; the process that has
//! the last micro-batch then sends the sums to all, or to those that own the parameters. Where the
//! order may be another, every process sums its own, and these are summed over processes.

use super::diagnose::first_non_finite;
use super::evaluate::targets_of;
use crate::data::Batches;
use crate::error::Failure;
use crate::model::{DropoutKey, Network, Sequences};
use crate::ops::{Gradients, PackedDocuments, Relay, Tape, Value, scalar};
use crate::optim::{BatchLoss, GradientOracle, Owners};
use crate::parallel::{Communicator, OfThisProcess, Tag, f32_bytes};
use crate::params::ParamStore;
use anyhow::Context;
use candle_core::{Device, Result, Tensor};
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
    /// The processes that share the micro-batches.
    pub processes: &'a dyn Communicator,
    /// Which of them wants the sums of which parameter; none where all want all.
    pub owners: Option<&'a Owners>,
    /// Whether sums are taken in the order of one process.
    pub is_deterministic: bool,
    /// Bytes of sums that this process has sent so far.
    pub sums_sent: u64,
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
        let (rank, world) = (self.processes.rank(), self.processes.world());
        let sum = if world == 1 {
            let mut sum = 0.0;
            for micro in 0..self.micro_batches {
                let (loss, tape, value) = self.forward(params, micro)?;
                sum += value.map_err(Failure::Diverged)?;
                self.backward(tape, &loss, gradients, None)?;
            }
            sum
        } else {
            let shared = self.share_out(params, gradients);
            // A failure of this process alone is nothing the others can act on, whatever it is.
            shared.map_err(|error| match error.downcast::<Failure>() {
                Ok(failure) => anyhow::Error::from(failure),
                Err(error) => OfThisProcess(format!("rank {rank}: {error:#}")).into(),
            })?
        };
        Ok(BatchLoss { loss: sum / self.micro_batches as f64, micro_batches: self.micro_batches })
    }

    fn evaluate_earlier(
        &mut self,
        steps_before: u64,
        params: &ParamStore,
        gradients: &mut Gradients,
    ) -> anyhow::Result<BatchLoss> {
        let step = self.step;
        let earlier = step.checked_sub(steps_before).filter(|earlier| *earlier > 0);
        self.step =
            earlier.with_context(|| format!("no step lies {steps_before} before {step}"))?;
        let found = self.evaluate(params, gradients);
        self.step = step;
        found
    }
}

impl BatchOracle<'_> {
    /// The loss of a micro-batch on its tape, and its value, or what was not finite.
    fn forward(
        &mut self,
        params: &ParamStore,
        micro: usize,
    ) -> anyhow::Result<(Value, Tape, std::result::Result<f64, String>)> {
        let started = Instant::now();
        let batch = self.batches.at(self.step - 1, micro)?.to_device(self.device)?;
        self.times.data += started.elapsed();

        let started = Instant::now();
        let dropout = DropoutKey { seed: self.seed, step: self.step, micro: micro as u64 };
        let tape = self.model.training_tape();
        let targets = targets_of(&batch);
        let documents = batch.positions.as_ref().map(PackedDocuments::new).transpose()?;
        let sequences = Sequences { tokens: &batch.inputs, documents: documents.as_ref() };
        let loss = self.model.loss_of(params, &tape, sequences, targets, Some(dropout))?;
        let value = scalar(loss.tensor())?;
        let value = if value.is_finite() {
            Ok(value)
        } else {
            let place = first_non_finite(self.model, params, sequences, Some(dropout))?;
            let place =
                place.unwrap_or_else(|| "the loss itself (every layer's output is finite)".into());
            Err(format!(
                "the loss is {value} at step {}: {place} is the first that is not finite",
                self.step
            ))
        };
        self.times.forward += started.elapsed();
        Ok((loss, tape, value))
    }

    /// The sum of this number over all micro-batches, where this process wants it and has another.
    ///
    /// In the order of one process, the process of the `last` micro-batch has it; otherwise every
    /// process has the sum over its own micro-batches.
    fn exchange(&self, last: usize, number: usize, sum: &Tensor) -> anyhow::Result<Option<Tensor>> {
        let processes = self.processes;
        if !self.is_deterministic {
            return processes.sum_tensor(sum).map(Some);
        }
        let id = ParamStore::of_slot(number / 2);
        let owner = self.owners.and_then(|owners| owners.of(id));
        match (owner, processes.rank()) {
            (None, rank) => {
                let all = processes.broadcast_tensor(last, sum)?;
                Ok((rank != last).then_some(all))
            }
            (Some(owner), rank) if owner == last || (rank != last && rank != owner) => Ok(None),
            (Some(owner), rank) if rank == last => {
                let mut numbers = sum.flatten_all()?.to_vec1::<f32>()?;
                processes.send(owner, Tag::sum(number), f32_bytes(&mut numbers))?;
                Ok(None)
            }
            (Some(_), _) => {
                let mut numbers = vec![0f32; sum.elem_count()];
                processes.receive(last, Tag::sum(number), f32_bytes(&mut numbers))?;
                Ok(Some(Tensor::from_vec(numbers, sum.shape(), sum.device())?))
            }
        }
    }

    fn backward(
        &mut self,
        tape: Tape,
        loss: &Value,
        gradients: &mut Gradients,
        relay: Option<&mut dyn Relay>,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        match relay {
            None => tape.backward(loss, gradients)?,
            Some(relay) => tape.backward_in_turn(loss, gradients, relay)?,
        }
        self.device.synchronize()?;
        self.times.backward += started.elapsed();
        Ok(())
    }

    /// The sum of all losses, on every process, with the sums in `gradients` of all gradients that
    /// the process wants.
    fn share_out(&mut self, params: &ParamStore, gradients: &mut Gradients) -> anyhow::Result<f64> {
        let processes = self.processes;
        let (rank, world, count) = (processes.rank(), processes.world(), self.micro_batches);
        let before = processes.bytes_sent();
        let mut losses = Vec::new();
        let mut not_finite = None;
        for micro in (rank..count).step_by(world) {
            let (loss, tape, value) = self.forward(params, micro)?;
            // A loss that is not finite is the matter of all once all losses are known; until then
            // the others wait for this one's sums.
            losses.push(value.as_ref().copied().unwrap_or(f64::NAN));
            if let Err(message) = value {
                not_finite.get_or_insert(message);
            }
            let mut chain = Chain { processes, micro, count };
            let relay = self.is_deterministic.then_some(&mut chain as &mut dyn Relay);
            self.backward(tape, &loss, gradients, relay)?;
        }
        self.sums_sent += processes.bytes_sent() - before;
        let losses = processes.gather_f64(&losses)?;
        let mut sum = 0.0;
        for micro in 0..count {
            let of_rank = losses.get(micro % world).and_then(|own| own.get(micro / world));
            let value = of_rank.with_context(|| format!("micro-batch {micro} has no loss"))?;
            if !value.is_finite() {
                let message = not_finite.unwrap_or_default().into_bytes();
                let message = processes.broadcast_any(micro % world, message)?;
                let message = String::from_utf8_lossy(&message).into_owned();
                return Err(Failure::Diverged(message).into());
            }
            sum += value;
        }
        let before = processes.bytes_sent();
        let last = (count - 1) % world;
        gradients.exchange(|number, sum| self.exchange(last, number, sum))?;
        processes.settle()?;
        self.sums_sent += processes.bytes_sent() - before;
        Ok(sum)
    }
}

/// The way of running sums through the micro-batches of a step.
struct Chain<'a> {
    processes: &'a dyn Communicator,
    micro: usize,
    count: usize,
}

impl Relay for Chain<'_> {
    fn is_first(&self) -> bool {
        self.micro == 0
    }

    fn receive(&mut self, number: usize, sum: &mut [f32]) -> Result<()> {
        let before = (self.micro - 1) % self.processes.world();
        let received = self.processes.receive(before, Tag::sum(number), f32_bytes(sum));
        received.map_err(candle_core::Error::wrap)
    }

    fn send(&mut self, number: usize, sum: &mut [f32]) -> Result<()> {
        if self.micro + 1 == self.count {
            return Ok(());
        }
        let next = (self.micro + 1) % self.processes.world();
        let sent = self.processes.send(next, Tag::sum(number), f32_bytes(sum));
        sent.map_err(candle_core::Error::wrap)
    }
}
