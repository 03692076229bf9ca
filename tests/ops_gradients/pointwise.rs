//! Norms, activations and dropout.

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
