//! Element-wise operations: GELU, SwiGLU, addition, scaling, dropout.

use super::compute::{Compute, widened};
use super::gpu;
use super::tape::{Tape, Value};
use crate::kernels::profile::{Work, span};
use crate::kernels::{Host, PIECE, Real, build, unwritten, vectorized, with_real};
use crate::rng;
use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

/// √(2/π), of the tanh form of GELU.
const ROOT: f64 = 0.797_884_560_802_865_4;
/// Cubic coefficient of the tanh form of GELU.
const CUBIC: f64 = 0.044_715;

/// GELU in GPT-2's tanh form (Hendrycks & Gimpel 2016): ½x(1 + tanh u) = x σ(2u) with u = √(2/π)(x
/// + 0.044715 x³). A layer that takes y makes it again from x in its backward pass.
pub fn gelu(tape: &Tape, x: &Value) -> Result<Value> {
    let _span = span(|| Work::pass("gelu", x.tensor(), (2, 3)));
    let (x_kept, compute) = (x.tensor().clone(), tape.compute());
    let (to_x, x_again) = (x.source(), x_kept.clone());
    let y = tape.record(&[to_x], gelu_of(&x_kept, compute)?, move |delta, flow| {
        if let Some(gpu) = compute.gpu(&x_kept) {
            let inputs = [&x_kept.contiguous()?, &delta.contiguous()?];
            let [dx] = gpu::elementwise(gpu, "gelu_backward", &inputs)?;
            return flow.add(to_x, dx);
        }
        let (input, delta) = (widened(&x_kept)?.contiguous()?, widened(&delta)?);
        let dx = if compute.takes_kernels(&input) {
            let delta = delta.contiguous()?;
            with_real!(input.dtype(), T => map2::<T>(&input, &delta, |x, delta| {
                // Beyond ±10 the slope is 0 or 1 to the last bit, and x² of a huge x would
                // overflow.
                let x = x.larger(T::real(-10.0)).smaller(T::real(10.0));
                let s = gate(x);
                let slope = T::real(2.0 * ROOT) * (T::ONE + T::real(3.0 * CUBIC) * x * x);
                delta * s * (T::ONE + x * (T::ONE - s) * slope)
            })?)
        } else {
            let input = input.clamp(-10.0, 10.0)?;
            let s = portable_gate(&input)?;
            let slope = ((input.sqr()? * (3.0 * CUBIC))? + 1.0)? * (2.0 * ROOT);
            let inner = ((&input * s.affine(-1.0, 1.0)?)? * slope?)? + 1.0;
            (delta * (s * inner?)?)?
        };
        flow.add(to_x, dx.to_dtype(x_kept.dtype())?)
    });
    Ok(y.made_again_by(move || {
        let _span = span(|| Work::pass("gelu again", &x_again, (0, 2)));
        gelu_of(&x_again, compute)
    }))
}

/// x σ(2u), computed in f32 at least, in x's type.
fn gelu_of(x: &Tensor, compute: Compute) -> Result<Tensor> {
    if let Some(gpu) = compute.gpu(x) {
        let [y] = gpu::elementwise(gpu, "gelu", &[&x.contiguous()?])?;
        return Ok(y);
    }
    let input = widened(x)?.contiguous()?;
    let y = if compute.takes_kernels(&input) {
        with_real!(input.dtype(), T => map::<T>(&input, |x| x * gate(x))?)
    } else {
        (&input * portable_gate(&input)?)?
    };
    y.to_dtype(x.dtype())
}

/// σ(2u).
#[inline(always)]
fn gate<T: Real>(x: T) -> T {
    let u2 = T::real(2.0 * ROOT) * x * (T::ONE + T::real(CUBIC) * x * x);
    T::ONE / (T::ONE + (-u2).exponential())
}

fn portable_gate(x: &Tensor) -> Result<Tensor> {
    let u2 = (x * ((x.sqr()? * CUBIC)? + 1.0)?)? * (2.0 * ROOT);
    (u2?.neg()?.exp()? + 1.0)?.recip()
}

