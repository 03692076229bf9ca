//! One optimizer step: collect gradients, let every group propose, then commit all.

use super::execution::{Execution, wait_for};
use super::gradient::TrainedGradients;
use super::owners::Owners;
use super::rank::RankEvent;
use super::rule::{Group, Step};
use super::rules::{self, MomentClock};
use super::schedule::Schedule;
use super::shards::Shards;
use crate::lowrank::Truncation;
use crate::ops::Gradients;
use crate::parallel::{Alone, Communicator};
use crate::params::{ParamId, ParamStore, TensorReader};
use crate::spec::{OptimizerPlan, RankNorm, RankPlan};
use candle_core::Tensor;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Loss and gradients of the current step's batch, summed over its micro-batches.
pub trait GradientOracle {
    /// Evaluates at these parameters, which need not be those of the last call: adds every
    /// micro-batch's gradients into `gradients` and returns the mean loss.
    ///
    /// # Errors
    /// If the loss is not finite.
    fn evaluate(
        &mut self,
        params: &ParamStore,
        gradients: &mut Gradients,
    ) -> anyhow::Result<BatchLoss>;

    /// The same of the batch of the step that lies this many steps before this one, at these
    /// parameters.
    ///
    /// # Errors
    /// As [`Self::evaluate`]; or if there is no such step, as where there is one batch alone.
    fn evaluate_earlier(
        &mut self,
        steps_before: u64,
        _params: &ParamStore,
        _gradients: &mut Gradients,
    ) -> anyhow::Result<BatchLoss> {
        anyhow::bail!("there is no batch of {steps_before} steps before")
    }
}

/// The result of one gradient evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLoss {
    /// Mean loss over the micro-batches, in nats per token.
    pub loss: f64,
    /// Number of micro-batches whose gradients were summed.
    pub micro_batches: usize,
}

/// Which rules move the parameters.
#[derive(Clone, Debug)]
pub struct OptimizerSettings {
    /// The rules of dense parameters, full matrices, factors and low-rank weights.
    pub rules: OptimizerPlan,
    /// How ranks change.
    pub ranks: RankPlan,
    /// Learning-rate factor over the run.
    pub schedule: Schedule,
    /// Largest gradient norm; 0 turns clipping off.
    pub grad_clip: f64,
    /// Whether kernels compute, and whether linear algebra runs on the host or on the device.
    pub execution: Execution,
}

impl OptimizerSettings {
    /// What happens to ranks at a step, counted from 1.
    ///
    /// Under `coefficient_cycle` the events of a cycle take effect at its last step: the last cut
    /// counts or, if there is none, the last growth.
    fn rank_event(&self, step: u64) -> RankEvent {
        let window =
            self.rules.dlra().and_then(|dlra| dlra.rank_window(step, self.schedule.max_steps()));
        window.map_or(RankEvent::None, |first| self.ranks.event_within(first, step))
    }
}

/// Groups of parameters, each with its rule, under one clipping and one schedule.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    groups: Vec<Box<dyn Group>>,
    /// Who moves which parameter, where not this process all of them.
    owners: Option<Arc<Owners>>,
}

/// What a step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Mean loss of the step's batch before the step.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// Factor of the schedule at this step.
    pub schedule_factor: f64,
    /// Truncations that decided ranks at this step.
    pub truncations: Vec<(ParamId, Truncation)>,
    /// Time of all dense updates.
    pub dense_time: Duration,
    /// Time of all low-rank updates, factorisations included.
    pub low_rank_time: Duration,
    /// Bytes of weights that this process sent to others that do not move them.
    pub weights_sent: u64,
}

