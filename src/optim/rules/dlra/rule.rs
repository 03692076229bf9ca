//! The group of all low-rank weights: the integrator's passes over them, growth and cuts.

use super::cut::{Next, Update, cut, target_of};
use super::side_by_side::{Item, step_all};
use super::{DlraState, DlraStep, DlraUpdate, GalerkinStep, UncutState};
use crate::error::Failure;
use crate::lowrank::{LowRank, Tangent, Truncation};
use crate::ops::Gradients;
use crate::optim::elementwise::sums_of_squares;
use crate::optim::execution::{Placement, map_all};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::optimizer::{GradientOracle, OptimizerSettings};
use crate::optim::rank::{RankDecision, RankEvent};
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{CyclePhase, DlraSpec, Integrator, RankPlan, Target};
use anyhow::{Context, bail};
use candle_core::Tensor;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// DLRA on the low-rank weights.
#[derive(Debug)]
pub struct DlraRule {
    spec: DlraSpec,
    ranks: RankPlan,
    last_step: u64,
    /// Truncations of the proposed step that decided ranks.
    truncations: Vec<(ParamId, Truncation)>,
}

/// What is kept for a weight.
#[derive(Clone, Debug)]
pub enum MemberState {
    /// On the manifold.
    Point(DlraState),
    /// Dense until it is cut.
    Uncut(UncutState),
}

impl Leaves for MemberState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        Ok(match self {
            MemberState::Point(state) => MemberState::Point(state.map_leaves(map)?),
            MemberState::Uncut(state) => MemberState::Uncut(state.map_leaves(map)?),
        })
    }
}

/// A low-rank weight with what its step needs.
struct Member<'a> {
    id: ParamId,
    parameter: &'a Parameter,
    point: &'a LowRank,
    /// With what the momentum goes by beside the gradient.
    state: Cow<'a, DlraState>,
    gradient: Scaled<'a, Tangent>,
}

impl DlraRule {
    /// The rule that these settings make.
    pub fn new(spec: DlraSpec, settings: &OptimizerSettings) -> Self {
        Self {
            spec,
            ranks: settings.ranks.clone(),
            last_step: settings.schedule.max_steps(),
            truncations: Vec::new(),
        }
    }
}

/// What was measured for cuts at a parameter: second moments of output gradients and of inputs.
fn cut_moments_of(
    (id, parameter): (ParamId, &Parameter),
    step: &Step,
) -> anyhow::Result<[Tensor; 2]> {
    let moment = |slot| step.second_moment(slot, &parameter.name);
    Ok([moment(ParamStore::slot(id))?, moment(ParamStore::l_slot(id))?])
}

/// The members on the manifold with what their step needs.
fn points_of<'a>(
    members: &'a Members<MemberState>,
    params: &'a ParamStore,
    step: &'a Step,
    rule: &DlraRule,
) -> anyhow::Result<Vec<Member<'a>>> {
    let member = |(id, state): (ParamId, &'a MemberState)| {
        let MemberState::Point(state) = state else { return None };
        let member = || -> anyhow::Result<Member<'a>> {
            let (parameter, point) = (params.get(id), params.point(id)?);
            let state = rule.measured((id, parameter), state, step)?;
            Ok(Member { id, parameter, point, state, gradient: step.gradients.tangent(id)? })
        };
        Some(member())
    };
    members.iter().filter_map(member).collect()
}

