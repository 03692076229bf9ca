//! Heavy ball (SGD with momentum) for the free factors of W = B A or W = U S Vᵀ (Polyak 1964).

use super::elementwise::decay_and_add;
use crate::ops::Compute;
use crate::spec::HeavyBallSpec;
use candle_core::{Result, Tensor};

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
        gradient: &Tensor,
        rule: &HeavyBallSpec,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        decay_and_add(compute, &mut self.first, rule.beta1, gradient, gradient_scale)?;
        decay_and_add(
            compute,
            weight,
            1.0 - learning_rate * rule.weight_decay,
            &self.first,
            -learning_rate,
        )
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
            state.step(
                Compute::default(),
                &mut weight,
                &Tensor::new(&gradient.map(|g| 4.0 * g), &Device::Cpu)?,
                &rule,
                0.5,
                0.25,
            )?;
            for (ours, textbook) in weight.to_vec1::<f64>()?.iter().zip(&w) {
                assert!((ours - textbook).abs() < 1e-14, "{ours} {textbook}");
            }
        }
        Ok(())
    }
}
