//! A rule: how one group of parameters moves, with the state it keeps for them.

use super::execution::Execution;
use super::gradient::TrainedGradients;
use super::leaves::{Leaves, leaf_name};
use super::optimizer::GradientOracle;
use super::rank::RankEvent;
use super::rules::MomentClock;
use crate::lowrank::Truncation;
use crate::ops::Gradients;
use crate::params::TensorReader;
use crate::params::{ParamId, ParamStore, Weight};
use candle_core::Tensor;
use std::fmt::Debug;
use std::time::Duration;

/// What every rule sees of a step.
pub struct Step<'a> {
    /// The step, counted from 1.
    pub number: u64,
    /// The gradients of the step's batch.
    pub gradients: &'a TrainedGradients,
    /// The slots they came from, which hold second moments where a cut asked for them.
    pub slots: &'a Gradients,
    /// Factor on every learning rate.
    pub schedule_factor: f64,
    /// How old Adam's moments are.
    pub moments: MomentClock,
    /// What happens to ranks.
    pub rank: RankEvent,
    /// How to compute.
    pub execution: Execution,
}

/// How the members of one group move.
///
/// A step is proposed by all rules before any commits, so that a failure (a factorisation that does
/// not converge, a shape that does not fit) has changed nothing.
pub trait Rule: Debug + Send + Sync {
    /// Computes the step beside the old numbers, or checks what can fail where the step itself is
    /// taken in place; returns the time that went into gradient evaluations of its own.
    ///
    /// # Errors
    /// Naming the parameter whose step failed.
    fn propose(
        &mut self,
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
        params: &mut ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>>;

    /// Whether the members are points on the manifold, whose time is reported apart.
    fn is_low_rank(&self) -> bool {
        false
    }

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

/// The members of a group, each with its state and, between proposal and commit, its next weight
/// and state.
#[derive(Debug)]
pub(super) struct Members<S> {
    /// The parameters.
    pub ids: Vec<ParamId>,
    /// Their states, in the same order.
    pub states: Vec<S>,
    /// What the members become at the commit; empty outside a step and where a step is in place.
    pub proposed: Vec<(Weight, S)>,
}

impl<S: Leaves> Members<S> {
    /// These members with the states that `state` makes for them.
    ///
    /// # Errors
    /// As `state`.
    pub fn new(
        ids: Vec<ParamId>,
        state: impl FnMut(ParamId) -> anyhow::Result<S>,
    ) -> anyhow::Result<Self> {
        let states = ids.iter().copied().map(state).collect::<anyhow::Result<_>>()?;
        Ok(Self { ids, states, proposed: Vec::new() })
    }

    /// The members with their states.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &S)> {
        self.ids.iter().copied().zip(&self.states)
    }

    /// Puts the proposed weights and states into force.
    pub fn commit(&mut self, params: &mut ParamStore) {
        let proposed = std::mem::take(&mut self.proposed);
        for ((id, state), (weight, next)) in self.ids.iter().zip(&mut self.states).zip(proposed) {
            params.set(*id, weight);
            *state = next;
        }
    }

    /// As [`Rule::named_tensors`].
    pub fn named_tensors(&self, params: &ParamStore) -> anyhow::Result<Vec<(String, Tensor)>> {
        let mut named = Vec::new();
        for (id, state) in self.iter() {
            let parameter = &params.get(id).name;
            let leaves = state.named_tensors()?.into_iter();
            named.extend(leaves.map(|(leaf, tensor)| (leaf_name(parameter, &leaf), tensor)));
        }
        Ok(named)
    }

    /// As [`Rule::load`].
    pub fn load(&mut self, params: &ParamStore, reader: &mut TensorReader) -> anyhow::Result<()> {
        for (id, state) in self.ids.iter().zip(&mut self.states) {
            *state = state.load(&params.get(*id).name, reader)?;
        }
        Ok(())
    }
}
