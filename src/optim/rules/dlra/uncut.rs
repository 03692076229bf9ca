//! A low-rank weight before it is cut: one dense matrix W: m × n, moved as the low-rank rule moves a
//! weight of full rank, where the manifold is everything.
//!
//! ```text
//! spectral     Muon's step              D = 0.2 √max(m, n) polar(m)
//! adam         AdamW's                  D = m̂ / (√v̂ + ε)
//! heavy_ball   heavy ball               D = m
//! ```
//!
//! with m ← β₁m + w g as the momentum has it, Nesterov's look-ahead where it is asked for, and W ←
//! (1 − ηλ) W − η D. A cut goes by the singular values of W itself; the first moment is projected to
//! the tangent space at the point that W becomes, and second moments go there as variances of
//! independent coordinates.

use super::cut_moments::WholeMoments;
use super::momenta::carried;
use super::{DlraState, DlraStep};
use crate::linalg::polar_newton_schulz_flops;
use crate::lowrank::{LowRank, Tangent};
use crate::ops::Compute;
use crate::optim::cost::{MovedWeight, WeightSize};
use crate::optim::elementwise::{decay_and_add, subtract_quotient};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::rules::{MuonState, gathered};
use crate::spec::{DlraSpec, Momentum, MuonSpec, RankNorm};
use candle_core::{Result, Tensor};

/// Moments of a weight that is not cut yet, of its shape.
#[derive(Clone, Debug)]
pub struct UncutState {
    /// The decayed mean of gradients, or their decayed sum under `heavy_ball`.
    pub first: Tensor,
    /// The decayed mean of squared gradients, for `adam`.
    pub second: Option<Tensor>,
    /// Second moments for cuts, where they are carried.
    pub(super) cut_moments: Option<WholeMoments>,
}

impl UncutState {
    /// Zero moments for this matrix.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn new(weight: &Tensor, settings: &DlraSpec) -> Result<Self> {
        let is_adam = settings.momentum == Momentum::Adam;
        let second = if is_adam { Some(weight.zeros_like()?) } else { None };
        Ok(Self { first: weight.zeros_like()?, second, cut_moments: None })
    }

    /// The same state of this matrix, which carries second moments for cuts from now on.
    ///
    /// # Errors
    /// If the device has no memory for them.
    pub fn carrying_moments(self, weight: &Tensor) -> Result<Self> {
        Ok(Self { cut_moments: Some(WholeMoments::new(weight)?), ..self })
    }

    /// The same state with second moments taken in that were measured at its matrix, δᵀδ and xᵀx:
    /// E ← dE + (1−d)E_now with d = `decay`; nothing where it carries none.
    ///
    /// # Errors
    /// If a shape is not m × m or n × n.
    pub fn with_moments(&self, decay: f64, measured: [&Tensor; 2]) -> Result<Self> {
        let mut state = self.clone();
        if let Some(moments) = &mut state.cut_moments {
            moments.update(decay, measured)?;
        }
        Ok(state)
    }

    /// One step; nothing is changed in place.
    ///
    /// # Errors
    /// If an element is not finite under `spectral`, or shapes differ.
    pub fn step(
        &self,
        weight: &Tensor,
        gradient: Scaled<Tensor>,
        hyper: &DlraStep,
        compute: Compute,
    ) -> Result<(Tensor, Self)> {
        let DlraSpec { beta2, epsilon, weight_decay, nesterov, .. } = *hyper.settings;
        let (learning_rate, beta1) = (hyper.learning_rate, hyper.beta1().at(hyper.step));
        if hyper.settings.momentum == Momentum::Spectral {
            let (beta1_schedule, state) = (None, MuonState { first: self.first.clone() });
            let rule = MuonSpec { learning_rate, beta1, beta1_schedule, nesterov, weight_decay };
            let (weight, MuonState { first }) =
                state.step(weight, gradient, &rule, learning_rate)?;
            return Ok((weight, Self { first, second: None, ..self.clone() }));
        }
        let new = match self.second {
            Some(_) => 1.0 - beta1,
            None => 1.0,
        };
        let mut first = self.first.copy()?;
        gradient.add_to(compute, &mut first, beta1, new)?;
        let mut mean = first.clone();
        if nesterov {
            mean = first.copy()?;
            gradient.add_to(compute, &mut mean, beta1, new)?;
        }
        let (keep, mut weight) = (1.0 - learning_rate * weight_decay, weight.copy()?);
        let Some(second) = &self.second else {
            decay_and_add(compute, &mut weight, keep, &mean, -learning_rate)?;
            return Ok((weight, Self { first, second: None, ..self.clone() }));
        };
        let mut second = second.copy()?;
        gradient.add_square_to(compute, &mut second, beta2, 1.0 - beta2)?;
        let rate = learning_rate / hyper.beta1().gathered(hyper.step, nesterov);
        let correction = 1.0 / gathered(beta2, hyper.step);
        subtract_quotient(compute, &mut weight, keep, &mean, rate, &second, correction, epsilon)?;
        Ok((weight, Self { first, second: Some(second), ..self.clone() }))
    }

    /// The moments after `step` steps at a point that the matrix was cut to.
    ///
    /// # Errors
    /// If the point has another shape.
    pub fn carried_to(&self, point: &LowRank, step: u64, settings: &DlraSpec) -> Result<DlraState> {
        let gathered = gathered(settings.beta2, step);
        Ok(DlraState {
            first: Tangent::project(point, &self.first)?,
            momentum: carried(point, self.second.as_ref(), gathered, settings)?,
            cycle_rank: None,
            cut_moments: self.cut_moments.as_ref().map(|own| own.seen_by(point)).transpose()?,
        })
    }
}

