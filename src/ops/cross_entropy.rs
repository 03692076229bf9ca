//! The head: logits h Wᵀ and their cross-entropy, fused in chunks of rows, so that the full logits
//! (B·T × V) never exist.

use super::compute::{Compute, widened};
use super::few_rows::few_rows_product;
use super::gpu;
use super::product::{as_rows, multiply, product_by, wide_product_by};
use super::tape::{Tape, Value};
use crate::kernels::profile::{Cost, Work, span};
use crate::kernels::{
    Host, Matrix, Real, build, lane_max, lane_sum, scalar, unwritten, vectorized, with_real,
};
use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Logits per chunk: 8 MB in f32, which a large cache holds.
const CHUNK: usize = 1 << 21;
/// The same where candle's operations run: 256 MB in f32, enough for a device to be busy.
const PORTABLE_CHUNK: usize = 1 << 26;
/// The same where one kernel makes the gradient of the logits, and nothing else of their size.
const GPU_CHUNK: usize = 1 << 27;

/// Which of the N = B T targets of a batch count, where not all do.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// Tokens to predict, (B, T) u32.
    ids: &'a Tensor,
    /// Rows of the flattened (B, T) that count, ascending (u32), and what their sum is divided by.
    trained: Option<(&'a Tensor, f64)>,
}

/// All of them: the loss is their mean.
impl<'a> From<&'a Tensor> for Targets<'a> {
    fn from(ids: &'a Tensor) -> Self {
        Self { ids, trained: None }
    }
}

impl<'a> Targets<'a> {
    /// Those in `rows` of the flattened (B, T), u32: the loss is their sum divided by `divisor`,
    /// their number where the batch is the whole of a step. The others have no loss and no
    /// gradient, and cost no logits.
    pub fn only(ids: &'a Tensor, rows: &'a Tensor, divisor: f64) -> Self {
        Self { ids, trained: Some((rows, divisor)) }
    }
}

/// Mean cross-entropy in nats of targets (B, T) under softmax(h Wᵀ), for h (B, T, C) and W (V, C),
/// in W's type.
///
/// The gradients are computed chunk by chunk in the forward pass, while the logits are there: with
/// p the probabilities and N = B T, d logits = (p − onehot)/N, dh = d logits · W, dW = Σ d logitsᵀ
/// h. Of [`Targets::only`] some rows, N is their divisor and the other rows' gradient is 0.
///
/// # Errors
/// If a target is outside the vocabulary, none counts, or shapes do not fit.
pub fn cross_entropy_head<'a>(
    tape: &Tape,
    h: &Value,
    w: &Value,
    targets: impl Into<Targets<'a>>,
) -> Result<Value> {
    let (to_h, to_w) = (h.source(), w.source());
    let wanted = Wanted {
        h: tape.is_recording() && to_h.is_some(),
        w: tape.is_recording() && to_w.is_some(),
        each: false,
    };
    let counted = Counted::new(h.tensor(), targets.into())?;
    let _span = span(|| loss_work(&counted.h, w.tensor()));
    let Summed { loss, dh, dw, .. } = summed(tape.compute(), &counted, w.tensor(), wanted)?;
    let mean = (loss / counted.divisor)?.to_dtype(w.tensor().dtype())?;
    let (shape, given) = (h.tensor().dims().to_vec(), h.tensor().dtype());
    let dh = dh.map(|dh| counted.spread(dh)).transpose()?;
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

/// Sum over all targets that count of the cross-entropy in nats; no gradient.
///
/// # Errors
/// As for [`cross_entropy_head`].
pub fn cross_entropy_sum<'a>(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: impl Into<Targets<'a>>,
) -> Result<f64> {
    scalar(&summed(compute, &Counted::new(h, targets.into())?, w, Wanted::default())?.loss)
}

/// The cross-entropy in nats of each target that counts, in order; no gradient.
///
/// # Errors
/// As for [`cross_entropy_head`].
pub fn cross_entropies<'a>(
    compute: Compute,
    h: &Tensor,
    w: &Tensor,
    targets: impl Into<Targets<'a>>,
) -> Result<Vec<f64>> {
    let wanted = Wanted { each: true, ..Wanted::default() };
    Ok(summed(compute, &Counted::new(h, targets.into())?, w, wanted)?.each)
}

