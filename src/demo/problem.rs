//! Matrix approximation: f(W) = ½ ‖W − W*‖², starting from factors with a chosen degree of
//! imbalance.

use crate::linalg::{frobenius_norm, multiply, qr, weighted_sum};
use crate::lowrank::LowRank;
use crate::rng;
use candle_core::{Device, Result, Tensor};
use rand::Rng;
use serde::Serialize;

/// Rows m, columns n and rank r of W, W* and the factors B: m × r, A: r × n.
const ROWS: usize = 24;
const COLUMNS: usize = 16;
const RANK: usize = 4;

/// What makes a problem easy or hard; its matrices are drawn from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// Name.
    pub name: &'static str,
    /// What the problem shows, in a sentence.
    pub lesson: &'static str,
    /// Singular values of the target and of the start.
    pub spectrum: TargetSpectrum,
    /// Size of the noise on the gradient: the root mean square of ‖noise‖_F / ‖W*‖_F.
    pub noise: f64,
    /// The factors are B R and R⁻¹ A, with B and A balanced and R diagonal: r numbers in geometric
    /// sequence from this one down to its inverse. 1 leaves the factors balanced.
    pub imbalance: f64,
}

/// r singular values in geometric sequence from 1 down to 1/κ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TargetSpectrum {
    /// Condition number κ.
    pub condition: f64,
}

/// A problem with its matrices drawn.
#[derive(Clone, Debug)]
pub struct Instance {
    /// W*: m × n, of rank r.
    target: Tensor,
    /// ‖W*‖_F.
    target_norm: f64,
    /// Standard deviation of an element of the gradient's noise.
    noise: f64,
    seed: u64,
    left: Tensor,
    right: Tensor,
}

impl Problem {
    /// The problems of the demonstration: controls, on which the factors do as well, and problems
    /// that make them fail.
    pub const ALL: [Problem; 5] = [
        Problem {
            name: "well-conditioned, exact gradient",
            lesson: "a control: equal singular values, balanced factors; nothing that hurts a factor",
            spectrum: TargetSpectrum { condition: 1.0 },
            noise: 0.0,
            imbalance: 1.0,
        },
        Problem {
            name: "well-conditioned, noisy gradient",
            lesson: "a control: the same with noise on the gradient",
            spectrum: TargetSpectrum { condition: 1.0 },
            noise: NOISE,
            imbalance: 1.0,
        },
        Problem {
            name: "unbalanced factors, noisy gradient",
            lesson: "the control's W, W* and noise; only its factors are other ones, B R and R⁻¹ A",
            spectrum: TargetSpectrum { condition: 1.0 },
            noise: NOISE,
            imbalance: 10.0,
        },
        Problem {
            name: "small singular values, exact gradient",
            lesson: "target and start with singular values from 1 down to 1/100, balanced factors",
            spectrum: TargetSpectrum { condition: 100.0 },
            noise: 0.0,
            imbalance: 1.0,
        },
        Problem {
            name: "small singular values, noisy gradient",
            lesson: "the same with noise on the gradient",
            spectrum: TargetSpectrum { condition: 100.0 },
            noise: NOISE / 10.0,
            imbalance: 1.0,
        },
    ];

    /// Draws W*, the start and its factors.
    ///
    /// With W₀ = U diag(σ) Vᵀ for random orthonormal U and V, B = U diag(σ)^½ R and A = R⁻¹
    /// diag(σ)^½ Vᵀ.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn draw(&self, seed: u64) -> Result<Instance> {
        let sigma = self.spectrum.values();
        let mut rng = rng::stream(seed, "momentum demonstration", &[]);
        let mut basis =
            |rows: usize| Ok::<_, candle_core::Error>(qr(&normal((rows, RANK), 1.0, &mut rng)?)?.0);
        let [target_left, target_right] = [basis(ROWS)?, basis(COLUMNS)?];
        let [left, right] = [basis(ROWS)?, basis(COLUMNS)?];
        let scale = geometric(self.imbalance, 1.0 / self.imbalance);
        let scaled = |basis: &Tensor, by: &dyn Fn(usize) -> f64| -> Result<Tensor> {
            let row: Vec<f64> = (0..RANK).map(by).collect();
            basis.broadcast_mul(&Tensor::from_vec(row, (1, RANK), &Device::Cpu)?)
        };
        let target = multiply(&scaled(&target_left, &|i| sigma[i])?, &target_right.t()?)?;
        let target_norm = frobenius_norm(&target)?;
        Ok(Instance {
            noise: self.noise * target_norm / ((ROWS * COLUMNS) as f64).sqrt(),
            target,
            target_norm,
            seed,
            left: scaled(&left, &|i| sigma[i].sqrt() * scale[i])?,
            right: scaled(&right, &|i| sigma[i].sqrt() / scale[i])?.t()?.contiguous()?,
        })
    }
}

