//! The steps of an [`Optimizer`] that take factorisations of dense matrices: full ones under Muon
//! and GaLore, pairs of factors under LORO.

use super::adamw::{AdamwState, AdamwStep};
use super::execution::{Placement, groups, map_all};
use super::gradient::{Gradient, TrainedGradients};
use super::loro::{self, LoroCycle};
use super::muon::MuonState;
use super::optimizer::{FactorRule, Optimizer, State};
use crate::params::{ParamId, ParamStore};
use crate::spec::{GaloreSpec, LoroSpec, MatrixOptimizerSpec, MuonSpec};
use anyhow::{Context, bail};
use candle_core::Tensor;
use rayon::prelude::*;

/// A full matrix about to step by Muon.
struct MuonItem<'a> {
    id: ParamId,
    name: &'a str,
    weight: &'a Tensor,
    state: &'a MuonState,
    gradient: &'a Tensor,
}

impl Optimizer {
    /// The steps of all full matrices under Muon or GaLore; nothing is changed yet.
    pub(super) fn matrix_updates(
        &self,
        params: &ParamStore,
        trained: &TrainedGradients,
        step: u64,
        gradient_scale: f64,
        schedule_factor: f64,
    ) -> anyhow::Result<Vec<(ParamId, Tensor, State)>> {
        match &self.settings.matrices {
            None => Ok(Vec::new()),
            Some(MatrixOptimizerSpec::Muon(rule)) => self.muon_updates(
                params,
                trained,
                rule,
                gradient_scale,
                rule.learning_rate * schedule_factor,
            ),
            Some(MatrixOptimizerSpec::Galore(rule)) => self.galore_updates(
                params,
                trained,
                rule,
                step,
                gradient_scale,
                rule.learning_rate * schedule_factor,
            ),
        }
    }

    /// The steps of all full matrices under Muon, computed side by side or as stacks.
    fn muon_updates(
        &self,
        params: &ParamStore,
        trained: &TrainedGradients,
        rule: &MuonSpec,
        gradient_scale: f64,
        learning_rate: f64,
    ) -> anyhow::Result<Vec<(ParamId, Tensor, State)>> {
        let mut matrices = Vec::new();
        for (id, parameter) in params.iter() {
            match (&self.states[id.0], &trained.gradients[id.0]) {
                (State::Muon(state), Gradient::Dense(gradient)) => {
                    matrices.push(MuonItem {
                        id,
                        name: &parameter.name,
                        weight: params.dense(id)?,
                        state,
                        gradient,
                    });
                }
                (State::Muon(_), Gradient::Tangent(_)) => {
                    bail!("`{}` is a full matrix but its gradient is not", parameter.name)
                }
                _ => {}
            }
        }
        let step = |item: &MuonItem, weight: &Tensor, state: &MuonState, gradient: &Tensor| {
            let step = state.step(weight, gradient, rule, learning_rate, gradient_scale);
            step.with_context(|| format!("the Muon step of `{}` failed", item.name))
        };
        if self.settings.execution.linalg == Placement::Host {
            let on_host = |item: &MuonItem| {
                let (weight, state) = step(item, item.weight, item.state, item.gradient)?;
                Ok((item.id, weight, State::Muon(state)))
            };
            return matrices.par_iter().map(on_host).collect();
        }
        let mut updates = Vec::with_capacity(matrices.len());
        for group in groups(matrices.iter().map(|item| item.weight.dims())) {
            let stacked = |part: &dyn Fn(&MuonItem) -> Tensor| {
                Tensor::stack(
                    &group.iter().map(|&index| part(&matrices[index])).collect::<Vec<_>>(),
                    0,
                )
            };
            let state = MuonState { first: stacked(&|item| item.state.first.clone())? };
            let (weight, gradient) =
                (stacked(&|item| item.weight.clone())?, stacked(&|item| item.gradient.clone())?);
            let (weights, state) = step(&matrices[group[0]], &weight, &state, &gradient)?;
            for (place, &index) in group.iter().enumerate() {
                updates.push((
                    matrices[index].id,
                    weights.get(place)?,
                    State::Muon(MuonState { first: state.first.get(place)? }),
                ));
            }
        }
        Ok(updates)
    }

