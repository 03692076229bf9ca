//! Token tables: embedding in, cross entropy out.

use super::*;
use lrpt::ops::{Compute, Targets};

#[test]
fn embedding() -> Result<()> {
    let tokens = ids(&[0, 3, 3, 1, 4, 0], (2, 3))?;
    let inputs = [normal(1, &[5, 4])?, normal(2, &[6, 4])?];
    check("embedding", &inputs, &|tape, v| ops::embedding(tape, &tokens, &v[0], &v[1]))?;
    check("token_embedding", &inputs[..1], &|tape, v| ops::token_embedding(tape, &tokens, &v[0]))
}

#[test]
fn cross_entropy_head() -> Result<()> {
    let targets = ids(&[0, 3, 8, 1, 4, 0], (2, 3))?;
    check("cross_entropy_head", &[normal(1, &[2, 3, 5])?, normal(2, &[9, 5])?], &|tape, v| {
        ops::cross_entropy_head(tape, &v[0], &v[1], &targets)
    })
}

/// Targets that do not count: central differences, and PyTorch's `cross_entropy(ignore_index)`.
#[test]
fn cross_entropy_head_of_some_targets() -> Result<()> {
    let targets = ids(&[0, 3, 8, 1, 4, 0], (2, 3))?;
    let rows = Tensor::new(&[1u32, 2, 5], &Device::Cpu)?;
    check("some targets", &[normal(1, &[2, 3, 5])?, normal(2, &[9, 5])?], &|tape, v| {
        ops::cross_entropy_head(tape, &v[0], &v[1], Targets::only(&targets, &rows, 2.5))
    })?;

    let h = [0.5, -1.0, 2.0, 0.25, -0.75, 1.5, 1.0, 1.0, 0.0, -2.0, 0.3, 0.7];
    let w = [1.0, 0.0, 0.0, 1.0, -1.0, 0.5, 0.25, -0.5];
    let inputs = [
        Tensor::from_slice(&h, (2, 3, 2), &Device::Cpu)?,
        Tensor::from_slice(&w, (4, 2), &Device::Cpu)?,
    ];
    // Of the targets 0, -100, 3, -100, 2, 1, by torch 2.15 in f64.
    let targets = ids(&[0, 0, 3, 0, 2, 1], (2, 3))?;
    let rows = Tensor::new(&[0u32, 2, 4, 5], &Device::Cpu)?;
    let expected_dh = [
        -0.147248066682,
        -0.022474044121,
        0.0,
        0.0,
        -0.162003451681,
        0.291034856283,
        0.0,
        0.0,
        0.32767926608,
        -0.186581591823,
        0.023600590161,
        -0.14566039782,
    ];
    let expected_dw = [
        -0.065986522754,
        0.098314311153,
        -0.120507017396,
        0.026465621185,
        -0.059457496148,
        0.641371646364,
        0.245951036298,
        -0.766151578702,
    ];
    for tape in [Tape::training(), Tape::training().portable()] {
        let compute = tape.compute();
        let (h, w) = (tape.parameter(0, &inputs[0]), tape.parameter(1, &inputs[1]));
        let chosen = Targets::only(&targets, &rows, 4.0);
        let loss = ops::cross_entropy_head(&tape, &h, &w, chosen)?;
        assert!((numbers(loss.tensor())?[0] - 1.8885383073537734).abs() < 1e-14);
        let sum = ops::cross_entropy_sum(compute, &inputs[0], &inputs[1], chosen)?;
        assert!((sum - 4.0 * 1.8885383073537734).abs() < 1e-13);
        let each = ops::cross_entropies(compute, &inputs[0], &inputs[1], chosen)?;
        assert!(each.len() == 4 && (each.iter().sum::<f64>() - sum).abs() < 1e-13, "{each:?}");
        let mut gradients = Gradients::new(2);
        tape.backward(&loss, &mut gradients)?;
        for (slot, expected) in [&expected_dh[..], &expected_dw[..]].into_iter().enumerate() {
            let found = numbers(gradients.get(slot).expect("a gradient"))?;
            let differences: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            assert!(largest(&differences) < 1e-11, "{slot}: {found:?}");
        }
    }
    let none = Tensor::zeros(0, DType::U32, &Device::Cpu)?;
    for (rows, divisor) in [(&none, 4.0), (&rows, 0.0)] {
        let chosen = Targets::only(&targets, rows, divisor);
        assert!(
            ops::cross_entropy_sum(Compute::default(), &inputs[0], &inputs[1], chosen).is_err()
        );
    }
    Ok(())
}

/// The token table as embedding and as head: one slot, the sum of both gradients.
#[test]
fn a_tied_table() -> Result<()> {
    let (tokens, targets) = (ids(&[0, 3, 3, 1], (2, 2))?, ids(&[3, 4, 1, 0], (2, 2))?);
    check("tied table", &[normal(1, &[5, 4])?, normal(2, &[2, 4])?], &|tape, v| {
        let h = ops::embedding(tape, &tokens, &v[0], &v[1])?;
        ops::cross_entropy_head(tape, &h, &v[0], &targets)
    })
}
