//! Muon for full matrices: momentum whose polar factor is the direction (Jordan et al. 2024,
//! kellerjordan.github.io/posts/muon); and Newton-Muon, which whitens it before by the second moment
//! of the weight's inputs (Du & Su 2026, arXiv:2604.01472).

use super::SPECTRAL_SCALE;
use super::beta1::Beta1;
use crate::linalg::{
    matrix_shape, polar_newton_schulz, polar_newton_schulz_flops, weighted_sum, whitened,
    whitened_flops,
};
use crate::ops::Gradients;
use crate::optim::cost::{MovedWeight, RuleCost};
use crate::optim::execution::{Placement, groups};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::optimizer::GradientOracle;
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Weight};
use crate::spec::{CyclePhase, MuonSpec};
use anyhow::Context;
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::time::Duration;

impl RuleCost for MuonSpec {
    /// One moment, and with `input_damping` that of the inputs, n².
    fn kept(&self, weight: MovedWeight) -> u64 {
        weight.values + self.input_moment(weight)
    }

    /// The new moment of the inputs.
    fn proposed(&self, weight: MovedWeight) -> u64 {
        self.input_moment(weight)
    }

    /// Momentum and second moment in f64, while the one is divided by the other.
    fn in_hand(&self, MovedWeight { size, .. }: MovedWeight) -> u64 {
        match self.input_damping {
            None => 0,
            Some(_) => 2 * size.columns * (size.rows + size.columns),
        }
    }

    fn input_moment(&self, MovedWeight { size, .. }: MovedWeight) -> u64 {
        self.input_damping.map_or(0, |_| size.columns * size.columns)
    }

    /// The polar factors, and what is whitened before.
    fn flops(&self, weights: &[MovedWeight], _: Option<CyclePhase>) -> u64 {
        let one = |MovedWeight { size, .. }: &MovedWeight| {
            let whitening =
                self.input_damping.map_or(0, |_| whitened_flops(size.rows, size.columns));
            polar_newton_schulz_flops(size.rows, size.columns) + whitening
        };
        weights.iter().map(one).sum()
    }
}

/// Momentum of one full matrix, of its shape.
#[derive(Clone, Debug)]
pub struct MuonState {
    /// The decayed mean of gradients.
    pub first: Tensor,
    /// The decayed sum of xᵀx, n × n, where the rule whitens by it.
    pub inputs: Option<Tensor>,
}

impl MuonState {
    /// Zero momentum for this matrix, m × n.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn new(weight: &Tensor, rule: &MuonSpec) -> Result<Self> {
        let columns = weight.dim(D::Minus1)?;
        let zeros = |_| Tensor::zeros((columns, columns), weight.dtype(), weight.device());
        Ok(Self { first: weight.zeros_like()?, inputs: rule.input_damping.map(zeros).transpose()? })
    }

    /// The same state with xᵀx taken in of the inputs x that the next gradient's batch has at the
    /// matrix (n × n, summed over tokens): A ← β₂A + (1−β₂)xᵀx; nothing where it keeps none.
    ///
    /// # Errors
    /// If the shape is not n × n.
    pub fn with_inputs(&self, inputs: &Tensor, beta2: f64) -> Result<Self> {
        let mut state = self.clone();
        if let Some(sum) = &mut state.inputs {
            *sum = weighted_sum(beta2, sum, 1.0 - beta2, &inputs.to_dtype(sum.dtype())?)?;
        }
        Ok(state)
    }

    /// One step, with the rule's β₁, of a matrix W: m × n: M ← β₁M + (1−β₁)G, D = polar(M) or, with
    /// Nesterov, polar(β₁M + (1−β₁)G), W ← (1−ηλ)W − η 0.2 √max(m, n) D.
    ///
    /// With `input_damping` γ, D is the polar factor of the same matrix times H = (1+γ) c (A +
    /// γcI)^{-1}, c = tr A / n, by [`whitened`]. H needs no bias correction of A, since a factor of
    /// A drops out. The polar factor is [`polar_newton_schulz`]. Nothing is changed in place.
    ///
    /// # Errors
    /// If an element is not finite, or as [`whitened`].
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
        let mut mean = if rule.nesterov { mix(&first)? } else { first.clone() };
        if let (Some(inputs), Some(damping)) = (&self.inputs, rule.input_damping) {
            mean = whitened(&mean, inputs, damping)?;
        }
        let direction = polar_newton_schulz(&mean)?;
        let (rows, columns) = matrix_shape(weight)?;
        let scale = learning_rate * SPECTRAL_SCALE * (rows.max(columns) as f64).sqrt();
        let weight =
            ((weight * (1.0 - learning_rate * rule.weight_decay))? - (direction * scale)?)?;
        Ok((weight, Self { first, inputs: self.inputs.clone() }))
    }
}