impl Leaves for UncutState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let first = map.tensor("first", &self.first)?;
        let second = match &self.second {
            Some(second) => Some(map.tensor("second", second)?),
            None => None,
        };
        let cut_moments =
            self.cut_moments.as_ref().map(|moments| moments.map_leaves(map)).transpose()?;
        Ok(Self { first, second, cut_moments })
    }
}

/// Numbers of the moments.
pub(super) fn kept(settings: &DlraSpec, weight: MovedWeight) -> u64 {
    if settings.momentum == Momentum::Adam { 2 * weight.values } else { weight.values }
}

/// Operations of a step: the polar factor of `spectral`.
pub(super) fn step_flops(settings: &DlraSpec, size: WeightSize) -> u64 {
    match settings.momentum {
        Momentum::Spectral => polar_newton_schulz_flops(size.rows, size.columns),
        _ => 0,
    }
}

/// Operations of a cut beside the step that it ends, which has this many tokens, counted as if all
/// directions stayed; k is the shorter side.
///
/// The thin SVD of W ([`WeightSize::dense_svd_flops`]) and that of its diagonal, 21 k³; the new bases,
/// 2 (m + n) k², and the projection of the first moment, 4 m n k + 4 m k² + 2 n k².
/// In the Fisher norm besides: second moments, 2 (m² + n²) a token; as seen in the bases, 2 (m² + n²)
/// k + 2 (m + n) k²; and what a cut of factors of rank k takes beyond its moments and their way, 22
/// k³ + 8 k³ + 8 k³ + 16/3 k³ + 21 k³ + 4 k³.
pub(super) fn cut_flops(norm: RankNorm, size: WeightSize, tokens: u64) -> u64 {
    let WeightSize { rows, columns, .. } = size;
    let (short, _) = size.short_and_long();
    let (square, cube) = (short * short, short * short * short);
    let frobenius = size.dense_svd_flops()
        + 21 * cube
        + 2 * (rows + columns) * square
        + 4 * rows * columns * short
        + (4 * rows + 2 * columns) * square;
    let squares = rows * rows + columns * columns;
    let fisher = 2 * squares * (tokens + short)
        + 2 * (rows + columns) * square
        + (22 + 8 + 8 + 21 + 4) * cube
        + 16 * cube / 3;
    match norm {
        RankNorm::Frobenius => frobenius,
        RankNorm::Fisher => frobenius + fisher,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::frobenius_norm;
    use crate::optim::rank::RankDecision;
    use crate::optim::rules::{AdamwState, AdamwStep, HeavyBallState};
    use crate::rng;
    use crate::spec::HeavyBallSpec;
    use candle_core::{DType, Device};

    const SIZE: (usize, usize) = (12, 7);

    fn normal(draw: u64, dtype: DType) -> Tensor {
        let numbers = rng::normals(&mut rng::stream(23, "uncut", &[draw]), SIZE.0 * SIZE.1);
        let tensor = Tensor::from_vec(numbers, SIZE, &Device::Cpu).expect("a matrix");
        tensor.to_dtype(dtype).expect("numbers")
    }

    fn settings(momentum: Momentum, nesterov: bool) -> DlraSpec {
        let (learning_rate, weight_decay) = (0.03, 0.2);
        DlraSpec { momentum, nesterov, learning_rate, weight_decay, ..DlraSpec::default() }
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let numbers = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("numbers");
        numbers.into_iter().map(f32::to_bits).collect()
    }

    /// Weight and first moment after three steps along given gradients.
    fn trained(settings: &DlraSpec) -> (Tensor, UncutState) {
        let mut weight = normal(0, DType::F32);
        let mut state = UncutState::new(&weight, settings).expect("zeros");
        for step in 1..=3 {
            let (rank, learning_rate) = (RankDecision::Keep, settings.learning_rate);
            let hyper = DlraStep { settings, learning_rate, step, rank };
            let sum = normal(step, DType::F32);
            let next = state.step(&weight, Scaled::new(&sum, 0.25), &hyper, Compute::default());
            (weight, state) = next.expect("a step");
        }
        (weight, state)
    }

    /// Bit for bit, weight and moments.
    #[test]
    fn steps_are_those_of_the_dense_rules() -> Result<()> {
        let gradients: Vec<Tensor> = (1..=3).map(|step| normal(step, DType::F32)).collect();
        for nesterov in [false, true] {
            let (weight, state) = trained(&settings(Momentum::Spectral, nesterov));
            let rule = MuonSpec {
                learning_rate: 0.03,
                beta1: 0.9,
                beta1_schedule: None,
                nesterov,
                weight_decay: 0.2,
            };
            let mut muon = (normal(0, DType::F32), MuonState::new(&normal(0, DType::F32))?);
            for gradient in &gradients {
                muon = muon.1.step(&muon.0, Scaled::new(gradient, 0.25), &rule, 0.03)?;
            }
            assert_eq!(bits(&weight), bits(&muon.0));
            assert_eq!(bits(&state.first), bits(&muon.1.first));
        }
        let adam = settings(Momentum::Adam, false);
        let (weight, state) = trained(&adam);
        let mut dense = normal(0, DType::F32);
        let mut moments = AdamwState::new(&dense)?;
        for (step, gradient) in gradients.iter().enumerate() {
            let hyper = AdamwStep {
                learning_rate: 0.03,
                beta1: adam.beta1,
                beta2: adam.beta2,
                epsilon: adam.epsilon,
                weight_decay: 0.2,
                step: step as u64 + 1,
                compute: Compute::default(),
            };
            moments.step(&mut dense, Scaled::new(gradient, 0.25), &hyper)?;
        }
        assert_eq!(bits(&weight), bits(&dense));
        assert_eq!(bits(&state.first), bits(&moments.first));
        assert_eq!(state.second.as_ref().map(bits), Some(bits(&moments.second)));

        let (weight, state) = trained(&settings(Momentum::HeavyBall, false));
        let rule = HeavyBallSpec { learning_rate: 0.03, beta1: 0.9, weight_decay: 0.2 };
        let mut dense = normal(0, DType::F32);
        let mut ball = HeavyBallState::new(&dense)?;
        for gradient in &gradients {
            let scaled = Scaled::new(gradient, 0.25);
            ball.step(Compute::default(), &mut dense, scaled, &rule, 0.03)?;
        }
        assert_eq!(bits(&weight), bits(&dense));
        assert_eq!(bits(&state.first), bits(&ball.first));
        Ok(())
    }

    /// With Nesterov the first step's mean is (1 − β₁)(1 + β₁) g, whose weights add up to 1 − β₁²,
    /// so that Adam's direction is g / |g| as without; and of heavy ball (1 + β₁) g.
    #[test]
    fn looks_ahead_where_it_is_asked_to() -> Result<()> {
        for (momentum, factor) in [(Momentum::Adam, None), (Momentum::HeavyBall, Some(1.9))] {
            let settings = DlraSpec { weight_decay: 0.0, ..settings(momentum, true) };
            let (weight, sum) = (normal(0, DType::F64), normal(1, DType::F64));
            let (rank, learning_rate) = (RankDecision::Keep, settings.learning_rate);
            let hyper = DlraStep { settings: &settings, learning_rate, step: 1, rank };
            let state = UncutState::new(&weight, &settings)?;
            let (moved, _) =
                state.step(&weight, Scaled::new(&sum, 0.25), &hyper, Compute::default())?;
            let direction = match factor {
                Some(factor) => (&sum * (0.25 * factor))?,
                None => sum.sign()?,
            };
            let expected = (&weight - (direction * learning_rate)?)?;
            assert!(frobenius_norm(&(&moved - &expected)?)? < 1e-8, "{momentum:?}");
        }
        Ok(())
    }

    /// The first moment is UUᵀM + MVVᵀ − UUᵀMVVᵀ, and the second moments of its coordinates are
    /// what independent entries give, entry by entry.
    #[test]
    fn moments_come_to_the_factors_as_dense_ones_do() -> Result<()> {
        let settings = settings(Momentum::Adam, false);
        let weight = normal(0, DType::F64);
        let (first, second) = (normal(1, DType::F64), normal(2, DType::F64).sqr()?);
        let (kept, cut_moments) = (Some(second.clone()), None);
        let state = UncutState { first: first.clone(), second: kept, cut_moments };
        let point = LowRank::from_dense(&weight, 3)?;
        let carried = state.carried_to(&point, 40, &settings)?;
        let (u, v) = (&point.u, &point.v);
        let (left, right) = (u.matmul(&u.t()?)?, v.matmul(&v.t()?)?);
        let projected = ((left.matmul(&first)? + first.matmul(&right)?)?
            - left.matmul(&first)?.matmul(&right)?)?;
        let difference = (carried.first.to_dense(&point)? - projected)?;
        assert!(frobenius_norm(&difference)? < 1e-12);

        let numbers = |x: &Tensor| x.to_vec2::<f64>();
        let (u, v, variance) = (numbers(u)?, numbers(v)?, numbers(&second)?);
        let outside = numbers(&(Tensor::eye(SIZE.0, DType::F64, &Device::Cpu)? - left)?)?;
        let moments = Tangent::project_second_moments(&point, &second)?;
        let (m, p) = (numbers(&moments.m)?, numbers(&moments.p)?);
        for column in 0..3 {
            for row in 0..3 {
                let terms = (0..SIZE.0).flat_map(|i| (0..SIZE.1).map(move |j| (i, j)));
                let of =
                    |(i, j): (usize, usize)| (u[i][row] * v[j][column]).powi(2) * variance[i][j];
                assert!((terms.map(of).sum::<f64>() - m[row][column]).abs() < 1e-12);
            }
            for (row, found) in p.iter().enumerate() {
                let terms = (0..SIZE.0).flat_map(|i| (0..SIZE.1).map(move |j| (i, j)));
                let of = |(i, j): (usize, usize)| {
                    (outside[row][i] * v[j][column]).powi(2) * variance[i][j]
                };
                assert!((terms.map(of).sum::<f64>() - found[column]).abs() < 1e-12);
            }
        }
        Ok(())
    }

    /// Entries that have all gathered the same mean have it in the factors' coordinates: v/c of M,
    /// and on average of the rows of P and Q.
    #[test]
    fn equal_second_moments_stay_equal() -> Result<()> {
        let settings = settings(Momentum::Adam, false);
        let gathered = gathered(settings.beta2, 40);
        let second = normal(0, DType::F64).zeros_like()?.affine(1.0, 0.04 * gathered)?;
        let state = UncutState { first: second.clone(), second: Some(second), cut_moments: None };
        let point = LowRank::from_dense(&normal(0, DType::F64), 3)?;
        let carried = state.carried_to(&point, 40, &settings)?;
        let leaf = |name: &str| -> Tensor {
            let leaves = carried.named_tensors().expect("leaves");
            leaves.into_iter().find(|(other, _)| other == name).expect(name).1
        };
        for part in ["m", "p", "q"] {
            let (sum, weight) =
                (leaf(&format!("second.{part}")), leaf(&format!("second_weight.{part}")));
            let means = (sum.mean_keepdim(0)? / weight.narrow(0, 0, 1)?)?;
            for mean in means.flatten_all()?.to_vec1::<f64>()? {
                assert!((mean - 0.04).abs() < 1e-12, "{part}: {mean}");
            }
        }
        Ok(())
    }
}
