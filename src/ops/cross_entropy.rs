//! The head: logits h Wᵀ and their cross-entropy, fused in chunks of rows, so that the full logits
//! (B·T × V) never exist.

use super::compute::{Compute, widened};
use super::few_rows::few_rows_product;
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
    let wanted = Wanted {
        h: tape.is_recording() && to_h.is_some(),
        w: tape.is_recording() && to_w.is_some(),
    };
    let Summed { loss, count, dh, dw } =
        summed(tape.compute(), h.tensor(), w.tensor(), targets, wanted)?;
    let mean = (loss / count as f64)?.to_dtype(w.tensor().dtype())?;
    let (shape, given) = (h.tensor().dims().to_vec(), h.tensor().dtype());
    Ok(tape.record(&[to_h, to_w], mean, move |delta, flow| {
        // A loss is mostly the end of the tape, where its gradient is 1; where looking costs
        // nothing, that saves two passes.
        let is_one =
            delta.device().is_cpu() && delta.to_dtype(DType::F64)?.to_scalar::<f64>()? == 1.0;
        let scaled = |x: Tensor| if is_one { Ok(x) } else { x.broadcast_mul(&delta) };
        if let Some(dw) = dw {
            flow.add(to_w, scaled(dw)?)?;
        }
        match dh {
            Some(dh) => flow.add(to_h, scaled(dh)?.to_dtype(given)?.reshape(shape)?),
            None => Ok(()),
        }
    }))
}

/// Sum over all targets of the cross-entropy in nats; no gradient.
pub fn cross_entropy_sum(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
) -> Result<f64> {
    scalar(&summed(compute, h, w, targets, Wanted::default())?.loss)
}

/// Logits h Wᵀ of rows h (N, C) for W (V, C), in W's type.
pub fn logits(compute: Compute, h: &Tensor, w: &Tensor) -> Result<Tensor> {
    few_rows_product(compute, &compute.narrowed(h)?, &compute.narrowed(w)?.t()?)?
        .to_dtype(w.dtype())
}

/// Which gradients are computed beside the loss: by h and by W.
#[derive(Clone, Copy, Default)]
struct Wanted {
    h: bool,
    w: bool,
}

impl Wanted {
    fn any(self) -> bool {
        self.h || self.w
    }
}

/// Losses of all targets.
struct Summed {
    /// Their sum, a scalar; from the kernels in f64.
    loss: Tensor,
    count: usize,
    /// Gradient of the mean by h as rows, if wanted.
    dh: Option<Tensor>,
    /// Gradient of the mean by W, if wanted.
    dw: Option<Tensor>,
}

fn summed(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    wanted: Wanted,
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
        let (sum, dh, dw) = with_real!(w.dtype(), T => chunks::<T>(&rows, &w, &targets, wanted)?);
        return Ok(Summed { loss: Tensor::new(sum, rows.device())?, count, dh, dw });
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

/// Sum of losses and, where wanted, dh and dW of the mean loss.
fn chunks<T: Real>(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    wanted: Wanted,
) -> Result<(f64, Option<Tensor>, Option<Tensor>)> {
    let ((count, width), (vocabulary, _)) = (h.dims2()?, w.dims2()?);
    let w = w.contiguous()?;
    let (h_host, w_host, target_host) = (Host::new(h)?, Host::new(&w)?, Host::new(targets)?);
    let (h, w, targets) = (h_host.numbers::<T>()?, w_host.numbers::<T>()?, target_host.ids()?);
    let rows_per_chunk = (CHUNK / vocabulary).clamp(64, count.max(64));
    let mut logits = unwritten::<T>(rows_per_chunk.min(count) * vocabulary);
    let mut sum = 0.0;
    let mut dw = unwritten::<T>(if wanted.w { vocabulary * width } else { 0 });
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
                    if wanted.any() {
                        row_loss_and_gradient(row, *target as usize, scale)
                    } else {
                        row_loss(row, *target as usize)
                    }
                })
                .collect();
            sum += losses.iter().sum::<f64>();
            let d_logits = Matrix::new(logits, rows, vocabulary);
            if wanted.h {
                multiply(&mut dh[first * width..][..rows * width], d_logits, weight, false);
            }
            if wanted.w {
                multiply(&mut dw, d_logits.t(), input, first > 0);
            }
        }
        Ok(())
    };
    let dh = if wanted.h {
        Some(build::<T>((count, width), pass)?)
    } else {
        pass(&mut [])?;
        None
    };
    let dw = if wanted.w {
        Some(Tensor::from_vec(dw, (vocabulary, width), &candle_core::Device::Cpu)?)
    } else {
        None
    };
    Ok((sum, dh, dw))
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
    wanted: Wanted,
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
        if wanted.any() {
            let minus_one = Tensor::ones((rows, 1), wide, w.device())?.neg()?;
            let p = powers.broadcast_div(&sums)?.scatter_add(&ids, &minus_one, 1)?;
            let d_logits = compute.narrowed(&(p / count as f64)?)?;
            if wanted.h {
                dh.push(product_by(compute, &d_logits, &narrow)?);
            }
            if !wanted.w {
                continue;
            }
            let part = wide_product_by(compute, &d_logits.t()?, &input)?;
            dw = Some(match dw {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
    }
    let dh = if wanted.h { Some(Tensor::cat(&dh, 0)?.to_dtype(wide)?) } else { None };
    Ok(Summed { loss, count, dh, dw })
}
