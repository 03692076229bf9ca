//! The spectral regulariser, which keeps the coefficients S well conditioned.

use crate::linalg::{frobenius_norm, multiply, weighted_sum};
use crate::lowrank::Tangent;
use crate::optim::gradient::Scaled;
use candle_core::{D, Result, Tensor};

/// The gradient of R(S) = ‖SSᵀ − (‖S‖_F² / r) I‖_F: ∂R/∂S = 2 A S / ‖A‖_F with A = SSᵀ − (‖S‖_F² /
/// r) I, and 0 where A = 0.
///
/// R is 0 exactly where all singular values are equal, and depends on them alone, so that its
/// gradient at W = U S Vᵀ is the tangent vector U (∂R/∂S) Vᵀ (Schotthöfer, Yang & Schnake 2025,
/// RobustDLRT, arXiv:2505.08022). tr A = 0, so ‖S‖_F² needs no term of its own.
pub(super) fn gradient(s: &Tensor) -> Result<Tensor> {
    if s.rank() > 2 || !s.device().is_cpu() {
        return gradient_on_device(s);
    }
    let rank = s.dim(0)?;
    let mean = frobenius_norm(s)?.powi(2) / rank as f64;
    let a = weighted_sum(
        1.0,
        &multiply(s, &s.t()?)?,
        -mean,
        &Tensor::eye(rank, s.dtype(), s.device())?,
    )?;
    let norm = frobenius_norm(&a)?;
    // Rounding leaves A of the size of the mean's last digits where it should vanish; its direction
    // is noise.
    if norm <= 1e-6 * mean { s.zeros_like() } else { multiply(&a, s)? * (2.0 / norm) }
}

/// The same for a stack, or off the host, with norms that never leave the device.
fn gradient_on_device(s: &Tensor) -> Result<Tensor> {
    let rank = s.dim(D::Minus1)?;
    let sum = |x: Tensor| x.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2);
    let mean = (sum(s.clone())? / rank as f64)?;
    let identity = Tensor::eye(rank, s.dtype(), s.device())?.broadcast_as(s.shape())?;
    let a = (multiply(s, &s.t()?)? - identity.broadcast_mul(&mean)?)?;
    let norm = sum(a.clone())?.sqrt()?;
    let above_rounding = norm.gt(&(mean * 1e-6)?)?.to_dtype(s.dtype())?;
    // Where the norm counts as zero, so does the factor; the smallest normal number only keeps 0/0
    // away.
    let factor = ((above_rounding * 2.0)? / (norm + f64::from(f32::MIN_POSITIVE))?)?;
    multiply(&a, s)?.broadcast_mul(&factor)
}

/// The sum of the loss's tangent gradients with that of strength · R(S) added, which is part of the
/// objective as it stands and is not scaled.
pub(super) fn regularized(loss: Scaled<Tangent>, s: &Tensor, strength: f64) -> Result<Tangent> {
    let Tangent { m, p, q } = loss.sum();
    let m = weighted_sum(1.0, m, loss.unscaled(strength), &gradient(s)?)?;
    Ok(Tangent { m, p: p.clone(), q: q.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use candle_core::{DType, Device};

    fn matrix(index: u64) -> Tensor {
        Tensor::from_vec(
            rng::normals(&mut rng::stream(9, "regulariser", &[index]), 25),
            (5, 5),
            &Device::Cpu,
        )
        .unwrap()
    }

    fn value(s: &Tensor) -> f64 {
        let mean = frobenius_norm(s).unwrap().powi(2) / 5.0;
        let a = (s.matmul(&s.t().unwrap()).unwrap()
            - (Tensor::eye(5, DType::F64, &Device::Cpu).unwrap() * mean).unwrap())
        .unwrap();
        frobenius_norm(&a).unwrap()
    }

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let (s, direction) = (matrix(0), matrix(1));
        let at = |t: f64| value(&(&s + (&direction * t).unwrap()).unwrap());
        let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        let analytic = crate::linalg::inner(&gradient(&s).unwrap(), &direction).unwrap();
        assert!(
            (difference - analytic).abs() < 1e-7 * analytic.abs(),
            "{difference} and {analytic}"
        );
    }

    #[test]
    fn a_stack_gets_the_gradient_of_each_of_its_matrices() {
        let orthogonal = crate::linalg::polar(&matrix(2)).unwrap();
        let stack = Tensor::stack(&[&matrix(0), &orthogonal, &matrix(4)], 0).unwrap();
        let found = gradient(&stack).unwrap();
        for (index, s) in [matrix(0), orthogonal, matrix(4)].iter().enumerate() {
            let difference = (found.get(index).unwrap() - gradient(s).unwrap()).unwrap();
            assert!(frobenius_norm(&difference).unwrap() < 1e-12, "matrix {index}");
        }
    }

    #[test]
    fn equal_singular_values_are_left_alone() {
        let orthogonal = (crate::linalg::polar(&matrix(2)).unwrap() * 3.0).unwrap();
        assert_eq!(frobenius_norm(&gradient(&orthogonal).unwrap()).unwrap(), 0.0);
    }

    #[test]
    fn descending_it_brings_singular_values_together() {
        let mut s = matrix(3);
        let spread = |s: &Tensor| {
            let sigma = crate::linalg::svd(s).unwrap().sigma;
            sigma[0] / sigma[4]
        };
        let before = spread(&s);
        for _ in 0..200 {
            s = (&s - (gradient(&s).unwrap() * 0.01).unwrap()).unwrap();
        }
        assert!(spread(&s) < 0.5 * before, "condition {} after {before}", spread(&s));
    }
}
