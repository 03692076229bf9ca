//! Heavy ball (SGD with momentum) for the free factors of W = B A or W = U S Vᵀ (Polyak 1964).

use super::adamw::check_shapes;
use crate::lowrank::Truncation;
use crate::ops::Compute;
use crate::optim::cost::{MovedWeight, RuleCost};
use crate::optim::elementwise::decay_and_add;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::optimizer::GradientOracle;
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Weight};
use crate::spec::HeavyBallSpec;
use candle_core::{Result, Tensor};
use std::time::Duration;

impl RuleCost for HeavyBallSpec {
    /// One moment.
    fn kept(&self, weight: MovedWeight) -> u64 {
        weight.values
    }
}

/// Momentum of one parameter, of its shape.
#[derive(Clone, Debug)]
pub struct HeavyBallState {
    /// The decayed sum of gradients.
    pub first: Tensor,
}

impl HeavyBallState {
    /// Zero momentum for this parameter.
    pub fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self { first: weight.zeros_like()? })
    }

    /// One step, in place: m ← β₁m + g, w ← (1−ηλ)w − ηm.
    pub fn step(
        &mut self,
        compute: Compute,
        weight: &mut Tensor,
        gradient: Scaled<Tensor>,
        rule: &HeavyBallSpec,
        learning_rate: f64,
    ) -> Result<()> {
        gradient.add_to(compute, &mut self.first, rule.beta1, 1.0)?;
        let keep = 1.0 - learning_rate * rule.weight_decay;
        decay_and_add(compute, weight, keep, &self.first, -learning_rate)
    }
}

impl Leaves for HeavyBallState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        Ok(Self { first: map.tensor("first", &self.first)? })
    }
}

/// Heavy ball on a group of free factors.
#[derive(Debug)]
pub struct HeavyBallRule(pub HeavyBallSpec);

impl Rule for HeavyBallRule {
    type State = HeavyBallState;

    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<HeavyBallState> {
        Ok(HeavyBallState::new(params.dense(id)?)?)
    }

    /// The step is taken in place when all rules commit; only shapes can be wrong.
    fn propose(
        &mut self,
        members: &mut Members<Self::State>,
        params: &ParamStore,
        _: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration> {
        check_shapes(&members.ids, params, step)?;
        Ok(Duration::ZERO)
    }

    fn commit(
        &mut self,
        members: &mut Members<Self::State>,
        params: &mut ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>> {
        let compute = step.execution.compute;
        let learning_rate = self.0.learning_rate * step.schedule_factor;
        for (&id, state) in members.ids.iter().zip(&mut members.states) {
            let mut weight = params.dense(id)?.clone();
            let gradient = step.gradients.dense(id)?;
            state.step(compute, &mut weight, gradient, &self.0, learning_rate)?;
            params.set(id, Weight::Dense(weight));
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Two steps of the definition written out by hand on numbers.
    #[test]
    fn agrees_with_the_textbook_on_numbers() -> Result<()> {
        let rule = HeavyBallSpec { learning_rate: 0.5, beta1: 0.9, weight_decay: 0.1 };
        let gradients = [[0.5f64, -2.0], [1.5, -1.0]];
        let (mut w, mut m) = ([1.0f64, -2.0], [0.0f64; 2]);
        let mut weight = Tensor::new(&w, &Device::Cpu)?;
        let mut state = HeavyBallState::new(&weight)?;
        for gradient in gradients {
            for i in 0..2 {
                m[i] = 0.9 * m[i] + gradient[i];
                w[i] = (1.0 - 0.5 * 0.1) * w[i] - 0.5 * m[i];
            }
            // The gradient arrives as a sum over four micro-batches and is scaled by a quarter.
            let sum = Tensor::new(&gradient.map(|g| 4.0 * g), &Device::Cpu)?;
            state.step(Compute::default(), &mut weight, Scaled::new(&sum, 0.25), &rule, 0.5)?;
            for (ours, textbook) in weight.to_vec1::<f64>()?.iter().zip(&w) {
                assert!((ours - textbook).abs() < 1e-14, "{ours} {textbook}");
            }
        }
        Ok(())
    }
}