impl DlraRule {
    /// The numbers of the step of a weight whose rank changes like this.
    fn numbers(&self, step: &Step, parameter: &Parameter, rank: RankDecision) -> DlraStep<'_> {
        let learning_rate = self.spec.learning_rate * step.schedule_factor;
        let of_head = matches!(parameter.role, Role::Matrix(place) if place.target == Target::HEAD);
        DlraStep { settings: &self.spec, learning_rate, step: step.number, rank, of_head }
    }

    /// The second moment of a weight's inputs, where the momentum goes by it.
    fn inputs_of(
        &self,
        (id, parameter): (ParamId, &Parameter),
        step: &Step,
    ) -> anyhow::Result<Option<Tensor>> {
        let measures = self.spec.momentum.measures_inputs();
        let moment = || step.second_moment(ParamStore::l_slot(id), &parameter.name);
        measures.then(moment).transpose()
    }

    /// A state that has taken in what was measured at its point: the second moment of its weight's
    /// inputs where the momentum goes by it, and what cuts go by where that is carried.
    fn measured<'a>(
        &self,
        (id, parameter): (ParamId, &Parameter),
        state: &'a DlraState,
        step: &Step,
    ) -> anyhow::Result<Cow<'a, DlraState>> {
        let mut state = Cow::Borrowed(state);
        let place = || format!("taking in the second moments of `{}` failed", parameter.name);
        if let Some(inputs) = self.inputs_of((id, parameter), step)? {
            state = Cow::Owned(state.with_inputs(&inputs, &self.spec).with_context(place)?);
        }
        if let Some(decay) = self.carried_decay(step) {
            let [outputs, inputs] = cut_moments_of((id, parameter), step)?;
            let carried = state.with_moments(decay, [&outputs, &inputs]);
            state = Cow::Owned(carried.with_context(place)?);
        }
        Ok(state)
    }

    /// The decay of the second moments that cuts go by, at a step that measures them.
    fn carried_decay(&self, step: &Step) -> Option<f64> {
        self.ranks.moment_decay().filter(|_| step.measures_for_cuts)
    }

    /// What a growth does to a weight's rank; under `coefficient_cycle` the rank before the cycle
    /// grows.
    fn growth(&self, member: &Member, event: RankEvent) -> RankDecision {
        match (event, target_of(member.parameter)) {
            (RankEvent::Grow, Some(target)) => {
                let rank = member.state.cycle_rank().unwrap_or_else(|| member.point.rank());
                self.ranks.grown(target, rank)
            }
            _ => RankDecision::Keep,
        }
    }

    /// The steps of the weights that are not cut yet, in their order.
    fn uncut(
        &self,
        members: &Members<MemberState>,
        params: &ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<Update>> {
        let uncut = members.iter().filter_map(|(id, state)| match state {
            MemberState::Uncut(state) => Some((id, state)),
            MemberState::Point(_) => None,
        });
        map_all(step.execution.linalg, uncut.collect(), |(id, state): (ParamId, &UncutState)| {
            let (weight, gradient) = (params.dense(id)?, step.gradients.dense(id)?);
            let mut state = Cow::Borrowed(state);
            if let Some(inputs) = self.inputs_of((id, params.get(id)), step)? {
                state = Cow::Owned(state.with_inputs(&inputs, &self.spec)?);
            }
            if let Some(decay) = self.carried_decay(step) {
                let [outputs, inputs] = cut_moments_of((id, params.get(id)), step)?;
                state = Cow::Owned(state.with_moments(decay, [&outputs, &inputs])?);
            }
            let hyper = self.numbers(step, params.get(id), RankDecision::Keep);
            let next = state.step(weight, gradient, &hyper, step.execution.compute);
            let place = || format!("the step of `{}` failed", params.get(id).name);
            let (weight, state) = next.with_context(place)?;
            Ok(Update::Uncut { weight, state, step: step.number })
        })
    }

    /// The updates of all weights, computed side by side, by one gradient each.
    fn one_gradient<'a>(
        &'a self,
        members: &'a [Member<'a>],
        step: &Step,
    ) -> anyhow::Result<Vec<DlraUpdate>> {
        let item = |member: &'a Member<'a>| {
            let hyper = self.numbers(step, member.parameter, self.growth(member, step.rank));
            let Member { parameter, point, state, gradient, .. } = member;
            Item { name: &parameter.name, state, point, gradient: *gradient, hyper }
        };
        let items: Vec<Item> = members.iter().map(item).collect();
        let updates = match self.spec.cycle_phase(step.number, self.last_step) {
            None => step_all(step.execution.linalg, &items, &DlraState::step)?,
            Some(phase) => {
                // A cut at the end of a cycle chooses from all directions of the augmented bases.
                let phase = match step.rank {
                    RankEvent::Cut { .. } => CyclePhase::Coefficients { truncate: false },
                    RankEvent::None | RankEvent::Grow => phase,
                };
                let cycle_step = |state: &DlraState,
                                  point: &LowRank,
                                  gradient: Scaled<Tangent>,
                                  hyper: &DlraStep| {
                    state.cycle_step(point, gradient, hyper, phase)
                };
                // Ranks that double and halve within a cycle leave no stacks to make.
                step_all(Placement::Host, &items, &cycle_step)?
            }
        };
        let updates = updates.into_iter().zip(&items);
        Ok(updates.map(|(update, item)| reported(update, item.hyper.rank)).collect())
    }

    /// The updates of `augmented_bug`, and the time that its evaluations took.
    ///
    /// All weights are augmented; then their coefficients step `coefficient_steps` times. Each
    /// evaluation is over the batch of the first gradient, at the augmented points in place of the
    /// low-rank weights and all else as it was, and scaled by the first gradient's factor.
    fn augmented_bug(
        &self,
        (members, everyone): (&[Member], &[ParamId]),
        params: &ParamStore,
        oracle: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<(Vec<DlraUpdate>, Duration)> {
        let hyper = |member: &Member| self.numbers(step, member.parameter, RankDecision::Keep);
        let placement = step.execution.linalg;
        let mut steps = map_all(placement, members.iter().collect(), |member: &Member| {
            let begun = member.state.begin_galerkin(member.point, member.gradient, &hyper(member));
            begun.with_context(|| {
                format!("augmenting the bases of `{}` failed", member.parameter.name)
            })
        });
        // Buffers of its own: those of the first evaluation hold the dense gradients, which are
        // still needed.
        let mut gradients = Gradients::new(params.slot_count());
        let mut evaluating = Duration::ZERO;
        for _ in 0..self.spec.coefficient_steps() {
            let mut augmented = params.clone();
            let placed = steps.and_then(|steps| {
                for (galerkin, member) in steps.iter().zip(members) {
                    augmented.set(member.id, Weight::LowRank(galerkin.augmented_point()?));
                }
                Ok(steps)
            });
            let placed = step.agreed(placed)?;
            if let Some(shards) = step.shards {
                shards.spread(&mut augmented, everyone)?;
            }
            gradients.reset();
            let started = Instant::now();
            oracle.evaluate(&augmented, &mut gradients)?;
            evaluating += started.elapsed();
            let pairs = placed.into_iter().zip(members).collect();
            steps = map_all(placement, pairs, |(galerkin, member): (GalerkinStep, &Member)| {
                let k_gradient = gradients.get(ParamStore::slot(member.id));
                let sum = coefficient_gradient(&galerkin, member, k_gradient, step)?;
                let advanced = galerkin.advance(member.gradient.with(&sum), &hyper(member));
                advanced.with_context(|| {
                    format!("a coefficient step of `{}` failed", member.parameter.name)
                })
            });
        }
        let pairs = steps?.into_iter().zip(members).collect();
        let updates = map_all(placement, pairs, |(galerkin, member): (GalerkinStep, &Member)| {
            let rank = self.growth(member, step.rank);
            let update = galerkin.finish(&self.numbers(step, member.parameter, rank));
            let update = update.with_context(|| {
                format!("the low-rank step of `{}` failed", member.parameter.name)
            })?;
            Ok(reported(update, rank))
        })?;
        Ok((updates, evaluating))
    }
}

