//! One optimizer step over all parameters: gradients, clipping, the rule of each parameter, rank changes.

use super::adamw::{AdamwState, AdamwStep};
use super::dlra::{DlraState, DlraStep, DlraUpdate};
use super::gradient::{Gradient, TrainedGradients, clip_factor};
use super::rank::{RankDecision, RankPolicy};
use super::schedule::Schedule;
use super::state::{StateReader, name};
use crate::checkpoint::TensorReader;
use crate::lowrank::Truncation;
use crate::ops::Gradients;
use crate::params::{ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{AdamwSpec, DlraSpec, Target};
use anyhow::{Context, bail};
use candle_core::Tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Loss and gradients of the current step's batch, micro-batches inside.
pub trait GradientOracle {
    /// Evaluates at these parameters: adds every micro-batch's gradients into `gradients` and returns the mean loss.
    fn evaluate(&mut self, params: &ParamStore, gradients: &mut Gradients) -> anyhow::Result<Evaluation>;
}

/// The result of one gradient evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss over the micro-batches, in nats per token.
    pub loss: f64,
    /// Number of micro-batches whose gradients were summed.
    pub micro_batches: usize,
}

/// Which rules move the parameters.
#[derive(Clone, Debug)]
pub struct OptimizerSettings {
    /// Rule of everything dense.
    pub dense: AdamwSpec,
    /// Rule of the factors of W = B A.
    pub factors: AdamwSpec,
    /// Rule of low-rank weights.
    pub low_rank: DlraSpec,
    /// Rank policy of each target.
    pub ranks: BTreeMap<Target, RankPolicy>,
    /// Learning-rate factor over the run.
    pub schedule: Schedule,
    /// Largest gradient norm; 0 turns clipping off.
    pub grad_clip: f64,
}

/// The optimizer: settings and the state of every parameter.
#[derive(Clone, Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    states: Vec<State>,
}

#[derive(Clone, Debug)]
enum State {
    Adamw(AdamwState),
    Dlra(DlraState),
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
}

impl Optimizer {
    /// Fresh state for these parameters.
    pub fn new(settings: OptimizerSettings, params: &ParamStore) -> anyhow::Result<Self> {
        let state = |parameter: &Parameter| -> anyhow::Result<State> {
            Ok(match &parameter.weight {
                Weight::Dense(tensor) => State::Adamw(AdamwState::new(tensor)?),
                Weight::LowRank(point) => State::Dlra(DlraState::new(point, &settings.low_rank)?),
            })
        };
        let states = params.iter().map(|(_, parameter)| state(parameter)).collect::<anyhow::Result<_>>()?;
        Ok(Self { settings, states })
    }

    /// The rules in force.
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// One step, counted from 1.
    ///
    /// # Errors
    /// If a parameter has no gradient, a gradient is not finite, or a factorisation fails; then no parameter and no state has changed.
    pub fn step(
        &mut self,
        params: &mut ParamStore,
        oracle: &mut dyn GradientOracle,
        gradients: &mut Gradients,
        step: u64,
    ) -> anyhow::Result<StepReport> {
        gradients.reset();
        let evaluation = oracle.evaluate(params, gradients)?;
        let mean = 1.0 / evaluation.micro_batches as f64;
        let low_rank_started = Instant::now();
        let trained = TrainedGradients::collect(params, gradients)?;
        let gradient_norm = trained.norm * mean;
        let gradient_scale = mean * clip_factor(gradient_norm, self.settings.grad_clip);
        let schedule_factor = self.settings.schedule.factor(step);

        let updates = self.low_rank_updates(params, &trained, step, gradient_scale, schedule_factor)?;
        let mut truncations = Vec::new();
        for (id, update) in updates {
            params.set(id, Weight::LowRank(update.point));
            self.states[id.0] = State::Dlra(update.state);
            truncations.extend(update.truncation.map(|truncation| (id, truncation)));
        }
        let low_rank_time = low_rank_started.elapsed();

        let dense_started = Instant::now();
        self.dense_updates(params, &trained, step, gradient_scale, schedule_factor)?;
        let dense_time = dense_started.elapsed();
        Ok(StepReport { loss: evaluation.loss, gradient_norm, schedule_factor, truncations, dense_time, low_rank_time })
    }

