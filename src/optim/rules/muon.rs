//! Muon for full matrices: momentum whose polar factor is the direction (Jordan et al. 2024,
//! kellerjordan.github.io/posts/muon).

use super::SPECTRAL_SCALE;
use super::beta1::Beta1;
use crate::linalg::{matrix_shape, polar_newton_schulz, polar_newton_schulz_flops};
use crate::optim::cost::{MovedWeight, RuleCost};
use crate::optim::execution::{Placement, groups};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::optimizer::GradientOracle;
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Weight};
use crate::spec::{CyclePhase, MuonSpec};
use anyhow::Context;
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::time::Duration;

impl RuleCost for MuonSpec {
    /// One moment.
    fn kept(&self, weight: MovedWeight) -> u64 {
        weight.values
    }

    /// The polar factors.
    fn flops(&self, weights: &[MovedWeight], _: Option<CyclePhase>) -> u64 {
        let polar = |MovedWeight { size, .. }: &MovedWeight| {
            polar_newton_schulz_flops(size.rows, size.columns)
        };
        weights.iter().map(polar).sum()
    }
}

/// Momentum of one full matrix, of its shape.
#[derive(Clone, Debug)]
pub struct MuonState {
    /// The decayed mean of gradients.
    pub first: Tensor,
}

impl MuonState {
    /// Zero momentum for this matrix.
    pub fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self { first: weight.zeros_like()? })
    }

    /// One step, with the rule's β₁, of a matrix W: m × n: M ← β₁M + (1−β₁)G, D = polar(M) or, with
    /// Nesterov, polar(β₁M + (1−β₁)G), W ← (1−ηλ)W − η 0.2 √max(m, n) D.
    ///
    /// The polar factor is [`polar_newton_schulz`]. Nothing is changed in place.
    ///
    /// # Errors
    /// If an element is not finite.
    pub fn step(
        &self,
        weight: &Tensor,
        gradient: Scaled<Tensor>,
        rule: &MuonSpec,
        learning_rate: f64,
    ) -> Result<(Tensor, Self)> {
        let mix = |mean: &Tensor| -> Result<Tensor> {
            (mean * rule.beta1)? + (gradient.sum() * gradient.factor(1.0 - rule.beta1))?
        };
        let first = mix(&self.first)?;
        let direction =
            polar_newton_schulz(&if rule.nesterov { mix(&first)? } else { first.clone() })?;
        let (rows, columns) = matrix_shape(weight)?;
        let scale = learning_rate * SPECTRAL_SCALE * (rows.max(columns) as f64).sqrt();
        let weight =
            ((weight * (1.0 - learning_rate * rule.weight_decay))? - (direction * scale)?)?;
        Ok((weight, Self { first }))
    }
}

impl Leaves for MuonState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        Ok(Self { first: map.tensor("first", &self.first)? })
    }
}

/// Muon on the blocks' full matrices.
#[derive(Debug)]
pub struct MuonRule(pub MuonSpec);

impl MuonRule {
    /// The rule as it is at a step, counted from 1.
    fn at(&self, step: u64) -> Self {
        let beta1 = Beta1::of_muon(&self.0).at(step);
        Self(MuonSpec { beta1, beta1_schedule: None, ..self.0.clone() })
    }

    /// The step of one matrix, or of a stack named after its first.
    fn next(
        &self,
        name: &str,
        weight: &Tensor,
        state: &MuonState,
        gradient: Scaled<Tensor>,
        learning_rate: f64,
    ) -> anyhow::Result<(Tensor, MuonState)> {
        let next = state.step(weight, gradient, &self.0, learning_rate);
        next.with_context(|| format!("the Muon step of `{name}` failed"))
    }

    /// Matrix beside matrix, on all threads.
    fn side_by_side(
        &self,
        members: &Members<MuonState>,
        params: &ParamStore,
        step: &Step,
        learning_rate: f64,
    ) -> anyhow::Result<Vec<(Weight, MuonState)>> {
        let members: Vec<(ParamId, &MuonState)> = members.iter().collect();
        let next = |(id, state): (ParamId, &MuonState)| {
            let (name, gradient) = (&params.get(id).name, step.gradients.dense(id)?);
            let (weight, state) =
                self.next(name, params.dense(id)?, state, gradient, learning_rate)?;
            Ok((Weight::Dense(weight), state))
        };
        members.into_par_iter().map(next).collect()
    }

