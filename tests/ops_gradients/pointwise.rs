//! Norms, activations, dropout and parts of a value.

use super::*;
use lrpt::ops::Dropout;

#[test]
fn layer_norm() -> Result<()> {
    let inputs = [normal(1, &[2, 3, 19])?, normal(2, &[19])?, normal(3, &[19])?];
    check("layer_norm with bias", &inputs, &|tape, v| {
        ops::layer_norm(tape, &v[0], &v[1], Some(&v[2]), 1e-5)
    })?;
    check("layer_norm", &inputs[..2], &|tape, v| ops::layer_norm(tape, &v[0], &v[1], None, 1e-5))
}

#[test]
fn rms_norm() -> Result<()> {
    let inputs = [(normal(1, &[2, 3, 19])? + 0.5)?, normal(2, &[19])?];
    check("rms_norm", &inputs, &|tape, v| ops::rms_norm(tape, &v[0], &v[1], 1e-5))
}

#[test]
fn swiglu() -> Result<()> {
    let inputs = [(normal(1, &[5, 8])? * 3.0)?, normal(2, &[5, 8])?];
    check("swiglu", &inputs, &|tape, v| ops::swiglu(tape, &v[0], &v[1]))
}

#[test]
fn gelu() -> Result<()> {
    check("gelu", &[(normal(1, &[5, 8])? * 3.0)?], &|tape, v| ops::gelu(tape, &v[0]))
}

#[test]
fn dropout() -> Result<()> {
    let dropout = Dropout { probability: 0.4, key: 5 };
    check("dropout", &[normal(1, &[6, 9])?], &|tape, v| ops::dropout(tape, &v[0], dropout))
}

/// Parts of different widths, each with an influence of its own; one that nothing reads, the first
/// or another, has zeros for its gradient.
#[test]
fn split() -> Result<()> {
    let input = [normal(1, &[2, 19, 10])?];
    let part = |index: usize| normal(20 + index as u64, &[2, 19, [5, 2, 3][index]]);
    let parts = [part(0)?, part(1)?, part(2)?];
    for read in [vec![0, 1, 2], vec![1, 2], vec![0, 2], vec![1]] {
        check(&format!("split, parts {read:?}"), &input, &|tape, v| {
            let values = ops::split(tape, &v[0], [5, 2, 3])?;
            let mut sum = None;
            for index in &read {
                // Σ c ∘ part of each row, in a column.
                let c = tape.constant(parts[*index].narrow(1, 0, 1)?.narrow(0, 0, 1)?.squeeze(0)?);
                let column = ops::linear(tape, &ops::gelu(tape, &values[*index])?, &c, None)?;
                sum = Some(match sum {
                    None => column,
                    Some(sum) => ops::add(tape, &sum, &column)?,
                });
            }
            Ok(sum.expect("a part is read"))
        })?;
    }
    Ok(())
}

#[test]
fn parts_are_the_columns_and_widths_must_add_up() -> Result<()> {
    let x = normal(1, &[3, 4, 6])?;
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let x = x.to_dtype(dtype)?;
        for tape in [Tape::inference(), Tape::inference().portable()] {
            let [a, b] = ops::split(&tape, &tape.constant(x.clone()), [1, 5])?;
            assert_eq!(numbers(a.tensor())?, numbers(&x.narrow(2, 0, 1)?)?);
            assert_eq!(numbers(b.tensor())?, numbers(&x.narrow(2, 1, 5)?)?);
            assert!(a.tensor().is_contiguous() && b.tensor().is_contiguous());
            for widths in [[2, 5], [0, 6]] {
                let error = ops::split(&tape, &tape.constant(x.clone()), widths).expect_err("no");
                assert!(error.to_string().contains("[3, 4, 6] in parts"), "{error}");
            }
        }
    }
    Ok(())
}
