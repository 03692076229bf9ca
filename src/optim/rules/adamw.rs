//! AdamW for dense parameters (Loshchilov & Hutter 2019, Algorithm 2), in place on the CPU.

use super::gathered;
use crate::lowrank::Truncation;
use crate::ops::Compute;
use crate::optim::cost::{MovedWeight, RuleCost};
use crate::optim::elementwise;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::optimizer::GradientOracle;
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Weight};
use crate::spec::AdamwSpec;
use anyhow::ensure;
use candle_core::{Result, Tensor};
use std::time::Duration;

impl RuleCost for AdamwSpec {
    /// Two moments.
    fn kept(&self, weight: MovedWeight) -> u64 {
        2 * weight.values
    }
}

/// Numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Learning rate η of this step, schedule included.
    pub learning_rate: f64,
    /// Decay β₁ of the first moment.
    pub beta1: f64,
    /// Decay β₂ of the second moment.
    pub beta2: f64,
    /// ε, added to √v̂.
    pub epsilon: f64,
    /// Decoupled weight decay λ.
    pub weight_decay: f64,
    /// Step t, counted from 1, for the bias correction.
    pub step: u64,
    /// Whether kernels or candle operations compute the step.
    pub compute: Compute,
}

/// First and second moment of one dense parameter, of its shape.
#[derive(Clone, Debug)]
pub struct AdamwState {
    /// m, the decayed mean of gradients.
    pub first: Tensor,
    /// v, the decayed mean of squared gradients.
    pub second: Tensor,
}

impl AdamwState {
    /// Zero moments for this parameter.
    pub fn new(weight: &Tensor) -> Result<Self> {
        Ok(Self { first: weight.zeros_like()?, second: weight.zeros_like()? })
    }

    /// One step: m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← (1 − ηλ)w − η m̂/(√v̂ + ε), with m̂ =
    /// m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ).
    pub fn step(
        &mut self,
        weight: &mut Tensor,
        gradient: Scaled<Tensor>,
        hyper: &AdamwStep,
    ) -> Result<()> {
        let AdamwStep { compute, beta1, beta2, .. } = *hyper;
        let correction1 = gathered(beta1, hyper.step);
        let correction2 = gathered(beta2, hyper.step);
        gradient.add_to(compute, &mut self.first, beta1, 1.0 - beta1)?;
        gradient.add_square_to(compute, &mut self.second, beta2, 1.0 - beta2)?;
        elementwise::subtract_quotient(
            compute,
            weight,
            1.0 - hyper.learning_rate * hyper.weight_decay,
            &self.first,
            hyper.learning_rate / correction1,
            &self.second,
            1.0 / correction2,
            hyper.epsilon,
        )
    }

    /// Adam's direction m̂/(√v̂ + ε) of a gradient and the new moments; nothing is changed in
    /// place, and learning rate and decay play no part.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn direction(&self, gradient: Scaled<Tensor>, hyper: &AdamwStep) -> Result<(Tensor, Self)> {
        let mut moments = Self { first: self.first.copy()?, second: self.second.copy()? };
        let mut from_zero = gradient.sum().zeros_like()?;
        let hyper = AdamwStep { learning_rate: 1.0, weight_decay: 0.0, ..*hyper };
        moments.step(&mut from_zero, gradient, &hyper)?;
        Ok((from_zero.neg()?, moments))
    }
}

impl Leaves for AdamwState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let first = map.tensor("first", &self.first)?;
        Ok(Self { first, second: map.tensor("second", &self.second)? })
    }
}

/// AdamW on a group of dense parameters.
#[derive(Debug)]
pub struct AdamwRule(pub AdamwSpec);

impl Rule for AdamwRule {
    type State = AdamwState;

    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<AdamwState> {
        Ok(AdamwState::new(params.dense(id)?)?)
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
        for (id, state) in members.ids.iter().zip(&mut members.states) {
            step_in_place(*id, state, &self.0, params, step)?;
        }
        Ok(Vec::new())
    }
}

/// Whether every gradient has its parameter's shape: what can fail in a step that is taken in
/// place.
///
/// # Errors
/// Naming the first parameter whose gradient has another shape.
pub(super) fn check_shapes(
    ids: &[ParamId],
    params: &ParamStore,
    step: &Step,
) -> anyhow::Result<()> {
    for &id in ids {
        let (weight, gradient) = (params.dense(id)?, step.gradients.dense(id)?.sum());
        ensure!(
            weight.dims() == gradient.dims(),
            "the gradient of `{}` has the shape {:?}, the parameter {:?}",
            params.get(id).name,
            gradient.dims(),
            weight.dims()
        );
    }
    Ok(())
}

/// One step of one parameter, in place; its moments start anew where the clock says so.
pub(super) fn step_in_place(
    id: ParamId,
    state: &mut AdamwState,
    spec: &AdamwSpec,
    params: &mut ParamStore,
    step: &Step,
) -> anyhow::Result<()> {
    let mut weight = params.dense(id)?.clone();
    // Decay acts on matrices only: norms and biases are offsets and scales that should not shrink.
    let weight_decay = if weight.rank() > 1 { spec.weight_decay } else { 0.0 };
    let hyper = AdamwStep {
        learning_rate: spec.learning_rate * step.schedule_factor,
        beta1: spec.beta1,
        beta2: spec.beta2,
        epsilon: spec.epsilon,
        weight_decay,
        step: step.moments.step,
        compute: step.execution.compute,
    };
    state.step(&mut weight, step.gradients.dense(id)?, &hyper)?;
    if step.moments.restart {
        *state = AdamwState::new(&weight)?;
    }
    params.set(id, Weight::Dense(weight));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Two steps of the update written out by hand on numbers, the definition of the paper.
    #[test]
    fn agrees_with_the_textbook_on_numbers() -> Result<()> {
        let (eta, b1, b2, eps, decay) = (0.1, 0.9, 0.99, 1e-8, 0.2);
        let gradients = [[0.5f64, -2.0, 0.0], [1.5, -1.0, 3.0]];
        let (mut w, mut m, mut v) = ([1.0f64, -2.0, 3.0], [0.0f64; 3], [0.0f64; 3]);
        let mut weight = Tensor::new(&w, &Device::Cpu)?;
        let mut state = AdamwState::new(&weight)?;
        for (t, gradient) in gradients.iter().enumerate() {
            let t = t as i32 + 1;
            for i in 0..3 {
                m[i] = b1 * m[i] + (1.0 - b1) * gradient[i];
                v[i] = b2 * v[i] + (1.0 - b2) * gradient[i] * gradient[i];
                let (m_hat, v_hat) = (m[i] / (1.0 - b1.powi(t)), v[i] / (1.0 - b2.powi(t)));
                w[i] = w[i] - eta * decay * w[i] - eta * m_hat / (v_hat.sqrt() + eps);
            }
            // The gradient arrives as a sum over four micro-batches and is scaled by a quarter.
            let sum = Tensor::new(&gradient.map(|g| 4.0 * g), &Device::Cpu)?;
            let hyper = AdamwStep {
                learning_rate: eta,
                beta1: b1,
                beta2: b2,
                epsilon: eps,
                weight_decay: decay,
                step: t as u64,
                compute: Compute::default(),
            };
            state.step(&mut weight, Scaled::new(&sum, 0.25), &hyper)?;
            for (ours, textbook) in weight.to_vec1::<f64>()?.iter().zip(&w) {
                assert!((ours - textbook).abs() < 1e-14, "{ours} {textbook}");
            }
        }
        Ok(())
    }
}
