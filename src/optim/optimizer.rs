//! One optimizer step over all parameters: gradients, clipping, the rule of each parameter, rank
//! changes.

mod low_rank;

use super::adamw::{AdamwState, AdamwStep};
use super::dlra::DlraState;
use super::execution::{Execution, wait_for};
use super::galore::GaloreState;
use super::gradient::{Gradient, TrainedGradients, clip_factor};
use super::heavy_ball::HeavyBallState;
use super::loro::{self, LoroCycle};
use super::muon::MuonState;
use super::rank::RankSchedule;
use super::schedule::Schedule;
use super::state::{StateReader, name};
use crate::lowrank::Truncation;
use crate::ops::Gradients;
use crate::params::{ParamId, ParamStore, Parameter, Role, TensorReader, Weight};
use crate::spec::{AdamwSpec, DlraSpec, HeavyBallSpec, LoroSpec, MatrixOptimizerSpec, RankNorm};
use anyhow::bail;
use candle_core::Tensor;
use low_rank::{FirstGradients, LowRankUpdates};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Loss and gradients of the current step's batch, micro-batches inside.
pub trait GradientOracle {
    /// Evaluates at these parameters, which need not be those of the last call: adds every
    /// micro-batch's gradients into `gradients` and returns the mean loss.
    fn evaluate(
        &mut self,
        params: &ParamStore,
        gradients: &mut Gradients,
    ) -> anyhow::Result<Evaluation>;
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
    /// Rule of the blocks' full matrices where it is not that of everything dense.
    pub matrices: Option<MatrixOptimizerSpec>,
    /// Rule of the factors of W = B A and W = U S Vᵀ.
    pub factors: FactorRule,
    /// Rule of low-rank weights.
    pub low_rank: DlraSpec,
    /// How ranks change.
    pub ranks: RankSchedule,
    /// Learning-rate factor over the run.
    pub schedule: Schedule,
    /// Largest gradient norm; 0 turns clipping off.
    pub grad_clip: f64,
    /// By which code, and where.
    pub execution: Execution,
}

/// Rule of free factors.
#[derive(Clone, Debug)]
pub enum FactorRule {
    /// AdamW on each.
    Adamw(AdamwSpec),
    /// Heavy ball on each.
    HeavyBall(HeavyBallSpec),
    /// LORO on the pairs of W = B A.
    Loro(LoroSpec),
}

/// The optimizer: settings and the state of every parameter.
#[derive(Clone, Debug)]
pub struct Optimizer {
    pub(super) settings: OptimizerSettings,
    pub(super) states: Vec<State>,
}

/// The state of one parameter, by the rule that moves it.
#[derive(Clone, Debug)]
pub(super) enum State {
    Adamw(AdamwState),
    Muon(MuonState),
    Galore(GaloreState),
    HeavyBall(HeavyBallState),
    Dlra(DlraState),
}