/// silu(gate) ∘ up with silu(x) = x σ(x), the gate of SwiGLU (Shazeer 2020), in the type of the
/// arguments.
///
/// With s = σ(gate): d up = δ ∘ gate s, d gate = δ ∘ up ∘ s (1 + gate (1 − s)). A layer that takes
/// the result makes it again from the arguments in its backward pass.
///
/// # Errors
/// If the shapes differ.
pub fn swiglu(tape: &Tape, gate: &Value, up: &Value) -> Result<Value> {
    if gate.tensor().dims() != up.tensor().dims() {
        bail!("swiglu: shapes {:?} and {:?} differ", gate.tensor().dims(), up.tensor().dims())
    }
    let _span = span(|| Work::pass("swiglu", gate.tensor(), (3, 5)));
    let given = gate.tensor().dtype();
    let wide = |x: &Tensor| widened(x)?.contiguous();
    let kept = (gate.tensor().clone(), up.tensor().clone());
    let (again, compute) = (kept.clone(), tape.compute());
    let (to_gate, to_up) = (gate.source(), up.source());
    let y = swiglu_of(&kept.0, &kept.1, compute)?;
    let y = tape.record(&[to_gate, to_up], y, move |delta, flow| {
        if let Some(gpu) = compute.gpu(&kept.0) {
            let inputs = [&kept.0.contiguous()?, &kept.1.contiguous()?, &delta.contiguous()?];
            let [d_gate, d_up] = gpu::elementwise(gpu, "swiglu_backward", &inputs)?;
            flow.add(to_up, d_up)?;
            return flow.add(to_gate, d_gate);
        }
        let (g, u, delta) = (wide(&kept.0)?, wide(&kept.1)?, wide(&delta)?);
        let (d_gate, d_up) = if compute.takes_kernels(&g) {
            with_real!(g.dtype(), T => swiglu_backward::<T>(&g, &u, &delta)?)
        } else {
            // As in the kernel: beyond ±88 the slope is 0 or 1, and 0 times infinity would be none.
            let clamped = g.clamp(-88.0, 88.0)?;
            let s = portable_sigmoid(&clamped)?;
            let slope = (&s * ((clamped * s.affine(-1.0, 1.0)?)? + 1.0)?)?;
            (((&delta * u)? * slope)?, (delta * (g * s)?)?)
        };
        flow.add(to_up, d_up.to_dtype(given)?)?;
        flow.add(to_gate, d_gate.to_dtype(given)?)
    });
    Ok(y.made_again_by(move || {
        let _span = span(|| Work::pass("swiglu again", &again.0, (0, 3)));
        swiglu_of(&again.0, &again.1, compute)
    }))
}

/// silu(gate) ∘ up, computed in f32 at least, in the arguments' type.
fn swiglu_of(gate: &Tensor, up: &Tensor, compute: Compute) -> Result<Tensor> {
    if let Some(gpu) = compute.gpu(gate) {
        let [y] = gpu::elementwise(gpu, "swiglu", &[&gate.contiguous()?, &up.contiguous()?])?;
        return Ok(y);
    }
    let (g, u) = (widened(gate)?.contiguous()?, widened(up)?.contiguous()?);
    let y = if compute.takes_kernels(&g) {
        with_real!(g.dtype(), T => map2::<T>(&g, &u, |g, u| g * sigmoid(g) * u)?)
    } else {
        ((&g * portable_sigmoid(&g)?)? * &u)?
    };
    y.to_dtype(gate.dtype())
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exponential())
}

fn portable_sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// d gate and d up in one pass.
fn swiglu_backward<T: Real>(
    gate: &Tensor,
    up: &Tensor,
    delta: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (g_host, u_host, d_host) = (Host::new(gate)?, Host::new(up)?, Host::new(delta)?);
    let (g, u, d) = (g_host.numbers::<T>()?, u_host.numbers::<T>()?, d_host.numbers::<T>()?);
    let mut d_up = unwritten::<T>(g.len());
    let d_gate = build::<T>(gate.shape().clone(), |d_gate| {
        let inputs = g.par_chunks(PIECE).zip(u.par_chunks(PIECE)).zip(d.par_chunks(PIECE));
        let outputs = d_gate.par_chunks_mut(PIECE).zip(d_up.par_chunks_mut(PIECE));
        outputs.zip(inputs).for_each(|((d_gate, d_up), ((g, u), d))| {
            let (d_up, u, d) = (&mut d_up[..g.len()], &u[..g.len()], &d[..g.len()]);
            let d_gate = &mut d_gate[..g.len()];
            vectorized!(for i in 0..g.len() {
                let x = g[i].larger(T::real(-88.0)).smaller(T::real(88.0));
                let s = sigmoid(x);
                d_up[i] = d[i] * (g[i] * s);
                d_gate[i] = d[i] * u[i] * (s * (T::ONE + x * (T::ONE - s)));
            })
        });
        Ok(())
    })?;
    Ok((d_gate, Tensor::from_vec(d_up, up.shape(), &Device::Cpu)?))
}

/// a + b in a's type; the backward passes the gradient on to both, without a copy where their types
/// are one.
pub fn add(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    if a.tensor().dims() != b.tensor().dims() {
        bail!("add: shapes {:?} and {:?} differ", a.tensor().dims(), b.tensor().dims())
    }
    // Its gradient goes on to both as it is.
    let _span = span(|| Work::pass("add", a.tensor(), (3, 0)));
    let (a_type, b_type) = (a.tensor().dtype(), b.tensor().dtype());
    let of_gpu = tape.compute().gpu(b.tensor()).filter(|_| a_type == DType::F32);
    let sum = if let Some(gpu) = of_gpu {
        gpu::add(gpu, &a.tensor().contiguous()?, &b.tensor().contiguous()?)?
    } else if tape.uses_kernels(a.tensor()) {
        let (a, b) = (a.tensor().contiguous()?, b.tensor().to_dtype(a_type)?.contiguous()?);
        with_real!(a.dtype(), T => map2::<T>(&a, &b, |a, b| a + b)?)
    } else {
        (a.tensor() + b.tensor().to_dtype(a_type)?)?
    };
    let (to_a, to_b) = (a.source(), b.source());
    Ok(tape.record(&[to_a, to_b], sum, move |delta, flow| {
        if a_type != b_type {
            flow.add(to_b, delta.to_dtype(b_type)?)?;
            return flow.add(to_a, delta);
        }
        flow.add_shared(to_a, delta.clone())?;
        flow.add_shared(to_b, delta)
    }))
}

