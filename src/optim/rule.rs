//! A rule: how one group of parameters moves, with the state it keeps for them.

use super::execution::Execution;
use super::gradient::TrainedGradients;
use super::leaves::{Leaves, leaf_name};
use super::optimizer::GradientOracle;
use super::rank::RankEvent;
use super::rules::MomentClock;
use super::shards::Shards;
use crate::lowrank::Truncation;
use crate::ops::Gradients;
use crate::params::TensorReader;
use crate::params::{ParamId, ParamStore, Weight};
use anyhow::Context;
use candle_core::Tensor;
use std::fmt::Debug;
use std::time::Duration;

/// What every rule sees of a step.
pub struct Step<'a> {
    /// The step, counted from 1.
    pub number: u64,
    /// The gradients of the step's batch.
    pub gradients: &'a TrainedGradients,
    /// The slots they came from, which hold second moments where a cut or a momentum asked for
    /// them.
    pub slots: &'a Gradients,
    /// The batches over which those second moments are summed.
    pub batches_measured: u64,
    /// Factor on every learning rate.
    pub schedule_factor: f64,
    /// How old Adam's moments are.
    pub moments: MomentClock,
    /// What happens to ranks.
    pub rank: RankEvent,
    /// Whether they are there for every low-rank weight, of output gradients and of inputs, as cuts
    /// go by them.
    pub measures_for_cuts: bool,
    /// How to compute.
    pub execution: Execution,
    /// The processes among which the members are shared out; none where all are this one's.
    pub shards: Option<&'a Shards<'a>>,
}

impl Step<'_> {
    /// The second moment that arrived in a slot of this parameter: a mean over the batches that
    /// were measured, each summed over its tokens.
    ///
    /// # Errors
    /// If none arrived, naming the parameter.
    pub fn second_moment(&self, slot: usize, parameter: &str) -> anyhow::Result<Tensor> {
        let sum = self.slots.gram(slot);
        let sum = sum.with_context(|| format!("no second moment of `{parameter}` arrived"))?;
        Ok((sum / self.batches_measured as f64)?)
    }

    /// A result of this process that all have come to, or the same error on all of them.
    ///
    /// # Errors
    /// As said, or if the connection fails.
    pub fn agreed<T>(&self, own: anyhow::Result<T>) -> anyhow::Result<T> {
        match self.shards {
            None => own,
            Some(shards) => shards.agree(own),
        }
    }
}

/// How the members of a group move, with the settings it moves them by.
///
/// A step is proposed by all rules before any commits, so that a failure (a factorisation that does
/// not converge, a shape that does not fit) has changed nothing.
pub trait Rule: Debug + Send + Sync {
    /// What it keeps for each member.
    type State: Leaves + Debug + Send + Sync;

    /// The state of a member before its first step.
    ///
    /// # Errors
    /// If the parameter has another form than the rule moves.
    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<Self::State>;

    /// Asks for the second moments that its steps go by, beside the gradients.
    fn ask(&self, _: &mut Gradients) {}

    /// Computes the step beside the old numbers, into `members.proposed`, or checks what can fail
    /// where the step itself is taken in place; returns the time that went into gradient
    /// evaluations of its own.
    ///
    /// # Errors
    /// Naming the parameter whose step failed.
    fn propose(
        &mut self,
        members: &mut Members<Self::State>,
        params: &ParamStore,
        oracle: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration>;

    /// Puts into force what was proposed; returns the truncations that decided ranks.
    ///
    /// # Errors
    /// None that [`Self::propose`] could foresee; the device may run out of memory.
    fn commit(
        &mut self,
        members: &mut Members<Self::State>,
        params: &mut ParamStore,
        _: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>> {
        members.commit(params);
        Ok(Vec::new())
    }

    /// Whether the members are points on the manifold, whose time is reported apart.
    fn is_low_rank(&self) -> bool {
        false
    }

    /// Forgets what it keeps itself of members that `owns` does not hold for.
    fn retain(&mut self, _: &[ParamId], _owns: &dyn Fn(ParamId) -> bool) {}
}

/// The members of a group, each with its state and, between proposal and commit, its next weight
/// and state.
#[derive(Debug)]
pub struct Members<S> {
    /// The parameters, of them those that this process moves.
    pub ids: Vec<ParamId>,
    /// All of them, whichever process moves them.
    pub everyone: Vec<ParamId>,
    /// The states of `ids`, in the same order.
    pub states: Vec<S>,
    /// What the members become at the commit; empty outside a step and where a step is in place.
    pub proposed: Vec<(Weight, S)>,
}

impl<S: Leaves> Members<S> {
    /// The members with their states.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &S)> {
        self.ids.iter().copied().zip(&self.states)
    }

    /// Forgets the members that `owns` does not hold for.
    fn retain(&mut self, owns: &dyn Fn(ParamId) -> bool) {
        let (ids, states) = (std::mem::take(&mut self.ids), std::mem::take(&mut self.states));
        let kept = ids.into_iter().zip(states).filter(|(id, _)| owns(*id));
        (self.ids, self.states) = kept.unzip();
    }

    /// Puts the proposed weights and states into force.
    pub fn commit(&mut self, params: &mut ParamStore) {
        let proposed = std::mem::take(&mut self.proposed);
        for ((id, state), (weight, next)) in self.ids.iter().zip(&mut self.states).zip(proposed) {
            params.set(*id, weight);
            *state = next;
        }
    }
}

/// A group of parameters with the rule that moves them, as the optimizer sees it.
pub(super) trait Group: Debug + Send + Sync {
    /// As [`Rule::ask`].
    fn ask(&self, gradients: &mut Gradients);

