//! Extreme numbers and impossible inputs of the operations: right, or refused by name.

use candle_core::{DType, Device, Result, Tensor};
use lrpt::ops::{self, Compute, Gradients, Rotation, Tape, Value};
use lrpt::rng;

fn normal(draw: u64, shape: &[usize]) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(12, "ops test", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

#[test]
fn huge_logits_stay_finite_and_right() -> Result<()> {
    let tape = Tape::training();
    // Logits of ±10⁴: row 0 is certain and right (loss 0), row 1 certain and wrong (loss 2·10⁴).
    let h = Tensor::new(&[[[1e4f32], [1e4]]], &Device::Cpu)?;
    let w = Tensor::new(&[[1f32], [-1.0], [0.0]], &Device::Cpu)?;
    let targets = Tensor::new(&[[0u32, 1]], &Device::Cpu)?;
    let loss =
        ops::cross_entropy_head(&tape, &tape.parameter(0, &h), &tape.parameter(1, &w), &targets)?;
    assert_eq!(loss.tensor().to_scalar::<f32>()?, 1e4);
    assert_eq!(ops::cross_entropy_sum(Compute::default(), &h, &w, &targets)?, 2e4);
    let mut gradients = Gradients::new(2);
    tape.backward(&loss, &mut gradients)?;
    // d logits = (p − onehot)/2: zero for row 0, (½, −½, 0) for row 1.
    assert_eq!(numbers(gradients.get(0).expect("dh"))?, [0.0, 1.0]);
    assert_eq!(numbers(gradients.get(1).expect("dW"))?, [5e3, -5e3, 0.0]);

    let scores = |sign: f32| -> Result<Vec<f64>> {
        let tape = Tape::inference();
        let q = tape.constant(Tensor::new(&[[[1e4f32], [sign * 1e4]]], &Device::Cpu)?);
        let k = tape.constant(Tensor::new(&[[[1e2f32], [-1e2]]], &Device::Cpu)?);
        let v = tape.constant(Tensor::new(&[[[3f32], [5.0]]], &Device::Cpu)?);
        numbers(ops::causal_attention(&tape, &q, &k, &v, 1, None)?.tensor())
    };
    assert_eq!(scores(1.0)?, [3.0, 3.0]);
    assert_eq!(scores(-1.0)?, [3.0, 5.0]);
    Ok(())
}

#[test]
fn not_a_number_is_passed_on() -> Result<()> {
    let tape = Tape::inference();
    let x = tape.constant(Tensor::new(&[[1f32, f32::NAN, 2.0]], &Device::Cpu)?);
    assert!(numbers(ops::gelu(&tape, &x)?.tensor())?[1].is_nan());
    let ones = tape.constant(Tensor::ones(3, DType::F32, &Device::Cpu)?);
    assert!(
        numbers(ops::layer_norm(&tape, &x, &ones, None, 1e-5)?.tensor())?
            .iter()
            .all(|y| y.is_nan())
    );
    let y = ops::rms_norm(&tape, &x, &ones, 1e-5)?;
    assert!(numbers(y.tensor())?.iter().all(|y| y.is_nan()));
    let other = tape.constant(Tensor::new(&[[f32::NAN, 0.0, 2.0]], &Device::Cpu)?);
    let y = numbers(ops::swiglu(&tape, &x, &other)?.tensor())?;
    assert!(y[0].is_nan() && y[1].is_nan() && y[2].is_finite());
    let h = Tensor::new(&[[f32::NAN]], &Device::Cpu)?;
    let loss = ops::cross_entropy_sum(
        Compute::default(),
        &h,
        &Tensor::ones((4, 1), DType::F32, &Device::Cpu)?,
        &Tensor::new(&[0u32], &Device::Cpu)?,
    )?;
    assert!(loss.is_nan(), "{loss}");
    let x = tape.constant(Tensor::new(&[[[1f32], [f32::NAN]]], &Device::Cpu)?);
    assert!(numbers(ops::causal_attention(&tape, &x, &x, &x, 1, None)?.tensor())?[1].is_nan());
    Ok(())
}

#[test]
fn gelu_at_the_extremes() -> Result<()> {
    let tape = Tape::training();
    let x = Tensor::new(&[-1e30f32, -50.0, -6.0, 0.0, 50.0, 1e30], &Device::Cpu)?;
    let y = ops::gelu(&tape, &tape.parameter(0, &x))?;
    let found = numbers(y.tensor())?;
    // ½x(1 + tanh u) in f64; at −6 the tanh form gives −1.5e-9, far below what 1 + tanh keeps in
    // f32.
    let u: f64 = (2.0 / std::f64::consts::PI).sqrt() * (-6.0 + 0.044715 * -216.0);
    let at_minus_six = -6.0 / (1.0 + (-2.0 * u).exp());
    assert!((found[2] / at_minus_six - 1.0).abs() < 1e-5, "{} instead of {at_minus_six}", found[2]);
    assert!(
        found[1].abs() < 1e-30 && found[3] == 0.0 && found[4] == 50.0 && found[5] == 1e30f32 as f64,
        "{found:?}"
    );
    assert!(found[0].abs() < 1e-6, "{found:?}");
    let mut gradients = Gradients::new(1);
    tape.backward(&y, &mut gradients)?;
    let slopes = numbers(gradients.get(0).expect("dx"))?;
    assert!(
        slopes[0].abs() < 1e-6
            && slopes[1].abs() < 1e-20
            && slopes[3] == 0.5
            && slopes[4] == 1.0
            && slopes[5] == 1.0,
        "{slopes:?}"
    );
    Ok(())
}

#[test]
fn swiglu_at_the_extremes() -> Result<()> {
    for tape in [Tape::training(), Tape::training().portable()] {
        let gate = Tensor::new(&[-1e30f32, -200.0, 0.0, 200.0, 1e30], &Device::Cpu)?;
        let up = Tensor::new(&[2f32, 2.0, 2.0, 2.0, 2.0], &Device::Cpu)?;
        let y = ops::swiglu(&tape, &tape.parameter(0, &gate), &tape.parameter(1, &up))?;
        let found = numbers(y.tensor())?;
        assert!(found[0].abs() < 1e-6 && found[1].abs() < 1e-30, "{found:?}");
        assert_eq!(found[2..], [0.0, 400.0, 2e30f32 as f64]);
        let mut gradients = Gradients::new(2);
        tape.backward(&y, &mut gradients)?;
        let slopes = numbers(gradients.get(0).expect("d gate"))?;
        assert!(slopes[0].abs() < 1e-30 && slopes[1].abs() < 1e-30, "{slopes:?}");
        assert_eq!(slopes[2..], [1.0, 2.0, 2.0]);
        let gates = numbers(gradients.get(1).expect("d up"))?;
        assert!(gates[0].abs() < 1e-6 && gates[1].abs() < 1e-30, "{gates:?}");
        assert_eq!(gates[2..], [0.0, 200.0, 1e30f32 as f64]);
    }
    Ok(())
}

/// A row of zeros stays zero, and its gradient is that of x/√ε; huge and tiny numbers are brought
/// to one size.
#[test]
fn rms_norm_at_the_extremes() -> Result<()> {
    for tape in [Tape::training(), Tape::training().portable()] {
        let x = Tensor::new(&[[0f32, 0.0], [3e15, 4e15], [3e-12, 4e-12]], &Device::Cpu)?;
        let weight = Tensor::ones(2, DType::F32, &Device::Cpu)?;
        let y = ops::rms_norm(&tape, &tape.parameter(0, &x), &tape.constant(weight), 1e-20)?;
        let (found, size) = (numbers(y.tensor())?, 12.5f64.sqrt());
        let expected = [0.0, 0.0, 3.0 / size, 4.0 / size, 0.03, 0.04];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} instead of {expected}");
        }
        let mut gradients = Gradients::new(1);
        tape.backward(&y, &mut gradients)?;
        let slopes = numbers(gradients.get(0).expect("dx"))?;
        assert!((slopes[0] / 1e10 - 1.0).abs() < 1e-6 && slopes[2].abs() < 1e-15, "{slopes:?}");
    }
    Ok(())
}

