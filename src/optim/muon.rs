//! Muon for full matrices: momentum whose polar factor is the direction (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

use crate::linalg::polar_newton_schulz;
use crate::spec::MuonSpec;
use candle_core::{Result, Tensor};

/// Scale of a direction, so that learning rates match Adam's: 0.2 √max(m, n) (Liu et al. 2025, arXiv:2502.16982, eq. 4).
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

    /// One step of a matrix W: m × n: M ← β₁M + (1−β₁)G, D = polar(M) or, with Nesterov, polar(β₁M + (1−β₁)G), W ← (1−ηλ)W − η 0.2 √max(m, n) D.
    ///
    /// The polar factor is [`polar_newton_schulz`]. Nothing is changed in place.
    ///
    /// # Errors
    /// If an element is not finite.
    pub fn step(&self, weight: &Tensor, gradient: &Tensor, rule: &MuonSpec, learning_rate: f64, gradient_scale: f64) -> Result<(Tensor, Self)> {
        let mix = |mean: &Tensor| -> Result<Tensor> { (mean * rule.beta1)? + (gradient * ((1.0 - rule.beta1) * gradient_scale))? };
        let first = mix(&self.first)?;
        let direction = polar_newton_schulz(&if rule.nesterov { mix(&first)? } else { first.clone() })?;
        let (rows, columns) = weight.dims2()?;
        let scale = learning_rate * SPECTRAL_SCALE * (rows.max(columns) as f64).sqrt();
        let weight = ((weight * (1.0 - learning_rate * rule.weight_decay))? - (direction * scale)?)?;
        Ok((weight, Self { first }))
    }
}
