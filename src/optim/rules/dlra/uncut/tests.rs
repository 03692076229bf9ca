//! Steps of weights that are not cut yet, beside those of dense rules and of points.

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
        let rule = MuonSpec { learning_rate, beta1, nesterov, weight_decay, ..MuonSpec::default() };
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
        let hyper = DlraStep { settings: &settings, learning_rate, step: 1, rank, of_head: false };
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
    let projected =
        ((left.matmul(&first)? + first.matmul(&right)?)? - left.matmul(&first)?.matmul(&right)?)?;
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
            let of = |(i, j): (usize, usize)| (u[i][row] * v[j][column]).powi(2) * variance[i][j];
            assert!((terms.map(of).sum::<f64>() - m[row][column]).abs() < 1e-12);
        }
        for (row, found) in p.iter().enumerate() {
            let terms = (0..SIZE.0).flat_map(|i| (0..SIZE.1).map(move |j| (i, j)));
            let of =
                |(i, j): (usize, usize)| (outside[row][i] * v[j][column]).powi(2) * variance[i][j];
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
    let leaf = |name: &str| leaves.iter().find(|(other, _)| other == name).expect(name).1.clone();
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