    /// As [`Rule::propose`].
    fn propose(
        &mut self,
        params: &ParamStore,
        oracle: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration>;

    /// As [`Rule::commit`].
    fn commit(
        &mut self,
        params: &mut ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>>;

    /// As [`Rule::is_low_rank`].
    fn is_low_rank(&self) -> bool;

    /// Moves only the members that `owns` holds for, and forgets the states of all others.
    fn retain(&mut self, owns: &dyn Fn(ParamId) -> bool);

    /// The states as named tensors, `<parameter>/<leaf>`.
    ///
    /// # Errors
    /// If a number does not fit its form in a file.
    fn named_tensors(&self, params: &ParamStore) -> anyhow::Result<Vec<(String, Tensor)>>;

    /// Takes the states from named tensors.
    ///
    /// # Errors
    /// If a leaf is missing or has another shape.
    fn load(&mut self, params: &ParamStore, reader: &mut TensorReader) -> anyhow::Result<()>;
}

#[derive(Debug)]
struct RuleAndMembers<R: Rule> {
    rule: R,
    members: Members<R::State>,
}

/// These parameters under this rule, their states as before a first step.
///
/// # Errors
/// As [`Rule::fresh`].
pub(super) fn group<R: Rule + 'static>(
    rule: R,
    ids: Vec<ParamId>,
    params: &ParamStore,
) -> anyhow::Result<Box<dyn Group>> {
    let states = ids.iter().map(|id| rule.fresh(params, *id)).collect::<anyhow::Result<_>>()?;
    let members = Members { everyone: ids.clone(), ids, states, proposed: Vec::new() };
    Ok(Box::new(RuleAndMembers { rule, members }))
}

impl<R: Rule> Group for RuleAndMembers<R> {
    fn ask(&self, gradients: &mut Gradients) {
        self.rule.ask(gradients);
    }

    fn propose(
        &mut self,
        params: &ParamStore,
        oracle: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration> {
        self.rule.propose(&mut self.members, params, oracle, step)
    }

    fn commit(
        &mut self,
        params: &mut ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>> {
        self.rule.commit(&mut self.members, params, step)
    }

    fn is_low_rank(&self) -> bool {
        self.rule.is_low_rank()
    }

    fn retain(&mut self, owns: &dyn Fn(ParamId) -> bool) {
        self.rule.retain(&self.members.ids, owns);
        self.members.retain(owns);
    }

    fn named_tensors(&self, params: &ParamStore) -> anyhow::Result<Vec<(String, Tensor)>> {
        let mut named = Vec::new();
        for (id, state) in self.members.iter() {
            let parameter = &params.get(id).name;
            let leaves = state.named_tensors()?.into_iter();
            named.extend(leaves.map(|(leaf, tensor)| (leaf_name(parameter, &leaf), tensor)));
        }
        Ok(named)
    }

    fn load(&mut self, params: &ParamStore, reader: &mut TensorReader) -> anyhow::Result<()> {
        for (id, state) in self.members.ids.iter().zip(&mut self.members.states) {
            *state = state.load(&params.get(*id).name, reader)?;
        }
        Ok(())
    }
}