    /// The steps of all full matrices under GaLore, matrix by matrix.
    fn galore_updates(
        &self,
        params: &ParamStore,
        trained: &TrainedGradients,
        rule: &GaloreSpec,
        step: u64,
        gradient_scale: f64,
        learning_rate: f64,
    ) -> anyhow::Result<Vec<(ParamId, Tensor, State)>> {
        let GaloreSpec { beta1, beta2, epsilon, weight_decay, .. } = *rule;
        let compute = self.settings.execution.compute;
        let hyper = AdamwStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            step,
            gradient_scale,
            compute,
        };
        let ids: Vec<ParamId> = params
            .iter()
            .map(|(id, _)| id)
            .filter(|id| matches!(self.states[id.0], State::Galore(_)))
            .collect();
        map_all(self.settings.execution.linalg, ids, |id| {
            let (State::Galore(state), Gradient::Dense(gradient)) =
                (&self.states[id.0], &trained.gradients[id.0])
            else {
                bail!("`{}` is a full matrix but its gradient is not", params.get(id).name)
            };
            let step = state.step(params.dense(id)?, gradient, rule, &hyper);
            let (weight, state) = step
                .with_context(|| format!("the GaLore step of `{}` failed", params.get(id).name))?;
            Ok((id, weight, State::Galore(state)))
        })
    }

    /// The exact steps of all pairs of factors at an exact step of LORO; nothing is changed yet.
    pub(super) fn pair_updates(
        &self,
        params: &ParamStore,
        trained: &TrainedGradients,
        cycle: Option<LoroCycle>,
        gradient_scale: f64,
        schedule_factor: f64,
    ) -> anyhow::Result<Vec<(ParamId, Tensor, State)>> {
        let (FactorRule::Loro(rule), Some(LoroCycle { exact: true, moment_step, .. })) =
            (&self.settings.factors, cycle)
        else {
            return Ok(Vec::new());
        };
        let compute = self.settings.execution.compute;
        let LoroSpec { learning_rate, beta1, beta2, epsilon, .. } = *rule;
        let learning_rate = learning_rate * schedule_factor;
        let hyper = AdamwStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay: 0.0,
            step: moment_step,
            gradient_scale,
            compute,
        };
        let direction = |id: ParamId| -> anyhow::Result<(Tensor, State)> {
            let (State::Adamw(state), Gradient::Dense(gradient)) =
                (&self.states[id.0], &trained.gradients[id.0])
            else {
                bail!("`{}` has the state of another rule", params.get(id).name)
            };
            let (direction, state) = state.direction(gradient, &hyper)?;
            Ok((direction, State::Adamw(state)))
        };
        let updates = map_all(self.settings.execution.linalg, params.factor_pairs(), |(b, a)| {
            let ((direction_b, state_b), (direction_a, state_a)) = (direction(b)?, direction(a)?);
            let step = loro::exact_step(
                params.dense(b)?,
                params.dense(a)?,
                &direction_b,
                &direction_a,
                learning_rate,
            );
            let (new_b, new_a) = step
                .with_context(|| format!("LORO's exact step of `{}` failed", params.get(b).name))?;
            Ok([(b, new_b, state_b), (a, new_a, state_a)])
        })?;
        Ok(updates.into_iter().flatten().collect())
    }

    /// Where the step lies between two exact ones, under LORO.
    pub(super) fn loro_cycle(&self, step: u64) -> Option<LoroCycle> {
        match &self.settings.factors {
            FactorRule::Loro(rule) => Some(LoroCycle::at(rule, step)),
            FactorRule::Adamw(_) | FactorRule::HeavyBall(_) => None,
        }
    }

    /// Every moment of Adam starts anew.
    pub(super) fn restart_moments(&mut self) -> anyhow::Result<()> {
        for state in &mut self.states {
            if let State::Adamw(state) = state {
                *state = AdamwState::new(&state.first)?;
            }
        }
        Ok(())
    }
}