/// The rows of a batch whose targets count.
struct Counted {
    /// Hidden states, (N, C).
    h: Tensor,
    /// Their targets, (N).
    ids: Tensor,
    /// What the sum of their losses is divided by.
    divisor: f64,
    /// Where they were among the rows of the batch, and how many those are.
    places: Option<(Tensor, usize)>,
}

impl Counted {
    fn new(h: &Tensor, targets: Targets) -> Result<Self> {
        let (h, ids) = (as_rows(h)?.contiguous()?, targets.ids.flatten_all()?.contiguous()?);
        let count = h.dim(0)?;
        if ids.dim(0)? != count {
            bail!("the head got {count} rows and {} targets", ids.dim(0)?)
        }
        let Some((rows, divisor)) = targets.trained else {
            return Ok(Self { h, ids, divisor: count as f64, places: None });
        };
        if rows.elem_count() == 0 || !(divisor.is_finite() && divisor > 0.0) {
            bail!("{} of {count} targets count, divided by {divisor}", rows.elem_count())
        }
        let (h, ids) = (h.index_select(rows, 0)?, ids.index_select(rows, 0)?);
        Ok(Self { h, ids, divisor, places: Some((rows.clone(), count)) })
    }

    /// A gradient by the counted rows as one by all rows, 0 for the others.
    fn spread(&self, dh: Tensor) -> Result<Tensor> {
        match &self.places {
            None => Ok(dh),
            Some((places, count)) => {
                let all = Tensor::zeros((*count, dh.dim(1)?), dh.dtype(), dh.device())?;
                all.index_add(places, &dh, 0)
            }
        }
    }
}

/// Logits h Wᵀ of rows h (N, C) for W (V, C), in W's type.
pub fn logits(compute: Compute, h: &Tensor, w: &Tensor) -> Result<Tensor> {
    few_rows_product(compute, &compute.narrowed(h)?, &compute.narrowed(w)?.t()?)?
        .to_dtype(w.dtype())
}

/// What is computed beside the sum of losses.
#[derive(Clone, Copy, Default)]
struct Wanted {
    /// The gradient by h.
    h: bool,
    /// The gradient by W.
    w: bool,
    /// Every loss by itself.
    each: bool,
}

impl Wanted {
    fn gradients(self) -> bool {
        self.h || self.w
    }
}

/// What the head does beside its products: it reads the logits and writes their gradients.
fn loss_work(h: &Tensor, w: &Tensor) -> Work {
    let (rows, vocabulary) = (h.elem_count() / w.dim(1).unwrap_or(1).max(1), w.dim(0).unwrap_or(0));
    let bytes = (2 * rows * vocabulary * w.dtype().size_in_bytes()) as u64;
    let forward = Cost { operations: 0, bytes };
    Work { name: "loss", shape: [rows, vocabulary, 0], forward, backward: Cost::default() }
}

/// Losses of all targets.
struct Summed {
    /// Their sum, a scalar; from the kernels in f64.
    loss: Tensor,
    /// Each of them, if wanted.
    each: Vec<f64>,
    /// Gradient of the mean by h as rows, if wanted.
    dh: Option<Tensor>,
    /// Gradient of the mean by W, if wanted.
    dw: Option<Tensor>,
}

fn summed(compute: Compute, counted: &Counted, w: &Tensor, wanted: Wanted) -> Result<Summed> {
    let Counted { h: rows, ids, divisor, .. } = counted;
    check_targets(ids, w)?;
    if rows.dim(1)? != w.dim(1)? {
        bail!("the head's input is {} wide, its weight {}", rows.dim(1)?, w.dim(1)?)
    }
    if compute.takes_kernels(w) {
        // Half precision only rounds what goes into the products.
        let (rows, w) = (widened(&compute.narrowed(rows)?)?, widened(&compute.narrowed(w)?)?);
        return with_real!(w.dtype(), T => chunks::<T>(&rows, &w, ids, *divisor, wanted));
    }
    portable(compute, &compute.narrowed(rows)?, w, ids, *divisor, wanted)
}

