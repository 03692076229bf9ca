//! The head: logits h Wᵀ and their cross-entropy, fused in chunks of rows, so that the full logits
//! (B·T × V) never exist.

use super::compute::{Compute, widened};
use super::product::{as_rows, multiply, product_by, wide_product_by};
use super::tape::{Tape, Value};
use crate::kernels::{
    Host, Matrix, Real, build, lane_max, lane_sum, scalar, unwritten, vectorized, with_real,
};
use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Logits per chunk: 8 MB in f32, which a large cache holds.
const CHUNK: usize = 1 << 21;
/// The same where candle's operations run: 256 MB in f32, enough for a device to be busy.
const PORTABLE_CHUNK: usize = 1 << 26;

/// Mean cross-entropy in nats of targets (B, T) under softmax(h Wᵀ), for h (B, T, C) and W (V, C),
/// in W's type.
///
/// The gradients are computed chunk by chunk in the forward pass, while the logits are there: with
/// p the probabilities and N = B T, d logits = (p − onehot)/N, dh = d logits · W, dW = Σ d logitsᵀ
/// h.
///
/// # Errors
/// If a target is outside the vocabulary or shapes do not fit.
pub fn cross_entropy_head(tape: &Tape, h: &Value, w: &Value, targets: &Tensor) -> Result<Value> {
    let (to_h, to_w) = (h.source(), w.source());
    let wanted = tape.is_recording() && (to_h.is_some() || to_w.is_some());
    let Summed { loss, count, gradients } =
        summed(tape.compute(), h.tensor(), w.tensor(), targets, wanted)?;
    let mean = (loss / count as f64)?.to_dtype(w.tensor().dtype())?;
    let Some((dh, dw)) = gradients else { return Ok(tape.constant(mean)) };
    let (shape, given) = (h.tensor().dims().to_vec(), h.tensor().dtype());
    Ok(tape.record(&[to_h, to_w], mean, move |delta, flow| {
        // A loss is mostly the end of the tape, where its gradient is 1; where looking costs
        // nothing, that saves two passes.
        let is_one =
            delta.device().is_cpu() && delta.to_dtype(DType::F64)?.to_scalar::<f64>()? == 1.0;
        let scaled = |x: Tensor| if is_one { Ok(x) } else { x.broadcast_mul(&delta) };
        flow.add(to_w, scaled(dw)?)?;
        flow.add(to_h, scaled(dh)?.to_dtype(given)?.reshape(shape)?)
    }))
}

/// Sum over all targets of the cross-entropy in nats; no gradient.
pub fn cross_entropy_sum(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
) -> Result<f64> {
    scalar(&summed(compute, h, w, targets, false)?.loss)
}

/// Logits h Wᵀ of rows h (N, C) for W (V, C), in W's type.
pub fn logits(compute: Compute, h: &Tensor, w: &Tensor) -> Result<Tensor> {
    product_by(compute, &compute.narrowed(h)?, &compute.narrowed(w)?.t()?)?.to_dtype(w.dtype())
}

/// Losses of all targets.
struct Summed {
    /// Their sum, a scalar; from the kernels in f64.
    loss: Tensor,
    count: usize,
    /// Of the mean, by h as rows and by W.
    gradients: Option<(Tensor, Tensor)>,
}

fn summed(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    wanted: bool,
) -> Result<Summed> {
    let rows = as_rows(h)?.contiguous()?;
    let count = rows.dim(0)?;
    let targets = checked_targets(targets, count, w)?;
    if rows.dim(1)? != w.dim(1)? {
        bail!("the head's input is {} wide, its weight {}", rows.dim(1)?, w.dim(1)?)
    }
    if compute.takes_kernels(w) {
        // Half precision only rounds what goes into the products.
        let (rows, w) = (widened(&compute.narrowed(&rows)?)?, widened(&compute.narrowed(w)?)?);
        let (sum, gradients) =
            with_real!(w.dtype(), T => chunks::<T>(&rows, &w, &targets, wanted)?);
        return Ok(Summed { loss: Tensor::new(sum, rows.device())?, count, gradients });
    }
    portable(compute, &compute.narrowed(&rows)?, w, &targets, wanted)
}

fn checked_targets(targets: &Tensor, count: usize, w: &Tensor) -> Result<Tensor> {
    let targets = targets.flatten_all()?.contiguous()?;
    if targets.dim(0)? != count {
        bail!("the head got {count} rows and {} targets", targets.dim(0)?)
    }
    if targets.device().is_cpu() {
        let vocabulary = w.dim(0)?;
        if let Some(outside) =
            Host::new(&targets)?.ids()?.iter().find(|id| **id as usize >= vocabulary)
        {
            bail!("target token {outside} is outside the vocabulary of {vocabulary}")
        }
    }
    Ok(targets)
}

