//! The head: logits h Wᵀ and their cross-entropy, fused in chunks of rows, so that the full logits (B·T × V) never exist.

use super::host::{Host, build, unwritten, with_real};
use super::product::{Matrix, as_rows, multiply, product};
use super::real::{Real, lane_max, lane_sum, vectorized};
use super::tape::{Tape, Value};
use candle_core::{D, Result, Tensor, bail};
use rayon::prelude::*;

/// Logits per chunk: 8 MB in f32, which a large cache holds.
const CHUNK: usize = 1 << 21;

/// Mean cross-entropy in nats of targets (B, T) under softmax(h Wᵀ), for h (B, T, C) and W (V, C).
///
/// On the CPU the gradients are computed chunk by chunk in the forward pass, while the logits are there: with p the probabilities and
/// N = B T, d logits = (p − onehot)/N, dh = d logits · W, dW = Σ d logitsᵀ h.
///
/// # Errors
/// If a target is outside the vocabulary or shapes do not fit.
pub fn cross_entropy_head(tape: &Tape, h: &Value, w: &Value, targets: &Tensor) -> Result<Value> {
    let rows = as_rows(h.tensor())?.contiguous()?;
    let count = rows.dim(0)?;
    let targets = checked_targets(targets, count, w.tensor())?;
    let (to_h, to_w) = (h.source(), w.source());
    let wanted = tape.is_recording() && (to_h.is_some() || to_w.is_some());
    if !tape.uses_kernels(&rows) {
        return portable(tape, h, w, &rows, targets);
    }
    let (sum, gradients) = with_real!(rows.dtype(), T => chunks::<T>(&rows, w.tensor(), &targets, wanted)?);
    let loss = Tensor::new(sum / count as f64, rows.device())?.to_dtype(rows.dtype())?;
    let Some((dh, dw)) = gradients else { return Ok(tape.constant(loss)) };
    let shape = h.tensor().dims().to_vec();
    Ok(tape.record(&[to_h, to_w], loss, move |delta, flow| {
        let upstream = delta.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        let scaled = |x: Tensor| if upstream == 1.0 { Ok(x) } else { x * upstream };
        flow.add(to_w, scaled(dw)?)?;
        flow.add(to_h, scaled(dh)?.reshape(shape)?)
    }))
}

/// Sum over all targets of the cross-entropy in nats, added up in f64; no gradient.
pub fn cross_entropy_sum(h: &Tensor, w: &Tensor, targets: &Tensor) -> Result<f64> {
    let rows = as_rows(h)?.contiguous()?;
    let targets = checked_targets(targets, rows.dim(0)?, w)?;
    if super::host::has_kernel(&rows) {
        return with_real!(rows.dtype(), T => Ok(chunks::<T>(&rows, w, &targets, false)?.0));
    }
    let losses = portable_losses(&logits(&rows, w)?, &targets)?;
    losses.sum_all()?.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()
}

/// Logits h Wᵀ of rows h (N, C) for W (V, C).
pub fn logits(h: &Tensor, w: &Tensor) -> Result<Tensor> {
    product(h, w, false, true)
}

fn checked_targets(targets: &Tensor, count: usize, w: &Tensor) -> Result<Tensor> {
    let targets = targets.flatten_all()?.contiguous()?;
    if targets.dim(0)? != count {
        bail!("the head got {count} rows and {} targets", targets.dim(0)?)
    }
    if targets.device().is_cpu() {
        let vocabulary = w.dim(0)?;
        if let Some(outside) = Host::new(&targets)?.ids()?.iter().find(|id| **id as usize >= vocabulary) {
            bail!("target token {outside} is outside the vocabulary of {vocabulary}")
        }
    }
    Ok(targets)
}

/// Sum of losses and, if wanted, (dh, dW) of the mean loss.
fn chunks<T: Real>(h: &Tensor, w: &Tensor, targets: &Tensor, wanted: bool) -> Result<(f64, Option<(Tensor, Tensor)>)> {
    let ((count, width), (vocabulary, w_width)) = (h.dims2()?, w.dims2()?);
    if width != w_width {
        bail!("the head's input is {width} wide, its weight {w_width}")
    }
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
                .map(
                    |(row, target)| {
                        if wanted { row_loss_and_gradient(row, *target as usize, scale) } else { row_loss(row, *target as usize) }
                    },
                )
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

fn portable_losses(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    candle_nn::ops::log_softmax(logits, D::Minus1)?.gather(&targets.unsqueeze(1)?, 1)?.neg()
}

fn portable(tape: &Tape, h: &Value, w: &Value, rows: &Tensor, targets: Tensor) -> Result<Value> {
    let count = rows.dim(0)?;
    let logits = product(rows, w.tensor(), false, true)?;
    let loss = (portable_losses(&logits, &targets)?.sum_all()? / count as f64)?;
    let (to_h, to_w) = (h.source(), w.source());
    let (rows, w, shape) = (rows.clone(), w.tensor().clone(), h.tensor().dims().to_vec());
    Ok(tape.record(&[to_h, to_w], loss, move |delta, flow| {
        let p = candle_nn::ops::softmax(&logits, D::Minus1)?;
        let ones = Tensor::ones((count, 1), p.dtype(), p.device())?;
        let d_logits = p.scatter_add(&targets.unsqueeze(1)?, &ones.neg()?, 1)?;
        let d_logits = (d_logits / count as f64)?.broadcast_mul(&delta)?;
        flow.add_product(to_w, w.dims(), &d_logits, &rows, true, false)?;
        flow.add(to_h, product(&d_logits, &w, false, false)?.reshape(shape)?)
    }))
}