/// factor · x.
///
/// # Errors
/// If the device has no memory for it.
pub fn scaled(tape: &Tape, x: &Value, factor: f64) -> Result<Value> {
    let _span = span(|| Work::pass("scaled", x.tensor(), (2, 2)));
    let to_x = x.source();
    let scaled = (x.tensor() * factor)?;
    Ok(tape.record(&[to_x], scaled, move |delta, flow| flow.add(to_x, (delta * factor)?)))
}

/// A dropout mask, as a function of (key, element index): nothing is stored, the backward draws it
/// again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element.
    pub probability: f64,
    /// Key of the mask.
    pub key: u64,
}

impl Dropout {
    pub(super) fn mask<T: Real>(&self) -> Mask<T> {
        // As a fraction of 2⁶³, which i64 compares with one instruction at every SIMD level.
        let threshold = (self.probability * (1u64 << 63) as f64) as i64;
        Mask { key: self.key, threshold, kept: T::real(1.0 / (1.0 - self.probability)) }
    }
}

/// The factors of a dropout mask.
#[derive(Clone, Copy)]
pub(super) struct Mask<T> {
    key: u64,
    threshold: i64,
    kept: T,
}

impl<T: Real> Mask<T> {
    /// The factor of element `index`: 0 with probability p, else 1/(1 − p).
    #[inline(always)]
    pub fn factor(&self, index: u64) -> T {
        let counter = self.key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let uniform = (rng::split_mix64(counter) >> 1) as i64;
        if uniform < self.threshold { T::ZERO } else { self.kept }
    }
}

/// x with elements dropped at random and the others scaled by 1/(1 − p) (Srivastava et al. 2014,
/// inverted form).
pub fn dropout(tape: &Tape, x: &Value, dropout: Dropout) -> Result<Value> {
    let _span = span(|| Work::pass("dropout", x.tensor(), (2, 2)));
    let kernels = tape.uses_kernels(x.tensor());
    let y = masked(x.tensor(), dropout, kernels)?;
    let to_x = x.source();
    Ok(tape
        .record(&[to_x], y, move |delta, flow| flow.add(to_x, masked(&delta, dropout, kernels)?)))
}

fn masked(x: &Tensor, dropout: Dropout, kernels: bool) -> Result<Tensor> {
    if !kernels {
        let mask = dropout.mask::<f64>();
        let factors: Vec<f64> =
            (0..x.elem_count() as u64).map(|index| mask.factor(index)).collect();
        return x * Tensor::from_vec(factors, x.shape(), &Device::Cpu)?
            .to_dtype(x.dtype())?
            .to_device(x.device())?;
    }
    let x = x.contiguous()?;
    let host = Host::new(&x)?;
    with_real!(x.dtype(), T => {
        let (numbers, mask) = (host.numbers::<T>()?, dropout.mask::<T>());
        build::<T>(x.shape().clone(), |out| {
            out.par_chunks_mut(PIECE).zip(numbers.par_chunks(PIECE)).enumerate().for_each(|(piece, (out, x))| {
                vectorized!(for (offset, (y, x)) in out.iter_mut().zip(x).enumerate() {
                    *y = *x * mask.factor((piece * PIECE + offset) as u64);
                })
            });
            Ok(())
        })
    })
}

/// f of every element of a contiguous CPU tensor.
fn map<T: Real>(x: &Tensor, f: impl Fn(T) -> T + Sync) -> Result<Tensor> {
    let host = Host::new(x)?;
    let numbers = host.numbers::<T>()?;
    build::<T>(x.shape().clone(), |out| {
        out.par_chunks_mut(PIECE)
            .zip(numbers.par_chunks(PIECE))
            .for_each(|(out, x)| vectorized!(out.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x))));
        Ok(())
    })
}

/// f of every pair of elements of two contiguous CPU tensors.
fn map2<T: Real>(a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync) -> Result<Tensor> {
    let (a_host, b_host) = (Host::new(a)?, Host::new(b)?);
    let (a_numbers, b_numbers) = (a_host.numbers::<T>()?, b_host.numbers::<T>()?);
    build::<T>(a.shape().clone(), |out| {
        out.par_chunks_mut(PIECE)
            .zip(a_numbers.par_chunks(PIECE).zip(b_numbers.par_chunks(PIECE)))
            .for_each(|(out, (a, b))| {
                vectorized!(
                    out.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = f(*a, *b))
                )
            });
        Ok(())
    })
}
