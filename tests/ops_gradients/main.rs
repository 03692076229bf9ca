//! Backward passes of the operations against central differences in f64, through the CPU kernels
//! and through the portable path.

mod attention;
mod pointwise;
mod products;
mod tape;
mod vocabulary;

use candle_core::{DType, Device, Result, Tensor};
use lrpt::ops::{self, Gradients, Tape, Value};
use lrpt::rng;

/// Standard normal numbers in f64, another draw for every `draw`.
fn normal(draw: u64, shape: &[usize]) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(11, "ops test", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

fn ids(values: &[u32], shape: (usize, usize)) -> Result<Tensor> {
    Tensor::from_slice(values, shape, &Device::Cpu)
}

fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// Σ c ∘ y with fixed random c: a scalar on which every element of y has its own influence.
fn weighted_sum(tape: &Tape, y: &Value) -> Result<Value> {
    let weights = normal(999, y.tensor().dims())?;
    let sum = (y.tensor() * &weights)?.sum_all()?;
    let to_y = y.source();
    Ok(tape.record(&[to_y], sum, move |delta, flow| flow.add(to_y, weights.broadcast_mul(&delta)?)))
}

type Operation<'a> = &'a dyn Fn(&Tape, &[Value]) -> Result<Value>;

fn gradients(tape: Tape, inputs: &[Tensor], operation: Operation) -> Result<Vec<Vec<f64>>> {
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(slot, input)| tape.parameter(slot, input)).collect();
    let loss = weighted_sum(&tape, &operation(&tape, &values)?)?;
    let mut gradients = Gradients::new(inputs.len());
    tape.backward(&loss, &mut gradients)?;
    (0..inputs.len())
        .map(|slot| numbers(gradients.get(slot).expect("every input gets a gradient")))
        .collect()
}

/// (f(x + h) − f(x − h)) / 2h for every element of one input.
fn central_differences(inputs: &[Tensor], which: usize, operation: Operation) -> Result<Vec<f64>> {
    const STEP: f64 = 1e-5;
    let base = numbers(&inputs[which])?;
    let loss_at = |element: usize, step: f64| -> Result<f64> {
        let mut moved = base.clone();
        moved[element] += step;
        let tape = Tape::inference();
        let values = inputs.iter().enumerate().map(|(slot, input)| {
            let input = if slot == which {
                Tensor::from_slice(&moved, input.shape(), &Device::Cpu)?
            } else {
                input.clone()
            };
            Ok(tape.constant(input))
        });
        weighted_sum(&tape, &operation(&tape, &values.collect::<Result<Vec<_>>>()?)?)?
            .tensor()
            .to_scalar()
    };
    (0..base.len())
        .map(|element| Ok((loss_at(element, STEP)? - loss_at(element, -STEP)?) / (2.0 * STEP)))
        .collect()
}

/// Every input's gradient, by kernels and portable, is within 1e-6 of the central differences,
/// relative to the largest element.
fn check(name: &str, inputs: &[Tensor], operation: Operation) -> Result<()> {
    let (kernels, portable) = (
        gradients(Tape::training(), inputs, operation)?,
        gradients(Tape::training().portable(), inputs, operation)?,
    );
    for which in 0..inputs.len() {
        let expected = central_differences(inputs, which, operation)?;
        let scale = largest(&expected);
        assert!(
            scale > 1e-3,
            "{name}: input {which} has next to no influence, the comparison would say nothing"
        );
        for (path, found) in [("kernels", &kernels[which]), ("portable", &portable[which])] {
            assert_eq!(found.len(), expected.len());
            for (element, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (found - expected).abs() / scale;
                assert!(
                    error < 1e-6,
                    "{name} ({path}), input {which}, element {element}: {found} instead of {expected}"
                );
            }
        }
    }
    Ok(())
}