fn check_targets(targets: &Tensor, w: &Tensor) -> Result<()> {
    if targets.device().is_cpu() {
        let vocabulary = w.dim(0)?;
        if let Some(outside) =
            Host::new(targets)?.ids()?.iter().find(|id| **id as usize >= vocabulary)
        {
            bail!("target token {outside} is outside the vocabulary of {vocabulary}")
        }
    }
    Ok(())
}

/// The losses by the CPU kernels.
fn chunks<T: Real>(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    divisor: f64,
    wanted: Wanted,
) -> Result<Summed> {
    let ((count, width), (vocabulary, _)) = (h.dims2()?, w.dims2()?);
    let w = w.contiguous()?;
    let (h_host, w_host, target_host) = (Host::new(h)?, Host::new(&w)?, Host::new(targets)?);
    let (h, w, targets) = (h_host.numbers::<T>()?, w_host.numbers::<T>()?, target_host.ids()?);
    let rows_per_chunk = (CHUNK / vocabulary).clamp(64, count.max(64));
    let mut logits = unwritten::<T>(rows_per_chunk.min(count) * vocabulary);
    let (mut sum, mut each) = (0.0, Vec::new());
    let mut dw = unwritten::<T>(if wanted.w { vocabulary * width } else { 0 });
    let scale = T::real(1.0 / divisor);
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
                    if wanted.gradients() {
                        row_loss_and_gradient(row, *target as usize, scale)
                    } else {
                        row_loss(row, *target as usize)
                    }
                })
                .collect();
            sum += losses.iter().sum::<f64>();
            if wanted.each {
                each.extend(losses);
            }
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
    Ok(Summed { loss: Tensor::new(sum, &candle_core::Device::Cpu)?, each, dh, dw })
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
    divisor: f64,
    wanted: Wanted,
) -> Result<Summed> {
    let ((count, _), vocabulary) = (h.dims2()?, w.dim(0)?);
    let (narrow, wide) = (compute.narrowed(w)?, w.dtype());
    let chunk = if compute.gpu(w).is_some() { GPU_CHUNK } else { PORTABLE_CHUNK };
    let rows_per_chunk = (chunk / vocabulary).clamp(64, count.max(64));
    let (mut loss, mut each) = (Tensor::zeros((), wide, w.device())?, Vec::new());
    let (mut dw, mut dh) = (None, Vec::new());
    let divisor = wanted.gradients().then_some(divisor);
    for first in (0..count).step_by(rows_per_chunk) {
        let rows = rows_per_chunk.min(count - first);
        let (input, ids) = (
            h.narrow(0, first, rows)?,
            targets.narrow(0, first, rows)?.unsqueeze(1)?.contiguous()?,
        );
        let logits = product_by(compute, &input, &narrow.t()?)?;
        let (losses, d_logits) = match compute.gpu(&logits) {
            Some(gpu) => gpu::cross_entropy(gpu, &logits, &ids, divisor.map(f64::recip))?,
            None => losses_of(&logits.to_dtype(wide)?, &ids, divisor)?,
        };
        drop(logits);
        loss = (loss + losses.sum_all()?)?;
        if wanted.each {
            each.extend(losses.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        }
        if let Some(d_logits) = d_logits {
            let d_logits = compute.narrowed(&d_logits)?;
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
    Ok(Summed { loss, each, dh, dw })
}

/// Loss of each row of logits (rows, V) against its target (rows, 1), and, with a divisor, (softmax −
/// onehot) / divisor.
fn losses_of(
    logits: &Tensor,
    ids: &Tensor,
    divisor: Option<f64>,
) -> Result<(Tensor, Option<Tensor>)> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let powers = shifted.exp()?;
    let sums = powers.sum_keepdim(D::Minus1)?;
    let losses = (sums.log()? - shifted.gather(ids, 1)?)?;
    drop(shifted);
    let Some(divisor) = divisor else { return Ok((losses, None)) };
    let minus_one = ids.ones_like()?.to_dtype(logits.dtype())?.neg()?;
    let p = powers.broadcast_div(&sums)?.scatter_add(ids, &minus_one, 1)?;
    Ok((losses, Some((p / divisor)?)))
}