    /// All matrices of one shape as one stack, where they live.
    fn as_stacks(
        &self,
        members: &Members<MuonState>,
        params: &ParamStore,
        step: &Step,
        learning_rate: f64,
    ) -> anyhow::Result<Vec<(Weight, MuonState)>> {
        let Members { ids, states, .. } = members;
        let weights: Vec<&Tensor> =
            ids.iter().map(|id| params.dense(*id)).collect::<Result<_>>()?;
        let mut next: Vec<Option<(Weight, MuonState)>> = ids.iter().map(|_| None).collect();
        for group in groups(weights.iter().map(|weight| weight.dims())) {
            let first = step.gradients.dense(ids[group[0]])?;
            let sums = group
                .iter()
                .map(|&index| Ok(step.gradients.dense(ids[index])?.sum()))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let sum = Tensor::stack(&sums, 0)?;
            let weight =
                Tensor::stack(&group.iter().map(|&index| weights[index]).collect::<Vec<_>>(), 0)?;
            let state =
                MuonState::stack(&group.iter().map(|&index| &states[index]).collect::<Vec<_>>())?;
            let name = &params.get(ids[group[0]]).name;
            let (weight, state) =
                self.next(name, &weight, &state, first.with(&sum), learning_rate)?;
            for (place, &index) in group.iter().enumerate() {
                next[index] = Some((Weight::Dense(weight.get(place)?), state.unstacked(place)?));
            }
        }
        let all: Option<Vec<_>> = next.into_iter().collect();
        all.context("a matrix was left out of every stack")
    }
}

impl Rule for MuonRule {
    type State = MuonState;

    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<MuonState> {
        Ok(MuonState::new(params.dense(id)?)?)
    }

    fn propose(
        &mut self,
        members: &mut Members<Self::State>,
        params: &ParamStore,
        _: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration> {
        let learning_rate = self.0.learning_rate * step.schedule_factor;
        let rule = self.at(step.number);
        members.proposed = match step.execution.linalg {
            Placement::Host => rule.side_by_side(members, params, step, learning_rate)?,
            Placement::Device => rule.as_stacks(members, params, step, learning_rate)?,
        };
        Ok(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::polar;
    use crate::rng;
    use crate::spec::{Beta1ScheduleSpec, Count};
    use candle_core::{DType, Device};

    #[test]
    fn a_step_has_its_own_beta1() {
        let path = Beta1ScheduleSpec { from: 0.85, start: Count(0), until: Count(4) };
        let rule = MuonRule(MuonSpec { beta1_schedule: Some(path), ..MuonSpec::default() });
        let found = [1, 2, 4, 9].map(|step| rule.at(step).0.beta1);
        for (found, expected) in found.into_iter().zip([0.875, 0.9, 0.95, 0.95]) {
            assert!((found - expected).abs() < 1e-15, "{found} for {expected}");
        }
    }

    /// Two steps of the published rule with an exact polar factor by SVD: the polynomials' singular
    /// values lie within 0.114 of 1, so the matrices differ by at most that share of the step, and
    /// the directions are nearly parallel.
    #[test]
    fn agrees_with_the_rule_with_exact_polar_factors() -> Result<()> {
        let normal = |draw: u64| -> Result<Tensor> {
            let numbers = rng::normals(&mut rng::stream(5, "muon test", &[draw]), 12 * 7);
            Tensor::from_vec(numbers, (12, 7), &Device::Cpu)?.to_dtype(DType::F64)
        };
        for nesterov in [false, true] {
            let rule = MuonSpec {
                learning_rate: 0.1,
                beta1: 0.9,
                beta1_schedule: None,
                nesterov,
                weight_decay: 0.2,
            };
            let (mut weight, mut textbook) = (normal(0)?, normal(0)?);
            let (mut state, mut mean) = (MuonState::new(&weight)?, weight.zeros_like()?);
            for step in 1..=2 {
                let gradient = normal(step)?;
                (weight, state) =
                    state.step(&weight, Scaled::new(&(&gradient * 4.0)?, 0.25), &rule, 0.1)?;
                mean = ((mean * 0.9)? + (&gradient * 0.1)?)?;
                let ahead =
                    if nesterov { ((&mean * 0.9)? + (&gradient * 0.1)?)? } else { mean.clone() };
                let move_by = (polar(&ahead)? * (0.1 * 0.2 * 12f64.sqrt()))?;
                textbook = ((textbook * (1.0 - 0.1 * 0.2))? - &move_by)?;
                let norm = |x: &Tensor| -> Result<f64> { x.sqr()?.sum_all()?.sqrt()?.to_scalar() };
                let (difference, moved) = (norm(&(&weight - &textbook)?)?, norm(&move_by)?);
                assert!(
                    difference < 0.115 * step as f64 * moved,
                    "step {step}: {difference} of {moved}"
                );
            }
            assert!((&state.first - &mean)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-14);
        }
        Ok(())
    }
}