    /// The updates of all low-rank weights, computed side by side; nothing is changed yet.
    fn low_rank_updates(
        &self,
        params: &ParamStore,
        trained: &TrainedGradients,
        step: u64,
        gradient_scale: f64,
        schedule_factor: f64,
    ) -> anyhow::Result<Vec<(ParamId, DlraUpdate)>> {
        let weights: Vec<_> = params.low_rank().collect();
        weights
            .par_iter()
            .map(|(id, parameter, point)| {
                let (State::Dlra(state), Gradient::Tangent(gradient)) = (&self.states[id.0], &trained.gradients[id.0]) else {
                    bail!("`{}` is low-rank but its optimizer state is not", parameter.name)
                };
                let hyper = DlraStep {
                    settings: &self.settings.low_rank,
                    learning_rate: self.settings.low_rank.learning_rate * schedule_factor,
                    step,
                    gradient_scale,
                    rank: self.rank_policy(parameter).decide(step, point.rank()),
                };
                let mut update =
                    state.step(point, gradient, &hyper).with_context(|| format!("the low-rank step of `{}` failed", parameter.name))?;
                if hyper.rank == RankDecision::Keep {
                    update.truncation = None;
                }
                Ok((*id, update))
            })
            .collect()
    }

    fn rank_policy(&self, parameter: &Parameter) -> RankPolicy {
        match parameter.role {
            Role::Matrix(place) => self.settings.ranks.get(&place.target).copied().unwrap_or(RankPolicy::Fixed),
            _ => RankPolicy::Fixed,
        }
    }

    fn dense_updates(
        &mut self,
        params: &mut ParamStore,
        trained: &TrainedGradients,
        step: u64,
        gradient_scale: f64,
        schedule_factor: f64,
    ) -> anyhow::Result<()> {
        for index in 0..params.len() {
            let id = ParamId(index);
            let (State::Adamw(state), Gradient::Dense(gradient)) = (&mut self.states[index], &trained.gradients[index]) else { continue };
            let parameter = params.get(id);
            let rule = if matches!(parameter.role, Role::Factor(_)) { &self.settings.factors } else { &self.settings.dense };
            let mut weight = params.dense(id)?.clone();
            // Decay acts on matrices only: norms and biases are offsets and scales that should not shrink.
            let weight_decay = if weight.rank() > 1 { rule.weight_decay } else { 0.0 };
            let hyper = AdamwStep {
                learning_rate: rule.learning_rate * schedule_factor,
                beta1: rule.beta1,
                beta2: rule.beta2,
                epsilon: rule.epsilon,
                weight_decay,
                step,
                gradient_scale,
            };
            state.step(&mut weight, gradient, &hyper)?;
            params.set(id, Weight::Dense(weight));
        }
        Ok(())
    }

    /// All state as named tensors, `<parameter>/<leaf>`.
    pub fn named_tensors(&self, params: &ParamStore) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        for (id, parameter) in params.iter() {
            let leaves = match &self.states[id.0] {
                State::Adamw(state) => vec![("first".to_string(), state.first.clone()), ("second".to_string(), state.second.clone())],
                State::Dlra(state) => state.named_tensors(),
            };
            tensors.extend(leaves.into_iter().map(|(leaf, tensor)| (name(&parameter.name, &leaf), tensor)));
        }
        tensors
    }

    /// State read back for parameters that are already restored.
    ///
    /// # Errors
    /// If a leaf is missing, has another shape, or is left over.
    pub fn load(settings: OptimizerSettings, params: &ParamStore, mut reader: TensorReader) -> anyhow::Result<Self> {
        let mut states = Vec::with_capacity(params.len());
        for (_, parameter) in params.iter() {
            let mut leaves = StateReader::new(&mut reader, &parameter.name);
            states.push(match &parameter.weight {
                Weight::Dense(tensor) => {
                    let (first, second) = (leaves.take_like("first", tensor)?, leaves.take_like("second", tensor)?);
                    State::Adamw(AdamwState { first, second })
                }
                Weight::LowRank(point) => State::Dlra(DlraState::load(point, &settings.low_rank, &mut leaves)?),
            });
        }
        reader.finish()?;
        Ok(Self { settings, states })
    }
}
