//! Element-wise passes of the dense rules and sums of squares: in place and parallel on the CPU, candle operations elsewhere.

use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;
use std::ops::{Add, Div, Mul, Range, Sub};

/// Elements per parallel piece: fixed, so that sums do not depend on the number of threads.
const PIECE: usize = 1 << 15;

/// f32 and f64.
trait Real: Copy + Send + Sync + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> {
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
}

macro_rules! real {
    ($($t:ty),*) => {$(
        impl Real for $t {
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
        }
    )*};
}
real!(f32, f64);

/// x ← decay · x + factor · g.
pub fn decay_and_add(x: &mut Tensor, decay: f64, g: &Tensor, factor: f64) -> Result<()> {
    if !on_cpu(x) {
        *x = ((&*x * decay)? + (g * factor)?)?;
        return Ok(());
    }
    x.inplace_op2(&g.contiguous()?, &DecayAndAdd { decay, factor })
}

struct DecayAndAdd {
    decay: f64,
    factor: f64,
}

impl DecayAndAdd {
    fn apply<T: Real>(&self, x: &mut [T], g: &[T]) {
        let (decay, factor) = (T::from_f64(self.decay), T::from_f64(self.factor));
        x.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).for_each(|(x, g)| {
            for (x, g) in x.iter_mut().zip(g) {
                *x = decay * *x + factor * *g;
            }
        });
    }
}

/// x ← decay · x + weight · (scale · g)².
pub fn decay_and_add_square(x: &mut Tensor, decay: f64, g: &Tensor, scale: f64, weight: f64) -> Result<()> {
    let factor = weight * scale * scale;
    if !on_cpu(x) {
        *x = ((&*x * decay)? + (g.sqr()? * factor)?)?;
        return Ok(());
    }
    x.inplace_op2(&g.contiguous()?, &DecayAndAddSquare { decay, factor })
}

struct DecayAndAddSquare {
    decay: f64,
    factor: f64,
}

impl DecayAndAddSquare {
    fn apply<T: Real>(&self, x: &mut [T], g: &[T]) {
        let (decay, factor) = (T::from_f64(self.decay), T::from_f64(self.factor));
        x.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).for_each(|(x, g)| {
            for (x, g) in x.iter_mut().zip(g) {
                *x = decay * *x + factor * (*g * *g);
            }
        });
    }
}

/// w ← keep · w − rate · m / (√(v · correction) + epsilon).
pub fn subtract_quotient(w: &mut Tensor, keep: f64, m: &Tensor, rate: f64, v: &Tensor, correction: f64, epsilon: f64) -> Result<()> {
    if !on_cpu(w) {
        let quotient = (m / ((v * correction)?.sqrt()? + epsilon)?)?;
        *w = ((&*w * keep)? - (quotient * rate)?)?;
        return Ok(());
    }
    w.inplace_op3(&m.contiguous()?, &v.contiguous()?, &SubtractQuotient { keep, rate, correction, epsilon })
}

struct SubtractQuotient {
    keep: f64,
    rate: f64,
    correction: f64,
    epsilon: f64,
}

impl SubtractQuotient {
    fn apply<T: Real>(&self, w: &mut [T], m: &[T], v: &[T]) {
        let [keep, rate, correction, epsilon] = [self.keep, self.rate, self.correction, self.epsilon].map(T::from_f64);
        w.par_chunks_mut(PIECE).zip(m.par_chunks(PIECE)).zip(v.par_chunks(PIECE)).for_each(|((w, m), v)| {
            for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
                *w = keep * *w - rate * *m / ((*v * correction).sqrt() + epsilon);
            }
        });
    }
}

macro_rules! inplace2 {
    ($($name:ident),*) => {$(
        impl InplaceOp2 for $name {
            fn name(&self) -> &'static str {
                stringify!($name)
            }
            fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<()> {
                let (xr, gr) = (contiguous_range(xl)?, contiguous_range(gl)?);
                match (x, g) {
                    (CpuStorage::F32(x), CpuStorage::F32(g)) => self.apply(&mut x[xr], &g[gr]),
                    (CpuStorage::F64(x), CpuStorage::F64(g)) => self.apply(&mut x[xr], &g[gr]),
                    _ => bail!("{}: the tensors must be both f32 or both f64", self.name()),
                }
                Ok(())
            }
        }
    )*};
}
inplace2!(DecayAndAdd, DecayAndAddSquare);

impl InplaceOp3 for SubtractQuotient {
    fn name(&self) -> &'static str {
        "SubtractQuotient"
    }
    fn cpu_fwd(&self, w: &mut CpuStorage, wl: &Layout, m: &CpuStorage, ml: &Layout, v: &CpuStorage, vl: &Layout) -> Result<()> {
        let (wr, mr, vr) = (contiguous_range(wl)?, contiguous_range(ml)?, contiguous_range(vl)?);
        match (w, m, v) {
            (CpuStorage::F32(w), CpuStorage::F32(m), CpuStorage::F32(v)) => self.apply(&mut w[wr], &m[mr], &v[vr]),
            (CpuStorage::F64(w), CpuStorage::F64(m), CpuStorage::F64(v)) => self.apply(&mut w[wr], &m[mr], &v[vr]),
            _ => bail!("{}: the tensors must be all f32 or all f64", self.name()),
        }
        Ok(())
    }
}

/// Σ xᵢ², accumulated in f64 over pieces of fixed size; not finite exactly if an element is not finite.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    if !on_cpu(x) {
        return x.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let range = contiguous_range(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => Ok(sum_of_squares_of(&x[range])),
        Storage::Cpu(CpuStorage::F64(x)) => Ok(sum_of_squares_of(&x[range])),
        _ => bail!("sum_of_squares needs an f32 or f64 tensor"),
    }
}

fn sum_of_squares_of<T: Real>(x: &[T]) -> f64 {
    x.par_chunks(PIECE).map(piece_sum_of_squares).collect::<Vec<f64>>().iter().sum()
}

/// Eight accumulators, so that the loop vectorises.
fn piece_sum_of_squares<T: Real>(piece: &[T]) -> f64 {
    let mut sums = [0f64; 8];
    let chunks = piece.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|x| x.to_f64() * x.to_f64()).sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x.to_f64() * x.to_f64();
        }
    }
    sums.iter().sum::<f64>() + rest
}

fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

fn contiguous_range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("an element-wise update needs a contiguous tensor, got {layout:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sum_of_squares_of_many_pieces() -> Result<()> {
        let x: Vec<f32> = (0..3 * PIECE + 5).map(|i| (i % 17) as f32 - 8.0).collect();
        let exact: f64 = x.iter().map(|v| (*v as f64).powi(2)).sum();
        assert_eq!(sum_of_squares(&Tensor::new(x, &Device::Cpu)?)?, exact, "whole numbers add up exactly");
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
