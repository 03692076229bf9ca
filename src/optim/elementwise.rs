//! Element-wise passes of the dense rules and sums of squares: in place and parallel by kernels on
//! the CPU, candle operations elsewhere.

use crate::kernels::{Host, PIECE, Real, mutate, vectorized, wide_dot, with_real};
use crate::ops::Compute;
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

/// x ← decay · x + factor · g.
pub fn decay_and_add(
    compute: Compute,
    x: &mut Tensor,
    decay: f64,
    g: &Tensor,
    factor: f64,
) -> Result<()> {
    if !compute.takes_kernels(x) {
        *x = ((&*x * decay)? + (g * factor)?)?;
        return Ok(());
    }
    with_real!(x.dtype(), T => {
        let (decay, factor) = (T::real(decay), T::real(factor));
        update(x, g, |x: T, g: T| decay * x + factor * g)
    })
}

/// x ← decay · x + factor · g².
pub fn decay_and_add_square(
    compute: Compute,
    x: &mut Tensor,
    decay: f64,
    g: &Tensor,
    factor: f64,
) -> Result<()> {
    if !compute.takes_kernels(x) {
        *x = ((&*x * decay)? + (g.sqr()? * factor)?)?;
        return Ok(());
    }
    with_real!(x.dtype(), T => {
        let (decay, factor) = (T::real(decay), T::real(factor));
        update(x, g, |x: T, g: T| decay * x + factor * (g * g))
    })
}

/// w ← keep · w − rate · m / (√(v · correction) + epsilon).
#[allow(clippy::too_many_arguments)]
pub fn subtract_quotient(
    compute: Compute,
    w: &mut Tensor,
    keep: f64,
    m: &Tensor,
    rate: f64,
    v: &Tensor,
    correction: f64,
    epsilon: f64,
) -> Result<()> {
    if !compute.takes_kernels(w) {
        let quotient = (m / ((v * correction)?.sqrt()? + epsilon)?)?;
        *w = ((&*w * keep)? - (quotient * rate)?)?;
        return Ok(());
    }
    let (m, v) = (m.contiguous()?, v.contiguous()?);
    let (m_host, v_host) = (Host::new(&m)?, Host::new(&v)?);
    with_real!(w.dtype(), T => {
        let (m, v) = (m_host.numbers::<T>()?, v_host.numbers::<T>()?);
        let [keep, rate, correction, epsilon] = [keep, rate, correction, epsilon].map(T::real);
        mutate::<T>(w, |w| {
            w.par_chunks_mut(PIECE).zip(m.par_chunks(PIECE)).zip(v.par_chunks(PIECE)).for_each(|((w, m), v)| {
                vectorized!(for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
                    *w = keep * *w - rate * *m / ((*v * correction).root() + epsilon);
                })
            });
            Ok(())
        })
    })
}

/// x ← f(x, g), element by element.
fn update<T: Real>(x: &Tensor, g: &Tensor, f: impl Fn(T, T) -> T + Sync) -> Result<()> {
    let g = g.contiguous()?;
    let host = Host::new(&g)?;
    let g = host.numbers::<T>()?;
    mutate::<T>(x, |x| {
        x.par_chunks_mut(PIECE)
            .zip(g.par_chunks(PIECE))
            .for_each(|(x, g)| vectorized!(x.iter_mut().zip(g).for_each(|(x, g)| *x = f(*x, *g))));
        Ok(())
    })
}

/// Σ xᵢ² of every tensor, accumulated in f64 over pieces of fixed size, or on the device with one
/// transfer for all; not finite where an element is not finite.
pub fn sums_of_squares(compute: Compute, tensors: &[&Tensor]) -> Result<Vec<f64>> {
    match tensors.first() {
        None => Ok(Vec::new()),
        Some(first) if compute.takes_kernels(first) => {
            tensors.par_iter().map(|x| sum_of_squares(x)).collect()
        }
        Some(_) => {
            let sums = tensors.iter().map(|x| x.sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
            Tensor::stack(&sums, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()
        }
    }
}

fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    let host = Host::new(&x)?;
    with_real!(x.dtype(), T => Ok(host.numbers::<T>()?.par_chunks(PIECE).map(|piece| wide_dot(piece, piece)).collect::<Vec<f64>>().iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sum_of_squares_of_many_pieces() -> Result<()> {
        let x: Vec<f32> = (0..3 * PIECE + 5).map(|i| (i % 17) as f32 - 8.0).collect();
        let exact: f64 = x.iter().map(|v| (*v as f64).powi(2)).sum();
        assert_eq!(
            sum_of_squares(&Tensor::new(x, &Device::Cpu)?)?,
            exact,
            "whole numbers add up exactly"
        );
        Ok(())
    }

    #[test]
    fn non_finite_elements_show() -> Result<()> {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!sum_of_squares(&Tensor::new(&[1.0, bad, 2.0], &Device::Cpu)?)?.is_finite());
        }
        Ok(())
    }
}
