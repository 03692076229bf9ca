//! AdamW for dense parameters (Loshchilov & Hutter 2019, Algorithm 2), in place on the CPU.

use super::elementwise;
use super::state::StateReader;
use crate::ops::Compute;
use candle_core::{Result, Tensor};

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
    /// Factor on the gradient: accumulation mean and clipping together.
    pub gradient_scale: f64,
    /// By which code.
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
        gradient: &Tensor,
        hyper: &AdamwStep,
    ) -> Result<()> {
        let correction1 = 1.0 - hyper.beta1.powi(hyper.step as i32);
        let correction2 = 1.0 - hyper.beta2.powi(hyper.step as i32);
        elementwise::decay_and_add(
            hyper.compute,
            &mut self.first,
            hyper.beta1,
            gradient,
            (1.0 - hyper.beta1) * hyper.gradient_scale,
        )?;
        elementwise::decay_and_add_square(
            hyper.compute,
            &mut self.second,
            hyper.beta2,
            gradient,
            hyper.gradient_scale,
            1.0 - hyper.beta2,
        )?;
        elementwise::subtract_quotient(
            hyper.compute,
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
    pub fn direction(&self, gradient: &Tensor, hyper: &AdamwStep) -> Result<(Tensor, Self)> {
        let mut moments = Self { first: self.first.copy()?, second: self.second.copy()? };
        let mut from_zero = gradient.zeros_like()?;
        moments.step(
            &mut from_zero,
            gradient,
            &AdamwStep { learning_rate: 1.0, weight_decay: 0.0, ..*hyper },
        )?;
        Ok((from_zero.neg()?, moments))
    }

    /// The moments from named tensors; the shapes must be those of `self`.
    pub fn load(&self, reader: &mut StateReader) -> anyhow::Result<Self> {
        Ok(Self {
            first: reader.take_like("first", &self.first)?,
            second: reader.take_like("second", &self.second)?,
        })
    }
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
                gradient_scale: 0.25,
                compute: Compute::default(),
            };
            state.step(&mut weight, &sum, &hyper)?;
            for (ours, textbook) in weight.to_vec1::<f64>()?.iter().zip(&w) {
                assert!((ours - textbook).abs() < 1e-14, "{ours} {textbook}");
            }
        }
        Ok(())
    }
}
