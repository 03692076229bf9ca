//! What a training step needs, and the step: shared by the session and by `lrpt bench`.

use super::cut::cut_imported;
use super::init::initial_parameters;
use super::init_report::InitReport;
use super::oracle::{BatchOracle, OracleTimes};
use super::settings::{compute, model_config, optimizer_settings};
use crate::account::FlopLedger;
use crate::checkpoint::{Snapshot, tensors_from_bytes, tensors_to_bytes};
use crate::data::{Batches, TokenShard};
use crate::model::{Network, build, restore};
use crate::ops::Gradients;
use crate::optim::{Optimizer, Owners, StepReport, WeightSize, carried_flops, cut_flops};
use crate::parallel::{Alone, Communicator};
use crate::params::{ParamStore, Place, Role, TensorReader, Weight};
use crate::rng;
use crate::spec::Plan;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;
use std::time::Instant;

/// Network, parameters, optimizer and batches of a plan.
pub struct Trainer<'a> {
    plan: &'a Plan,
    device: &'a Device,
    /// The network.
    pub model: Box<dyn Network>,
    /// Its parameters.
    pub params: ParamStore,
    /// Their rules and moments.
    pub optimizer: Optimizer,
    /// Where fresh parameters came from, if not from the seed.
    pub init: Option<InitReport>,
    gradients: Gradients,
    batches: Batches,
    processes: &'a dyn Communicator,
}

/// A step and where its time went.
#[derive(Clone, Debug)]
pub struct TimedStep {
    /// What the optimizer did.
    pub report: StepReport,
    /// Time of data, forward and backward.
    pub times: OracleTimes,
    /// Wall-clock seconds of the whole step.
    pub seconds: f64,
    /// Bytes of gradient sums and of weights that this process has sent.
    pub bytes_sent: u64,
}

impl<'a> Trainer<'a> {
    /// Parameters as initialised from the plan's seed or source, for a vocabulary of this size;
    /// `text` is what is trained on.
    ///
    /// # Errors
    /// If the text is shorter than one sequence, or a tensor cannot be made.
    pub fn fresh(
        plan: &'a Plan,
        device: &'a Device,
        vocabulary_size: usize,
        text: Arc<TokenShard>,
    ) -> Result<Self> {
        let mut model = build(model_config(plan, vocabulary_size))?;
        let (mut params, mut init) = initial_parameters(plan, model.as_ref(), device)?;
        if let Some(cut) = plan.cut {
            model.set_compute(compute(plan));
            let batches = batches(plan, text.clone(), cut.batches().unwrap_or(1))?;
            let cuts = cut_imported(plan, cut, model.as_ref(), &mut params, &batches, device)?;
            init = init.map(|init| init.cut_further(cuts));
        }
        let optimizer = Optimizer::new(optimizer_settings(plan, device), &params)?;
        let trainer = Self::new(plan, device, model, params, optimizer, text)?;
        Ok(Self { init, ..trainer })
    }

    /// Parameters and optimizer as a checkpoint has them.
    ///
    /// # Errors
    /// As for [`Self::fresh`], or if the checkpoint does not fit the plan.
    pub fn restored(
        plan: &'a Plan,
        device: &'a Device,
        snapshot: Snapshot,
        text: Arc<TokenShard>,
    ) -> Result<Self> {
        let (model, params) = restore(&snapshot.config, snapshot.model, DType::F32, device)?;
        let optimizer = Optimizer::load(
            optimizer_settings(plan, device),
            &params,
            TensorReader::new("optimizer.safetensors", snapshot.optimizer),
        )?;
        Self::new(plan, device, model, params, optimizer, text)
    }

    fn new(
        plan: &'a Plan,
        device: &'a Device,
        mut model: Box<dyn Network>,
        params: ParamStore,
        optimizer: Optimizer,
        text: Arc<TokenShard>,
    ) -> Result<Self> {
        let batches = batches(plan, text, plan.train.gradient_accumulation_steps)?;
        let gradients = Gradients::new(params.slot_count());
        model.set_compute(compute(plan));
        let processes = &Alone;
        let init = None;
        Ok(Self { plan, device, model, params, optimizer, init, gradients, batches, processes })
    }

    /// The same, its micro-batches shared out over processes that all call this and hold the same
    /// parameters and moments; the plan may say that each keeps the moments of its own share only.
    pub fn shared_over(mut self, processes: &'a dyn Communicator) -> Self {
        if self.plan.train.data_parallel.shard_optimizer && processes.is_shared() {
            let rules = &self.plan.optimizer;
            let (rank, world) = (processes.rank(), processes.world());
            self.optimizer.share_out(Owners::new(rules, &self.params, rank, world));
        }
        Self { processes, ..self }
    }

    /// The same after this many rollbacks: batches in the order of another seed, and every learning
    /// rate times 2 to the power of −`rollbacks`. A pure function of the plan and the number; none
    /// changes nothing.
    pub fn after_rollbacks(mut self, rollbacks: u64) -> Self {
        if rollbacks > 0 {
            let seed = rng::key64(self.plan.seed, "rollback", &[rollbacks]);
            self.batches = self.batches.with_seed(seed);
            self.optimizer.scale_rates(0.5f64.powi(rollbacks.min(1000) as i32));
        }
        self
    }

    /// The text that is trained on.
    pub fn text(&self) -> Arc<TokenShard> {
        self.batches.text()
    }