#[test]
fn impossible_inputs_are_refused_by_name() -> Result<()> {
    let tape = Tape::inference();
    let value = |shape: &[usize]| Ok::<_, candle_core::Error>(tape.constant(normal(1, shape)?));
    let ids = |id: u32| Tensor::new(&[[id, 0]], &Device::Cpu);
    let says = |result: Result<Value>, words: &[&str]| {
        let error = result.expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let (table, positions) = (value(&[5, 4])?, value(&[2, 4])?);
    says(ops::embedding(&tape, &ids(5)?, &table, &positions), &["token 5", "vocabulary of 5"]);
    says(
        ops::embedding(&tape, &ids(0)?, &table, &value(&[1, 4])?),
        &["2 tokens", "block size of 1"],
    );
    says(
        ops::cross_entropy_head(&tape, &value(&[1, 2, 4])?, &table, &ids(7)?),
        &["target token 7", "vocabulary of 5"],
    );
    says(
        ops::cross_entropy_head(&tape, &value(&[1, 3, 4])?, &table, &ids(0)?),
        &["3 rows", "2 targets"],
    );
    says(ops::linear(&tape, &value(&[1, 2, 3])?, &table, None), &["3 wide", "takes 4"]);
    says(ops::layer_norm(&tape, &value(&[2, 3])?, &value(&[4])?, None, 1e-5), &["3 wide", "[4]"]);
    says(
        ops::rms_norm(&tape, &value(&[2, 3])?, &value(&[4])?, 1e-5),
        &["rms_norm", "3 wide", "[4]"],
    );
    says(ops::swiglu(&tape, &value(&[2])?, &value(&[3])?), &["swiglu", "[2]", "[3]"]);
    says(ops::token_embedding(&tape, &ids(5)?, &table), &["token 5", "vocabulary of 5"]);
    let rotation = |width| Rotation::new(width, 1e4, 0, 2, DType::F64, &Device::Cpu);
    says(ops::rotary(&tape, &value(&[1, 3, 4])?, &rotation(4)?), &["3, 4", "2 positions"]);
    says(ops::rotary(&tape, &value(&[1, 2, 6])?, &rotation(4)?), &["2, 6", "heads 4 wide"]);
    let error = rotation(3).expect_err("odd").to_string();
    assert!(error.contains("heads 3 wide"), "{error}");
    says(
        ops::causal_attention(
            &tape,
            &value(&[1, 2, 4])?,
            &value(&[1, 2, 4])?,
            &value(&[1, 2, 4])?,
            3,
            None,
        ),
        &["3 heads"],
    );
    says(ops::add(&tape, &value(&[2])?, &value(&[3])?), &["[2]", "[3]"]);
    Ok(())
}

/// What fits in no shape is refused by the kernels as by the portable path, not cut to size.
#[test]
fn biases_and_tables_of_another_width_are_refused() -> Result<()> {
    for tape in [Tape::inference(), Tape::inference().portable()] {
        let value = |draw, shape: &[usize]| {
            Ok::<_, candle_core::Error>(tape.constant(normal(draw, shape)?))
        };
        let (x, w, weight) = (value(1, &[3, 4])?, value(2, &[6, 4])?, value(3, &[4])?);
        for wrong in [2, 3, 12] {
            let bias = value(4, &[wrong])?;
            assert!(ops::linear(&tape, &x, &w, Some(&bias)).is_err(), "{wrong}");
            assert!(ops::layer_norm(&tape, &x, &weight, Some(&bias), 1e-5).is_err(), "{wrong}");
        }
        let tokens = Tensor::zeros((1, 2), DType::U32, &Device::Cpu)?;
        let found = ops::embedding(&tape, &tokens, &value(5, &[9, 4])?, &value(6, &[8, 6])?);
        assert!(found.is_err());
    }
    Ok(())
}