impl State {
    /// Zero moments for a parameter, by the rule that moves it.
    fn new(settings: &OptimizerSettings, parameter: &Parameter) -> candle_core::Result<Self> {
        Ok(match (&parameter.weight, parameter.role, &settings.factors, &settings.matrices) {
            (Weight::LowRank(point), ..) => State::Dlra(DlraState::new(point, &settings.low_rank)?),
            (Weight::Dense(tensor), Role::Matrix(_), _, Some(MatrixOptimizerSpec::Muon(_))) => {
                State::Muon(MuonState::new(tensor)?)
            }
            (
                Weight::Dense(tensor),
                Role::Matrix(_),
                _,
                Some(MatrixOptimizerSpec::Galore(rule)),
            ) => State::Galore(GaloreState::new(tensor, rule.rank)?),
            (Weight::Dense(tensor), Role::Factor(..), FactorRule::HeavyBall(_), _) => {
                State::HeavyBall(HeavyBallState::new(tensor)?)
            }
            (Weight::Dense(tensor), ..) => State::Adamw(AdamwState::new(tensor)?),
        })
    }
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
        let states = params
            .iter()
            .map(|(_, parameter)| State::new(&settings, parameter))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { settings, states })
    }

    /// The rules in force.
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// The norm of the rank cut that a step (counted from 1) ends with; none if it has no cut.
    pub fn cut_norm(&self, step: u64) -> Option<RankNorm> {
        self.rank_change(step).and_then(|step| self.settings.ranks.cut_norm(step))
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
        gradients.reset();
        let change = self.rank_change(step);
        if self.cut_norm(step) == Some(RankNorm::Fisher) {
            gradients.want_grams();
        }
        let evaluation = oracle.evaluate(params, gradients)?;
        let mean = 1.0 / evaluation.micro_batches as f64;
        let low_rank_started = Instant::now();
        let trained = TrainedGradients::collect(params, gradients, self.settings.execution)?;
        let gradient_norm = trained.norm * mean;
        let gradient_scale = mean * clip_factor(gradient_norm, self.settings.grad_clip);
        let cycle = self.loro_cycle(step);
        let schedule_factor =
            self.settings.schedule.factor(step) * cycle.map_or(1.0, |cycle| cycle.warmup);

        let first = FirstGradients { trained: &trained, step, gradient_scale, schedule_factor };
        let LowRankUpdates { updates, evaluation_time } =
            self.low_rank_updates(params, oracle, first, change)?;
        let updates = self.cut(params, updates, gradients, change)?;
        wait_for(updates.first().map(|(_, update)| &update.point.u))?;
        let low_rank_computed = low_rank_started.elapsed().saturating_sub(evaluation_time);
        let dense_started = Instant::now();
        let mut matrices =
            self.matrix_updates(params, &trained, step, gradient_scale, schedule_factor)?;
        matrices.extend(self.pair_updates(
            params,
            &trained,
            cycle,
            gradient_scale,
            schedule_factor,
        )?);
        let matrix_time = dense_started.elapsed();
        let low_rank_started = Instant::now();
        let mut truncations = Vec::new();
        for (id, update) in updates {
            params.set(id, Weight::LowRank(update.point));
            self.states[id.0] = State::Dlra(update.state);
            truncations.extend(update.truncation.map(|truncation| (id, truncation)));
        }
        let low_rank_time = low_rank_computed + low_rank_started.elapsed();

        let dense_started = Instant::now();
        for (id, weight, state) in matrices {
            params.set(id, Weight::Dense(weight));
            self.states[id.0] = state;
        }
        self.dense_updates(params, &trained, step, cycle, gradient_scale, schedule_factor)?;
        if cycle.is_some_and(|cycle| cycle.exact) {
            self.restart_moments()?;
        }
        wait_for(params.iter().next().and_then(|(_, parameter)| {
            parameter.weight.leaves().first().map(|(_, tensor)| *tensor)
        }))?;
        let dense_time = matrix_time + dense_started.elapsed();
        Ok(StepReport {
            loss: evaluation.loss,
            gradient_norm,
            schedule_factor,
            truncations,
            dense_time,
            low_rank_time,
        })
    }

    fn dense_updates(
        &mut self,
        params: &mut ParamStore,
        trained: &TrainedGradients,
        step: u64,
        cycle: Option<LoroCycle>,
        gradient_scale: f64,
        schedule_factor: f64,
    ) -> anyhow::Result<()> {
        let rank_shares =
            if cycle.is_some() { loro::rank_shares(params)? } else { BTreeMap::new() };
        for index in 0..params.len() {
            let id = ParamId(index);
            let Gradient::Dense(gradient) = &trained.gradients[index] else { continue };
            let parameter = params.get(id);
            let is_factor = matches!(parameter.role, Role::Factor(..));
            let mut weight = params.dense(id)?.clone();
            match (&mut self.states[index], &self.settings.factors) {
                (State::Adamw(state), factors) => {
                    let rule = match (factors, rank_shares.get(&id)) {
                        (FactorRule::Adamw(rule), _) if is_factor => rule,
                        // Computed with the matrices, side by side.
                        (FactorRule::Loro(_), Some(_))
                            if cycle.is_some_and(|cycle| cycle.exact) =>
                        {
                            continue;
                        }
                        (FactorRule::Loro(rule), Some(share)) => &rule.between_exact_steps(*share),
                        _ => &self.settings.dense,
                    };
                    // Decay acts on matrices only: norms and biases are offsets and scales that
                    // should not shrink.
                    let weight_decay = if weight.rank() > 1 { rule.weight_decay } else { 0.0 };
                    let hyper = AdamwStep {
                        learning_rate: rule.learning_rate * schedule_factor,
                        beta1: rule.beta1,
                        beta2: rule.beta2,
                        epsilon: rule.epsilon,
                        weight_decay,
                        step: cycle.map_or(step, |cycle| cycle.moment_step),
                        gradient_scale,
                        compute: self.settings.execution.compute,
                    };
                    state.step(&mut weight, gradient, &hyper)?;
                }
                (State::HeavyBall(state), FactorRule::HeavyBall(rule)) => {
                    let compute = self.settings.execution.compute;
                    state.step(
                        compute,
                        &mut weight,
                        gradient,
                        rule,
                        rule.learning_rate * schedule_factor,
                        gradient_scale,
                    )?;
                }
                // Computed with the low-rank weights, side by side.
                (State::Muon(_) | State::Galore(_) | State::Dlra(_), _) => continue,
                (State::HeavyBall(_), FactorRule::Adamw(_) | FactorRule::Loro(_)) => {
                    bail!("`{}` has a momentum of another rule", parameter.name)
                }
            }
            params.set(id, Weight::Dense(weight));
        }
        Ok(())
    }

    /// All state as named tensors, `<parameter>/<leaf>`.
    pub fn named_tensors(&self, params: &ParamStore) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        for (id, parameter) in params.iter() {
            let leaves = match &self.states[id.0] {
                State::Adamw(state) => vec![
                    ("first".to_string(), state.first.clone()),
                    ("second".to_string(), state.second.clone()),
                ],
                State::Muon(MuonState { first }) | State::HeavyBall(HeavyBallState { first }) => {
                    vec![("first".to_string(), first.clone())]
                }
                State::Galore(state) => state.named_tensors(),
                State::Dlra(state) => state.named_tensors(),
            };
            tensors.extend(
                leaves.into_iter().map(|(leaf, tensor)| (name(&parameter.name, &leaf), tensor)),
            );
        }
        tensors
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
        let mut states = Vec::with_capacity(params.len());
        for (_, parameter) in params.iter() {
            let mut leaves = StateReader::new(&mut reader, &parameter.name);
            states.push(match (State::new(&settings, parameter)?, &parameter.weight) {
                (State::Dlra(_), Weight::LowRank(point)) => {
                    State::Dlra(DlraState::load(point, &settings.low_rank, &mut leaves)?)
                }
                (State::Muon(like), _) => {
                    State::Muon(MuonState { first: leaves.take_like("first", &like.first)? })
                }
                (State::HeavyBall(like), _) => State::HeavyBall(HeavyBallState {
                    first: leaves.take_like("first", &like.first)?,
                }),
                (State::Galore(like), _) => State::Galore(like.load(&mut leaves)?),
                (State::Adamw(like), _) => State::Adamw(like.load(&mut leaves)?),
                (State::Dlra(_), Weight::Dense(_)) => {
                    bail!("`{}` is dense and has the state of a low-rank weight", parameter.name)
                }
            });
        }
        reader.finish()?;
        Ok(Self { settings, states })
    }
}
