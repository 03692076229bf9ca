//! Norms over the last dimension C: layer normalisation (Ba, Kiros & Hinton 2016), y = w ∘ (x −
//! μ)/√(σ² + ε) + b, and by the root mean square (Zhang & Sennrich 2019), y = w ∘ x/√(mean x² + ε),
//! which is the same without the mean.

use super::compute::widened;
use super::gpu;
use super::linear::sum_rows;
use super::product::{as_rows, rows_of};
use super::tape::{Tape, Value};
use crate::kernels::profile::{Work, span};
use crate::kernels::{Host, Real, build, lane_sum, unwritten, vectorized, with_real};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Layer norm of x (…, C) with weight and bias of C, in the type of the weight; the result is in
/// the type of the products.
///
/// With x̂ the normalised row and g = w ∘ δ: dx = (g − mean g − x̂ mean(g ∘ x̂))/√(σ² + ε), dw = Σ
/// δ ∘ x̂, db = Σ δ.
///
/// # Errors
/// If the weight is not C wide.
pub fn layer_norm(
    tape: &Tape,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    epsilon: f64,
) -> Result<Value> {
    norm::<true>(tape, x, weight, bias, epsilon)
}

/// Norm of x (…, C) by its root mean square, with a weight of C and in its type; the result is in
/// the type of the products.
///
/// With x̂ = x/√(mean x² + ε) and g = w ∘ δ: dx = (g − x̂ mean(g ∘ x̂))/√(mean x² + ε), dw = Σ δ ∘
/// x̂.
///
/// # Errors
/// If the weight is not C wide.
pub fn rms_norm(tape: &Tape, x: &Value, weight: &Value, epsilon: f64) -> Result<Value> {
    norm::<false>(tape, x, weight, None, epsilon)
}

/// Either norm: with the mean taken off or not.
fn norm<const CENTERED: bool>(
    tape: &Tape,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
    epsilon: f64,
) -> Result<Value> {
    let name = if CENTERED { "layer_norm" } else { "rms_norm" };
    let (_, width) = rows_of(x.tensor())?;
    if weight.tensor().dims() != [width] {
        bail!(
            "{name}: the input is {width} wide, the weight has shape {:?}",
            weight.tensor().dims()
        )
    }
    if let Some(bias) = bias
        && bias.tensor().dims() != [width]
    {
        bail!("{name}: the input is {width} wide, the bias has {:?}", bias.tensor().dims())
    }
    let _span = span(|| Work::pass(name, x.tensor(), (2, 3)));
    let input = widened(x.tensor())?.contiguous()?;
    let kernels = tape.uses_kernels(&input);
    let of_gpu = gpu::Norm { x: &input, weight: weight.tensor(), epsilon, centered: CENTERED };
    let normed = if let Some(gpu) = tape.compute().gpu(&input) {
        // In the type of the products at once.
        let dtype = tape.compute().half.unwrap_or(input.dtype());
        of_gpu.forward(gpu, bias.map(Value::tensor), dtype)?
    } else if kernels {
        with_real!(input.dtype(), T => forward::<T, CENTERED>(&input, weight.tensor(), bias.map(Value::tensor), epsilon)?)
    } else {
        let y = normalized::<CENTERED>(&input, epsilon)?.0.broadcast_mul(weight.tensor())?;
        match bias {
            Some(bias) => y.broadcast_add(bias.tensor())?,
            None => y,
        }
    };
    let (to_x, to_weight, to_bias) = (x.source(), weight.source(), bias.and_then(Value::source));
    let (weight, given) = (weight.tensor().clone(), x.tensor().dtype());
    Ok(tape.record(&[to_x, to_weight, to_bias], tape.compute().narrowed(&normed)?, move |delta, flow| {
        let of_gpu = gpu::Norm { x: &input, weight: &weight, epsilon, centered: CENTERED };
        let delta = delta.contiguous()?;
        let (dx, d_weight, d_bias) = if let Some(gpu) = flow.compute().gpu(&input) {
            of_gpu.backward(gpu, &delta, to_bias.is_some())?
        } else if kernels {
            let delta = widened(&delta)?;
            with_real!(input.dtype(), T => backward::<T, CENTERED>(&input, &weight, &delta, epsilon, to_bias.is_some())?)
        } else {
            let delta = widened(&delta)?;
            let (hat, inverse) = normalized::<CENTERED>(&input, epsilon)?;
            let g = delta.broadcast_mul(&weight)?;
            let last = g.rank() - 1;
            let along = hat.broadcast_mul(&(&g * &hat)?.mean_keepdim(last)?)?;
            let free = if CENTERED { g.broadcast_sub(&g.mean_keepdim(last)?)? } else { g };
            let dx = (free - along)?.broadcast_mul(&inverse)?;
            let d_bias = if to_bias.is_some() { Some(as_rows(&delta)?.sum(0)?) } else { None };
            (dx, as_rows(&(delta * hat)?)?.sum(0)?, d_bias)
        };
        flow.add(to_x, dx.to_dtype(given)?)?;
        flow.add(to_weight, d_weight)?;
        match d_bias {
            Some(d_bias) => flow.add(to_bias, d_bias),
            None => Ok(()),
        }
    }))
}