/// Relative size of the noise in the noisy problems.
const NOISE: f64 = 0.3;

impl TargetSpectrum {
    /// The singular values, in decreasing order.
    pub fn values(&self) -> Vec<f64> {
        geometric(1.0, 1.0 / self.condition)
    }
}

impl Instance {
    /// B: m × r of the start.
    pub fn left(&self) -> &Tensor {
        &self.left
    }

    /// A: r × n of the start.
    pub fn right(&self) -> &Tensor {
        &self.right
    }

    /// The same problem from the factors B R and R⁻¹ A of the same start, for R: r × r and its
    /// inverse.
    ///
    /// # Errors
    /// If R or its inverse is not r × r.
    pub fn in_other_factors(&self, r: &Tensor, inverse: &Tensor) -> Result<Self> {
        Ok(Self {
            left: multiply(&self.left, r)?,
            right: multiply(inverse, &self.right)?,
            ..self.clone()
        })
    }

    /// The start as a point: bases and coefficients from the factors' QR, B = U R_B, Aᵀ = V R_A, S
    /// = R_B R_Aᵀ.
    ///
    /// # Errors
    /// If a factor is not finite.
    pub fn point(&self) -> Result<LowRank> {
        let ((u, from_left), (v, from_right)) = (qr(&self.left)?, qr(&self.right.t()?)?);
        LowRank::from_parts(u, multiply(&from_left, &from_right.t()?)?, v)
    }

    /// Noise on the gradient, one matrix per step, the same for every method and learning rate.
    pub fn noise(&self) -> impl FnMut() -> Result<Tensor> {
        let (mut rng, deviation) =
            (rng::stream(self.seed, "momentum demonstration: noise", &[]), self.noise);
        move || normal((ROWS, COLUMNS), deviation, &mut rng)
    }

    /// ∇f(W) = W − W*: m × n.
    ///
    /// # Errors
    /// If W has another shape.
    pub fn gradient(&self, w: &Tensor) -> Result<Tensor> {
        weighted_sum(1.0, w, -1.0, &self.target)
    }

    /// ‖W − W*‖_F / ‖W*‖_F, from the exact gradient W − W*.
    ///
    /// # Errors
    /// If it is neither f32 nor f64.
    pub fn error(&self, gradient: &Tensor) -> Result<f64> {
        Ok(frobenius_norm(gradient)? / self.target_norm)
    }
}

/// r numbers from `first` to `last` in geometric sequence.
fn geometric(first: f64, last: f64) -> Vec<f64> {
    let ratio = (last / first).powf(1.0 / (RANK - 1) as f64);
    (0..RANK).map(|i| first * ratio.powi(i as i32)).collect()
}

fn normal((rows, columns): (usize, usize), deviation: f64, rng: &mut impl Rng) -> Result<Tensor> {
    let numbers: Vec<f64> =
        rng::normals(rng, rows * columns).into_iter().map(|x| deviation * x).collect();
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_and_point_are_the_same_start_whatever_the_balance() -> Result<()> {
        let [balanced, unbalanced] =
            [1.0, 10.0].map(|imbalance| Problem { imbalance, ..Problem::ALL[3] }.draw(4));
        let (balanced, unbalanced) = (balanced?, unbalanced?);
        let start = multiply(&balanced.left, &balanced.right)?;
        for other in [
            multiply(&unbalanced.left, &unbalanced.right)?,
            balanced.point()?.to_dense()?,
            unbalanced.point()?.to_dense()?,
        ] {
            assert!(frobenius_norm(&(&start - &other)?)? < 1e-14);
        }
        let sigma = balanced.point()?.singular_values()?;
        for (found, expected) in sigma.iter().zip(Problem::ALL[3].spectrum.values()) {
            assert!((found - expected).abs() < 1e-14, "{sigma:?}");
        }
        Ok(())
    }
}
