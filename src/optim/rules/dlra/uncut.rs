//! A low-rank weight before it is cut: one dense matrix W: m × n, moved as the low-rank rule moves a
//! weight of full rank, where the manifold is everything.
//!
//! ```text
//! spectral                  Muon's step         D = 0.2 √max(m, n) polar(m)
//! input_whitened_spectral   Newton-Muon's       D = 0.2 √max(m, n) polar(m H), H of inputs x
//! adam                      AdamW's             D = m̂ / (√v̂ + ε)
//! heavy_ball                heavy ball          D = m
//! ```
//!
//! with m ← β₁m + w g as the momentum has it, Nesterov's look-ahead where it is asked for, and W ←
//! (1 − ηλ) W − η D. A cut goes by the singular values of W itself; the first moment is projected to
//! the tangent space at the point that W becomes, second moments go there as variances of
//! independent coordinates, and those of inputs as what V sees of them.

use super::cut_moments::WholeMoments;
use super::momenta::carried;
use super::{DlraState, DlraStep};
use crate::lowrank::{LowRank, Tangent};
use crate::ops::Compute;
use crate::optim::elementwise::{decay_and_add, subtract_quotient};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::rules::{MuonState, gathered};
use crate::spec::{DlraSpec, Momentum, MuonSpec};
use candle_core::{Result, Tensor};

/// Moments of a weight that is not cut yet, of its shape.
#[derive(Clone, Debug)]
pub struct UncutState {
    /// The decayed mean of gradients, or their decayed sum under `heavy_ball`.
    pub first: Tensor,
    /// The decayed mean of squared gradients, for `adam`.
    pub second: Option<Tensor>,
    /// The decayed sum of xᵀx, n × n, for `input_whitened_spectral`.
    pub inputs: Option<Tensor>,
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
        let MuonState { first, inputs } = MuonState::new(weight, &muon(settings))?;
        Ok(Self { first, second, inputs, cut_moments: None })
    }

    /// The same state with xᵀx taken in, n × n, of the inputs of the next gradient's batch: A ← β₂A
    /// + (1−β₂)xᵀx; nothing where it keeps none.
    ///
    /// # Errors
    /// If the shape is not n × n.
    pub fn with_inputs(&self, inputs: &Tensor, settings: &DlraSpec) -> Result<Self> {
        let MuonState { inputs, .. } = self.as_muon().with_inputs(inputs, settings.beta2)?;
        Ok(Self { inputs, ..self.clone() })
    }

    /// What Muon's step goes by.
    fn as_muon(&self) -> MuonState {
        MuonState { first: self.first.clone(), inputs: self.inputs.clone() }
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
        if is_muon(hyper.settings) {
            let rule = MuonSpec { beta1, ..muon(hyper.settings) };
            let (weight, MuonState { first, .. }) =
                self.as_muon().step(weight, gradient, &rule, learning_rate)?;
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
            momentum: carried(point, self, gathered, settings)?,
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
        let inputs = match &self.inputs {
            Some(inputs) => Some(map.tensor("input_second", inputs)?),
            None => None,
        };
        let cut_moments =
            self.cut_moments.as_ref().map(|moments| moments.map_leaves(map)).transpose()?;
        Ok(Self { first, second, inputs, cut_moments })
    }
}

/// Whether the step is Muon's.
pub(super) fn is_muon(settings: &DlraSpec) -> bool {
    matches!(settings.momentum, Momentum::Spectral | Momentum::InputWhitenedSpectral)
}