impl Leaves for MuonState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let first = map.tensor("first", &self.first)?;
        let inputs = self.inputs.as_ref().map(|inputs| map.tensor("input_second", inputs));
        Ok(Self { first, inputs: inputs.transpose()? })
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

    /// A state that has taken in the second moment of its matrix's inputs, where the rule goes by it.
    fn measured<'a>(
        &self,
        id: ParamId,
        state: &'a MuonState,
        params: &ParamStore,
        step: &Step,
    ) -> anyhow::Result<Cow<'a, MuonState>> {
        if self.0.input_damping.is_none() {
            return Ok(Cow::Borrowed(state));
        }
        let name = &params.get(id).name;
        let inputs = step.second_moment(ParamStore::l_slot(id), name)?;
        let measured = state.with_inputs(&inputs, self.0.beta2);
        let place = || format!("taking in the second moment of the inputs of `{name}` failed");
        Ok(Cow::Owned(measured.with_context(place)?))
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
            let state = self.measured(id, state, params, step)?;
            let (weight, state) =
                self.next(name, params.dense(id)?, &state, gradient, learning_rate)?;
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
            let measured = group
                .iter()
                .map(|&index| self.measured(ids[index], &states[index], params, step))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let state = MuonState::stack(&measured.iter().map(|one| &**one).collect::<Vec<_>>())?;
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
        Ok(MuonState::new(params.dense(id)?, &self.0)?)
    }

    fn ask(&self, gradients: &mut Gradients) {
        if self.0.input_damping.is_some() {
            gradients.want_dense_input_grams();
        }
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
    use crate::linalg::{gram, inverse_square_root, polar};
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

    /// Three steps beside polar factors of M (A + γcI)^{-1} by eigenvalues, A the decayed sum of xᵀx
    /// and c = tr A / n; no scale is right by chance, since the polar factor has none.
    #[test]
    fn whitens_what_the_polar_factor_is_of() -> Result<()> {
        let (m, n) = (12, 7);
        let normal = |rows: usize, draw: u64| -> Result<Tensor> {
            let numbers = rng::normals(&mut rng::stream(6, "whitened", &[draw]), rows * n);
            Tensor::from_vec(numbers, (rows, n), &Device::Cpu)?.to_dtype(DType::F64)
        };
        let lengths = Tensor::arange(1f64, n as f64 + 1.0, &Device::Cpu)?;
        let rule = MuonSpec { input_damping: Some(0.3), beta2: 0.8, ..MuonSpec::default() };
        let mut weight = normal(m, 0)?;
        let (mut plain, mut expected) = (MuonState::new(&weight, &rule)?, weight.clone());
        let mut state = plain.clone();
        let mut second = Tensor::zeros((n, n), DType::F64, &Device::Cpu)?;
        for step in 1..=3 {
            let gradient = normal(m, step)?;
            let inputs = gram(&normal(40, step + 9)?.broadcast_mul(&lengths)?)?;
            state = state.with_inputs(&inputs, rule.beta2)?;
            (weight, state) = state.step(&weight, Scaled::new(&gradient, 0.5), &rule, 0.1)?;

            second = ((second * 0.8)? + (inputs * 0.2)?)?;
            let first = ((&plain.first * 0.95)? + (&gradient * (0.05 * 0.5))?)?;
            let ahead = ((&first * 0.95)? + (&gradient * (0.05 * 0.5))?)?;
            plain = MuonState { first, inputs: None };
            let root = inverse_square_root(&second, 0.3)?;
            let direction = polar_newton_schulz(&ahead.matmul(&root)?.matmul(&root)?)?;
            let scale = 0.1 * 0.2 * (m as f64).sqrt();
            expected = ((expected * (1.0 - 0.1 * rule.weight_decay))? - (direction * scale)?)?;
            let apart = (&weight - &expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(apart < 1e-10, "step {step}: {apart}");
        }
        Ok(())
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
            let (learning_rate, beta1, weight_decay) = (0.1, 0.9, 0.2);
            let rule =
                MuonSpec { learning_rate, beta1, nesterov, weight_decay, ..MuonSpec::default() };
            let (mut weight, mut textbook) = (normal(0)?, normal(0)?);
            let (mut state, mut mean) = (MuonState::new(&weight, &rule)?, weight.zeros_like()?);
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