    /// Tokens that a step (from 1) is trained on.
    pub fn tokens_of_step(&self, step: u64) -> u64 {
        self.batches.trained_tokens(step - 1).unwrap_or(self.plan.tokens_per_step)
    }

    /// Counted operations of a step (from 1), all its evaluations and its rank cut together, at the
    /// ranks the weights have now.
    pub fn flops_of_step(&self, step: u64) -> u64 {
        let rank = |layer, target| {
            let place = Place { layer, target };
            let (_, _, point) = self
                .params
                .low_rank()
                .find(|(_, parameter, _)| parameter.role == Role::Matrix(place))?;
            Some(point.rank())
        };
        let tokens = self.plan.tokens_per_step;
        let batches = self.optimizer.cut_batches(step);
        let of_all = |of: &dyn Fn(WeightSize) -> u64| -> u64 {
            let of = |rows: usize, columns: usize, rank: usize| {
                let [rows, columns, rank] = [rows, columns, rank].map(|size| size as u64);
                of(WeightSize { rows, columns, rank })
            };
            let of = |weight: &Weight| match weight {
                Weight::Dense(_) => 0,
                Weight::LowRank(point) => of(point.rows(), point.columns(), point.rank()),
                Weight::Uncut(w) => w.dims2().map_or(0, |(rows, columns)| of(rows, columns, 0)),
            };
            self.params.iter().map(|(_, parameter)| of(&parameter.weight)).sum()
        };
        let cut = |norm| {
            let dlra = self.plan.optimizer.dlra();
            let of = |dlra| of_all(&|size| cut_flops(dlra, norm, size, batches * tokens));
            dlra.map_or(0, of)
        };
        let carried = self.plan.rank.moment_decay().map_or(0, |_| {
            let measured = if self.optimizer.only_measures(step) { tokens } else { 0 };
            of_all(&|size| carried_flops(size, measured))
        });
        let vocabulary = self.model.config().vocab_size as u64;
        let ledger = FlopLedger::at_step(self.plan, vocabulary, step, &rank);
        let cuts = self
            .optimizer
            .cut_norm(step)
            .map_or(0, |norm| cut(norm) + (batches - 1) * tokens * ledger.training_per_token);
        ledger.per_step(tokens) + cuts + carried
    }

    /// The moments of all parameters, in host memory, on the process that writes; called by all
    /// processes together, of which the others get nothing.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device, or the connection fails.
    pub fn moments(&self) -> Result<Vec<(String, Tensor)>> {
        let processes = self.processes;
        if self.optimizer.owners().is_none() && !processes.is_root() {
            return Ok(Vec::new());
        }
        let mut own = host(self.optimizer.named_tensors(&self.params)?)?;
        if self.optimizer.owners().is_none() {
            return Ok(own);
        }
        if !processes.is_root() {
            processes.send_any(0, &tensors_to_bytes(&own)?)?;
            processes.settle()?;
            return Ok(Vec::new());
        }
        for rank in 1..processes.world() {
            own.extend(tensors_from_bytes(&processes.receive_any(rank)?)?);
        }
        Ok(own)
    }

    /// Network and parameters after `step`, in host memory, with these [moments](Self::moments);
    /// `state` is what the caller must know beside them.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn snapshot(
        &self,
        step: u64,
        moments: Vec<(String, Tensor)>,
        state: serde_json::Value,
    ) -> Result<Snapshot> {
        Ok(Snapshot {
            step,
            config: serde_json::to_value(self.model.config())?,
            model: host(self.params.named_tensors())?,
            optimizer: moments,
            state,
        })
    }

    /// BLAKE3 of all parameters in their order, in hexadecimal.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn hash_of_parameters(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for (_, tensor) in self.params.named_tensors() {
            let numbers = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Takes a step, counted from 1: the batch of that step, forward, backward, update.
    ///
    /// # Errors
    /// [`Failure::Diverged`](crate::error::Failure::Diverged) if the loss or a gradient is not
    /// finite; then nothing has changed.
    pub fn step(&mut self, step: u64) -> Result<TimedStep> {
        let started = Instant::now();
        let owners = self.optimizer.owners();
        let mut oracle = BatchOracle {
            model: self.model.as_ref(),
            batches: &self.batches,
            device: self.device,
            seed: self.plan.seed,
            step,
            micro_batches: self.plan.train.gradient_accumulation_steps,
            processes: self.processes,
            owners: owners.as_deref(),
            is_deterministic: self.plan.train.data_parallel.deterministic,
            sums_sent: 0,
            times: OracleTimes::default(),
        };
        let (params, gradients) = (&mut self.params, &mut self.gradients);
        let report =
            self.optimizer.step_among(params, &mut oracle, gradients, step, self.processes)?;
        let BatchOracle { times, sums_sent, .. } = oracle;
        let (seconds, bytes_sent) =
            (started.elapsed().as_secs_f64(), sums_sent + report.weights_sent);
        Ok(TimedStep { report, times, seconds, bytes_sent })
    }
}

/// The same tensors in host memory.
fn host(tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let host = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_device(&Device::Cpu)?));
    tensors.into_iter().map(host).collect()
}

/// The plan's batches of a text, this many a step.
fn batches(plan: &Plan, text: Arc<TokenShard>, micro_batches: usize) -> Result<Batches> {
    let (block_size, batch_size) = (plan.model.block_size, plan.train.batch_size);
    let batches = Batches::new(text, block_size, batch_size, micro_batches, plan.seed)?;
    if plan.train.packing { batches.packed() } else { Ok(batches) }
}