impl Optimizer {
    /// Fresh state for these parameters.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(settings: OptimizerSettings, params: &ParamStore) -> anyhow::Result<Self> {
        let groups = rules::groups(&settings, params)?;
        Ok(Self { settings, groups, owners: None })
    }

    /// The rules in force.
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// Moves only this process's own parameters from now on, and forgets the state of all others.
    pub fn share_out(&mut self, owners: Owners) {
        self.groups.iter_mut().for_each(|group| group.retain(&|id| owners.owns(id)));
        self.owners = Some(Arc::new(owners));
    }

    /// Who moves which parameter; none where this process moves all of them.
    pub fn owners(&self) -> Option<Arc<Owners>> {
        self.owners.clone()
    }

    /// Multiplies every learning rate from now on.
    pub fn scale_rates(&mut self, scale: f64) {
        self.settings.schedule = self.settings.schedule.clone().scaled(scale);
    }

    /// The norm of the rank cut that a step (counted from 1) ends with; none if it has no cut.
    pub fn cut_norm(&self, step: u64) -> Option<RankNorm> {
        self.settings.rank_event(step).cut_norm()
    }

    /// The batches that a rank cut at a step (counted from 1) goes by, its own among them.
    pub fn cut_batches(&self, step: u64) -> u64 {
        self.settings.ranks.batches_at(step)
    }

    /// Whether a step (counted from 1) measures second moments for cuts without being one.
    pub fn only_measures(&self, step: u64) -> bool {
        self.cut_norm(step).is_none() && self.settings.ranks.measures_at(step)
    }

    /// One step, counted from 1.
    ///
    /// # Errors
    /// If a parameter has no gradient, a gradient is not finite, or a factorisation fails; then no
    /// parameter and no state has changed.
    pub fn step(
        &mut self,
        params: &mut ParamStore,
        oracle: &mut dyn GradientOracle,
        gradients: &mut Gradients,
        step: u64,
    ) -> anyhow::Result<StepReport> {
        self.step_among(params, oracle, gradients, step, &Alone)
    }

    /// The same step by the processes that the parameters were [shared out](Self::share_out) to,
    /// which all call this with the same parameters.
    ///
    /// # Errors
    /// As [`Self::step`], on all of them alike; or if the connection fails.
    pub fn step_among(
        &mut self,
        params: &mut ParamStore,
        oracle: &mut dyn GradientOracle,
        gradients: &mut Gradients,
        step: u64,
        processes: &dyn Communicator,
    ) -> anyhow::Result<StepReport> {
        let shards = self.owners.as_deref().map(|owners| Shards::new(owners, processes));
        let shards = shards.as_ref();
        let OptimizerSettings { schedule, grad_clip, execution, .. } = &self.settings;
        let rank = self.settings.rank_event(step);
        gradients.reset();
        self.groups.iter().for_each(|group| group.ask(gradients));
        let mut batches_measured = 1;
        let is_fisher_cut = rank.cut_norm() == Some(RankNorm::Fisher);
        let measures_for_cuts = is_fisher_cut || self.settings.ranks.measures_at(step);
        if measures_for_cuts {
            gradients.want_grams();
        }
        if is_fisher_cut {
            batches_measured = self.cut_batches(step);
            for before in (1..batches_measured).rev() {
                oracle.evaluate_earlier(before, params, gradients)?;
                gradients.set_grams_by()?;
            }
        }
        let evaluation = oracle.evaluate(params, gradients)?;
        gradients.join_grams()?;

        let started = Instant::now();
        let micro_batches = evaluation.micro_batches;
        let (clip, execution) = (*grad_clip, *execution);
        let trained =
            TrainedGradients::collect(params, gradients, micro_batches, clip, execution, shards)?;
        let moments = MomentClock::at(self.settings.rules.loro(), step);
        let step = Step {
            number: step,
            gradients: &trained,
            slots: gradients,
            batches_measured,
            measures_for_cuts,
            schedule_factor: schedule.factor(step) * moments.warmup,
            moments,
            rank,
            execution,
            shards,
        };
        let mut times = Times { dense: Duration::ZERO, low_rank: started.elapsed() };
        for group in &mut self.groups {
            let started = Instant::now();
            let evaluating = step.agreed(group.propose(params, oracle, &step))?;
            wait_for(params)?;
            times.add(group.is_low_rank(), started.elapsed().saturating_sub(evaluating));
        }
        let mut truncations = Vec::new();
        for group in &mut self.groups {
            let started = Instant::now();
            truncations.extend(step.agreed(group.commit(params, &step))?);
            wait_for(params)?;
            times.add(group.is_low_rank(), started.elapsed());
        }
        if let Some(shards) = shards {
            let trained = params.iter().filter(|(_, parameter)| parameter.trained);
            let trained: Vec<ParamId> = trained.map(|(id, _)| id).collect();
            shards.spread(params, &trained)?;
            if step.rank != RankEvent::None {
                truncations = shards.truncations(&trained, &truncations)?;
            }
        }
        Ok(StepReport {
            loss: evaluation.loss,
            gradient_norm: trained.norm,
            schedule_factor: step.schedule_factor,
            truncations,
            dense_time: times.dense,
            low_rank_time: times.low_rank,
            weights_sent: shards.map_or(0, Shards::sent),
        })
    }

    /// All state of this process's parameters as named tensors, `<parameter>/<leaf>`.
    ///
    /// # Errors
    /// If a number does not fit its form in a file.
    pub fn named_tensors(&self, params: &ParamStore) -> anyhow::Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for group in &self.groups {
            tensors.extend(group.named_tensors(params)?);
        }
        Ok(tensors)
    }

    /// State read back for parameters that are already restored.
    ///
    /// # Errors
    /// If a leaf is missing, has another shape, or is left over.
    pub fn load(
        settings: OptimizerSettings,
        params: &ParamStore,
        mut reader: TensorReader,
    ) -> anyhow::Result<Self> {
        let mut optimizer = Self::new(settings, params)?;
        for group in &mut optimizer.groups {
            group.load(params, &mut reader)?;
        }
        reader.finish()?;
        Ok(optimizer)
    }
}

/// Where a step's time went.
struct Times {
    dense: Duration,
    low_rank: Duration,
}

impl Times {
    fn add(&mut self, is_low_rank: bool, elapsed: Duration) {
        *if is_low_rank { &mut self.low_rank } else { &mut self.dense } += elapsed;
    }
}