/// Muon by these settings, without their path of β₁.
pub(super) fn muon(settings: &DlraSpec) -> MuonSpec {
    let DlraSpec { learning_rate, beta1, nesterov, beta2, weight_decay, .. } = *settings;
    let input_damping = settings.momentum.measures_inputs().then_some(settings.input_damping);
    let beta1_schedule = None;
    MuonSpec { learning_rate, beta1, beta1_schedule, nesterov, input_damping, beta2, weight_decay }
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

    /// xᵀx of a batch's inputs, uneven.
    fn inputs(draw: u64, dtype: DType) -> Tensor {
        let numbers: Vec<f64> = rng::normals(&mut rng::stream(29, "inputs", &[draw]), 20 * SIZE.1);
        let scaled = numbers.iter().enumerate().map(|(i, x)| x * (1 + i % SIZE.1) as f64);
        let x = Tensor::from_vec(scaled.collect::<Vec<f64>>(), (20, SIZE.1), &Device::Cpu);
        crate::linalg::gram(&x.and_then(|x| x.to_dtype(dtype)).expect("rows")).expect("xᵀx")
    }

    /// Weight and first moment after three steps along given gradients, with inputs taken in where
    /// they count.
    fn trained(settings: &DlraSpec) -> (Tensor, UncutState) {
        let mut weight = normal(0, DType::F32);
        let mut state = UncutState::new(&weight, settings).expect("zeros");
        for step in 1..=3 {
            let (rank, learning_rate) = (RankDecision::Keep, settings.learning_rate);
            let hyper = DlraStep { settings, learning_rate, step, rank, of_head: false };
            let sum = normal(step, DType::F32);
            state = state.with_inputs(&inputs(step, DType::F32), settings).expect("n × n");
            let next = state.step(&weight, Scaled::new(&sum, 0.25), &hyper, Compute::default());
            (weight, state) = next.expect("a step");
        }
        (weight, state)
    }

    /// Bit for bit, weight and moments.
    #[test]
    fn steps_are_those_of_the_dense_rules() -> Result<()> {
        let gradients: Vec<Tensor> = (1..=3).map(|step| normal(step, DType::F32)).collect();
        let (plain, whitened) = (Momentum::Spectral, Momentum::InputWhitenedSpectral);
        for (momentum, input_damping, nesterov) in
            [(plain, None, false), (plain, None, true), (whitened, Some(0.2), true)]
        {
            let (weight, state) = trained(&settings(momentum, nesterov));
            let (learning_rate, beta1, weight_decay) = (0.03, 0.9, 0.2);
            let rule =
                MuonSpec { learning_rate, beta1, nesterov, weight_decay, ..MuonSpec::default() };
            let rule = MuonSpec { input_damping, ..rule };
            let start = normal(0, DType::F32);
            let mut muon = (start.clone(), MuonState::new(&start, &rule)?);
            for (gradient, step) in gradients.iter().zip(1..) {
                let measured = muon.1.with_inputs(&inputs(step, DType::F32), 0.99)?;
                muon = measured.step(&muon.0, Scaled::new(gradient, 0.25), &rule, 0.03)?;
            }
            assert_eq!(bits(&weight), bits(&muon.0));
            assert_eq!(bits(&state.first), bits(&muon.1.first));
            assert_eq!(state.inputs.as_ref().map(bits), muon.1.inputs.as_ref().map(bits));
            assert_eq!(state.inputs.is_some(), input_damping.is_some());
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
            let hyper =
                DlraStep { settings: &settings, learning_rate, step: 1, rank, of_head: false };
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
        let state = UncutState { first: first.clone(), ..UncutState::new(&weight, &settings)? };
        let state = UncutState { second: Some(second.clone()), ..state };
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

    /// After two measurements C₁ and C₂ of inputs the factors' mean is what V sees of (β₂(1−β₂)C₁ +
    /// (1−β₂)C₂) / (1−β₂²): the bias correction comes with it.
    #[test]
    fn second_moments_of_inputs_come_to_the_factors_as_v_sees_them() -> Result<()> {
        let settings = settings(Momentum::InputWhitenedSpectral, false);
        let mut state = UncutState::new(&normal(0, DType::F64), &settings)?;
        for step in [1, 2] {
            state = state.with_inputs(&inputs(step, DType::F64), &settings)?;
        }
        let point = LowRank::from_dense(&normal(0, DType::F64), 3)?;
        let leaves = state.carried_to(&point, 2, &settings)?.named_tensors().expect("leaves");
        let leaf =
            |name: &str| leaves.iter().find(|(other, _)| other == name).expect(name).1.clone();
        let decay = settings.beta2;
        let mean = ((inputs(1, DType::F64) * (decay / (1.0 + decay)))?
            + (inputs(2, DType::F64) * (1.0 / (1.0 + decay)))?)?;
        let expected = point.v.t()?.matmul(&mean)?.matmul(&point.v)?;
        let weight = leaf("input_second_weight");
        let even = (Tensor::eye(3, DType::F64, &Device::Cpu)? * (1.0 - decay * decay))?;
        assert!(frobenius_norm(&(&weight - &even)?)? < 1e-12);
        let found = (leaf("input_second") / (1.0 - decay * decay))?;
        let apart = frobenius_norm(&(found - &expected)?)?;
        assert!(apart < 1e-10 * frobenius_norm(&expected)?, "{apart}");
        Ok(())
    }

    /// Entries that have all gathered the same mean have it in the factors' coordinates: v/c of M,
    /// and on average of the rows of P and Q.
    #[test]
    fn equal_second_moments_stay_equal() -> Result<()> {
        let settings = settings(Momentum::Adam, false);
        let gathered = gathered(settings.beta2, 40);
        let second = normal(0, DType::F64).zeros_like()?.affine(1.0, 0.04 * gathered)?;
        let state = UncutState::new(&second, &settings)?;
        let state = UncutState { first: second.clone(), second: Some(second), ..state };
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
