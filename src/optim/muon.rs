//! Muon for full matrices: momentum whose polar factor is the direction (Jordan et al. 2024,
//! kellerjordan.github.io/posts/muon).

use crate::linalg::{matrix_shape, polar_newton_schulz};
use crate::spec::MuonSpec;
use candle_core::{Result, Tensor};

/// Scale of a direction, so that learning rates match Adam's: 0.2 √max(m, n) (Liu et al. 2025,
/// arXiv:2502.16982, eq. 4).
pub(super) const SPECTRAL_SCALE: f64 = 0.2;

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

    /// One step of a matrix W: m × n: M ← β₁M + (1−β₁)G, D = polar(M) or, with Nesterov, polar(β₁M
    /// + (1−β₁)G), W ← (1−ηλ)W − η 0.2 √max(m, n) D.
    ///
    /// The polar factor is [`polar_newton_schulz`]. Nothing is changed in place.
    ///
    /// # Errors
    /// If an element is not finite.
    pub fn step(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        rule: &MuonSpec,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<(Tensor, Self)> {
        let mix = |mean: &Tensor| -> Result<Tensor> {
            (mean * rule.beta1)? + (gradient * ((1.0 - rule.beta1) * gradient_scale))?
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::polar;
    use crate::rng;
    use candle_core::{DType, Device};

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
            let rule = MuonSpec { learning_rate: 0.1, beta1: 0.9, nesterov, weight_decay: 0.2 };
            let (mut weight, mut textbook) = (normal(0)?, normal(0)?);
            let (mut state, mut mean) = (MuonState::new(&weight)?, weight.zeros_like()?);
            for step in 1..=2 {
                let gradient = normal(step)?;
                (weight, state) = state.step(&weight, &(&gradient * 4.0)?, &rule, 0.1, 0.25)?;
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