/// x̂ and 1/√(σ² + ε), with μ = 0 where nothing is taken off, by candle operations.
fn normalized<const CENTERED: bool>(x: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor)> {
    let last = x.rank() - 1;
    let centered = if CENTERED { x.broadcast_sub(&x.mean_keepdim(last)?)? } else { x.clone() };
    let inverse = (centered.sqr()?.mean_keepdim(last)? + epsilon)?.sqrt()?.recip()?;
    Ok((centered.broadcast_mul(&inverse)?, inverse))
}

/// μ, or 0 where nothing is taken off, and 1/√(σ² + ε) of a row.
#[inline(always)]
fn statistics<T: Real, const CENTERED: bool>(row: &[T], epsilon: T) -> (T, T) {
    let scale = T::real(1.0 / row.len() as f64);
    let mean = if CENTERED { lane_sum([row], |[x]| x) * scale } else { T::ZERO };
    let variance = lane_sum([row], |[x]| (x - mean) * (x - mean)) * scale;
    (mean, T::ONE / (variance + epsilon).root())
}

fn forward<T: Real, const CENTERED: bool>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f64,
) -> Result<Tensor> {
    let (_, width) = rows_of(x)?;
    let (x_host, w_host) = (Host::new(x)?, Host::new(weight)?);
    let (x_numbers, w) = (x_host.numbers::<T>()?, w_host.numbers::<T>()?);
    let b_host = bias.map(Host::new).transpose()?;
    let b = b_host.as_ref().map(|host| host.numbers::<T>()).transpose()?;
    let epsilon = T::real(epsilon);
    build::<T>(x.shape().clone(), |out| {
        out.par_chunks_mut(width).with_min_len(16).zip(x_numbers.par_chunks(width)).for_each(
            |(out, row)| {
                vectorized!({
                    let (mean, inverse) = statistics::<T, CENTERED>(row, epsilon);
                    for ((y, x), w) in out.iter_mut().zip(row).zip(w) {
                        *y = (*x - mean) * inverse * *w;
                    }
                    if let Some(b) = b {
                        out.iter_mut().zip(b).for_each(|(y, b)| *y += *b);
                    }
                })
            },
        );
        Ok(())
    })
}

/// dx, dw and, if wanted, db.
fn backward<T: Real, const CENTERED: bool>(
    x: &Tensor,
    weight: &Tensor,
    delta: &Tensor,
    epsilon: f64,
    with_bias: bool,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    /// Rows whose share of dw is summed together; fixed, so that dw does not depend on the thread
    /// count.
    const ROWS: usize = 64;
    let (rows, width) = rows_of(x)?;
    let (x_host, w_host, d_host) = (Host::new(x)?, Host::new(weight)?, Host::new(delta)?);
    let (x_numbers, w, d) =
        (x_host.numbers::<T>()?, w_host.numbers::<T>()?, d_host.numbers::<T>()?);
    let epsilon = T::real(epsilon);
    let parts = rows.div_ceil(ROWS);
    let mut weight_parts = unwritten::<T>(parts * width);
    let dx = build::<T>(x.shape().clone(), |dx| {
        dx.par_chunks_mut(ROWS * width)
            .zip(x_numbers.par_chunks(ROWS * width))
            .zip(d.par_chunks(ROWS * width))
            .zip(weight_parts.par_chunks_mut(width))
            .for_each(|(((dx, x), d), dw)| {
                dw.fill(T::ZERO);
                vectorized!({
                    for ((dx, x), d) in dx
                        .chunks_exact_mut(width)
                        .zip(x.chunks_exact(width))
                        .zip(d.chunks_exact(width))
                    {
                        row_backward::<T, CENTERED>(dx, x, w, d, dw, epsilon);
                    }
                })
            });
        Ok(())
    })?;
    let d_weight = build::<T>(width, |out| {
        sum_rows(&weight_parts, parts, width, out);
        Ok(())
    })?;
    let d_bias = with_bias.then(|| {
        build::<T>(width, |out| {
            sum_rows(d, rows, width, out);
            Ok(())
        })
    });
    Ok((dx, d_weight, d_bias.transpose()?))
}

#[inline(always)]
fn row_backward<T: Real, const CENTERED: bool>(
    dx: &mut [T],
    x: &[T],
    w: &[T],
    d: &[T],
    dw: &mut [T],
    epsilon: T,
) {
    let (mean, inverse) = statistics::<T, CENTERED>(x, epsilon);
    let scale = T::real(1.0 / x.len() as f64);
    let (x, w, d) = (&x[..dx.len()], &w[..dx.len()], &d[..dx.len()]);
    let mean_g = if CENTERED { lane_sum([w, d], |[w, d]| w * d) * scale } else { T::ZERO };
    let mean_gx = lane_sum([w, d, x], |[w, d, x]| w * d * (x - mean)) * inverse * scale;
    for i in 0..dx.len() {
        let hat = (x[i] - mean) * inverse;
        dw[i] += d[i] * hat;
        dx[i] = (w[i] * d[i] - mean_g - hat * mean_gx) * inverse;
    }
}