impl Rule for DlraRule {
    type State = MemberState;

    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<MemberState> {
        let carries = self.ranks.moment_decay().is_some();
        Ok(match &params.get(id).weight {
            Weight::Uncut(weight) => {
                let state = UncutState::new(weight, &self.spec)?;
                MemberState::Uncut(if carries { state.carrying_moments(weight)? } else { state })
            }
            _ => {
                let point = params.point(id)?;
                let state = DlraState::new(point, &self.spec)?;
                MemberState::Point(if carries { state.carrying_moments(point)? } else { state })
            }
        })
    }

    fn ask(&self, gradients: &mut Gradients) {
        if self.spec.momentum.measures_inputs() {
            gradients.want_input_grams();
        }
    }

    fn propose(
        &mut self,
        members: &mut Members<Self::State>,
        params: &ParamStore,
        oracle: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration> {
        let points = points_of(members, params, step, self)?;
        let updates = match self.spec.integrator {
            Integrator::AugmentedBug => {
                self.augmented_bug((&points, &members.everyone), params, oracle, step)
            }
            Integrator::Tangent | Integrator::CoefficientCycle => {
                self.one_gradient(&points, step).map(|updates| (updates, Duration::ZERO))
            }
        };
        let updates = updates.and_then(|updates| Ok((updates, self.uncut(members, params, step)?)));
        // Before a cut, for which all have to be here.
        let ((updates, evaluating), uncut) = step.agreed(updates)?;
        let (mut of_points, mut of_uncut) =
            (updates.into_iter().map(Update::Point), uncut.into_iter());
        let updates = members.states.iter().filter_map(|state| match state {
            MemberState::Point(_) => of_points.next(),
            MemberState::Uncut(_) => of_uncut.next(),
        });
        let updates: Vec<Update> = updates.collect();
        let next = match step.rank {
            RankEvent::None | RankEvent::Grow => updates.into_iter().map(Update::uncut).collect(),
            RankEvent::Cut { cut: place, norm } => {
                let weights: Vec<(ParamId, &Parameter)> =
                    members.everyone.iter().map(|id| (*id, params.get(*id))).collect();
                let settings = (&self.spec, step.shards);
                cut(&weights, updates, norm, step.slots, settings, &self.ranks, place)?
            }
        };
        self.truncations.clear();
        members.proposed.clear();
        for (&id, Next { weight, state, truncation }) in members.ids.iter().zip(next) {
            self.truncations.extend(truncation.map(|truncation| (id, truncation)));
            members.proposed.push((weight, state));
        }
        Ok(evaluating)
    }

    fn commit(
        &mut self,
        members: &mut Members<Self::State>,
        params: &mut ParamStore,
        _: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>> {
        members.commit(params);
        Ok(std::mem::take(&mut self.truncations))
    }

    fn is_low_rank(&self) -> bool {
        true
    }
}

/// The sum of gradients by a weight's coefficients, from its K-gradient in the augmented bases.
fn coefficient_gradient(
    galerkin: &GalerkinStep,
    member: &Member,
    k_gradient: Option<&Tensor>,
    step: &Step,
) -> anyhow::Result<Tensor> {
    let name = &member.parameter.name;
    let Some(k_gradient) = k_gradient else {
        bail!("no gradient reached `{name}` in its augmented bases")
    };
    let gradient = galerkin.gradient(k_gradient)?;
    let squares = sums_of_squares(step.execution.compute, &[&gradient])?;
    if squares.iter().all(|sum| sum.is_finite()) {
        return Ok(gradient);
    }
    let message = format!("the gradient of `{name}` in its augmented bases is not finite");
    Err(Failure::Diverged(message).into())
}

/// An update whose truncation is reported only where it decided a rank.
fn reported(mut update: DlraUpdate, rank: RankDecision) -> DlraUpdate {
    if rank == RankDecision::Keep {
        update.truncation = None;
    }
    update
}