/// Sum of losses and, if wanted, (dh, dW) of the mean loss.
fn chunks<T: Real>(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    wanted: bool,
) -> Result<(f64, Option<(Tensor, Tensor)>)> {
    let ((count, width), (vocabulary, _)) = (h.dims2()?, w.dims2()?);
    let w = w.contiguous()?;
    let (h_host, w_host, target_host) = (Host::new(h)?, Host::new(&w)?, Host::new(targets)?);
    let (h, w, targets) = (h_host.numbers::<T>()?, w_host.numbers::<T>()?, target_host.ids()?);
    let rows_per_chunk = (CHUNK / vocabulary).clamp(64, count.max(64));
    let mut logits = unwritten::<T>(rows_per_chunk.min(count) * vocabulary);
    let mut sum = 0.0;
    let mut dw = unwritten::<T>(if wanted { vocabulary * width } else { 0 });
    let scale = T::real(1.0 / count as f64);
    let weight = Matrix::new(w, vocabulary, width);
    let mut pass = |dh: &mut [T]| -> Result<()> {
        for first in (0..count).step_by(rows_per_chunk) {
            let rows = rows_per_chunk.min(count - first);
            let input = Matrix::new(&h[first * width..][..rows * width], rows, width);
            let logits = &mut logits[..rows * vocabulary];
            multiply(logits, input, weight.t(), false);
            let losses: Vec<f64> = logits
                .par_chunks_mut(vocabulary)
                .zip(&targets[first..first + rows])
                .map(|(row, target)| {
                    if wanted {
                        row_loss_and_gradient(row, *target as usize, scale)
                    } else {
                        row_loss(row, *target as usize)
                    }
                })
                .collect();
            sum += losses.iter().sum::<f64>();
            if wanted {
                let d_logits = Matrix::new(logits, rows, vocabulary);
                multiply(&mut dh[first * width..][..rows * width], d_logits, weight, false);
                multiply(&mut dw, d_logits.t(), input, first > 0);
            }
        }
        Ok(())
    };
    if !wanted {
        pass(&mut [])?;
        return Ok((sum, None));
    }
    let dh = build::<T>((count, width), pass)?;
    let dw = Tensor::from_vec(dw, (vocabulary, width), &candle_core::Device::Cpu)?;
    Ok((sum, Some((dh, dw))))
}

/// −ln softmax(row)[target].
fn row_loss<T: Real>(row: &mut [T], target: usize) -> f64 {
    vectorized!({
        let max = lane_max(row);
        let at_target = row[target];
        let sum = lane_sum([row], |[x]| (x - max).exponential());
        sum.wide().ln() + max.wide() - at_target.wide()
    })
}

/// The row's loss; the row becomes scale · (softmax − onehot).
fn row_loss_and_gradient<T: Real>(row: &mut [T], target: usize, scale: T) -> f64 {
    vectorized!({
        let max = lane_max(row);
        let at_target = row[target];
        row.iter_mut().for_each(|x| *x = (*x - max).exponential());
        let sum = lane_sum([row], |[x]| x);
        let factor = scale / sum;
        row.iter_mut().for_each(|x| *x *= factor);
        row[target] -= scale;
        sum.wide().ln() + max.wide() - at_target.wide()
    })
}

/// The same by candle operations, in larger chunks.
fn portable(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    wanted: bool,
) -> Result<Summed> {
    let ((count, _), vocabulary) = (h.dims2()?, w.dim(0)?);
    let (narrow, wide) = (compute.narrowed(w)?, w.dtype());
    let rows_per_chunk = (PORTABLE_CHUNK / vocabulary).clamp(64, count.max(64));
    let (mut loss, mut dw, mut dh) = (Tensor::zeros((), wide, w.device())?, None, Vec::new());
    for first in (0..count).step_by(rows_per_chunk) {
        let rows = rows_per_chunk.min(count - first);
        let (input, ids) = (
            h.narrow(0, first, rows)?,
            targets.narrow(0, first, rows)?.unsqueeze(1)?.contiguous()?,
        );
        let logits = product_by(compute, &input, &narrow.t()?)?.to_dtype(wide)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        drop(logits);
        let powers = shifted.exp()?;
        let sums = powers.sum_keepdim(D::Minus1)?;
        loss = (loss + (sums.log()? - shifted.gather(&ids, 1)?)?.sum_all()?)?;
        drop(shifted);
        if wanted {
            let minus_one = Tensor::ones((rows, 1), wide, w.device())?.neg()?;
            let p = powers.broadcast_div(&sums)?.scatter_add(&ids, &minus_one, 1)?;
            let d_logits = compute.narrowed(&(p / count as f64)?)?;
            dh.push(product_by(compute, &d_logits, &narrow)?);
            let part = wide_product_by(compute, &d_logits.t()?, &input)?;
            dw = Some(match dw {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
    }
    let gradients = dw
        .map(|dw| Ok::<_, candle_core::Error>((Tensor::cat(&dh, 0)?.to_dtype(wide)?, dw)))
        .transpose()?;
    Ok(Summed { loss, count, gradients })
}
