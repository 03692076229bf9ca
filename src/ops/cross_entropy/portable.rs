//! Losses and gradients of the head by candle's operations.

use super::super::compute::Compute;
use super::super::gpu;
use super::super::head_adapter::{Term, TermGradients};
use super::super::product::{product_by, wide_product_by};
use super::{Summed, Wanted};
use candle_core::{D, DType, Result, Tensor};

/// Logits per chunk: 256 MB in f32, enough for a device to be busy.
const PORTABLE_CHUNK: usize = 1 << 26;
/// The same where one kernel makes the gradient of the logits, and nothing else of their size.
const GPU_CHUNK: usize = 1 << 27;

/// The losses by candle's operations, or a GPU's kernel, in larger chunks than the CPU's.
pub(super) fn portable(
    compute: Compute,
    (h, w, term): (&Tensor, &Tensor, Option<Term>),
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
    let (mut d_left, mut d_inner) = (None, Vec::new());
    let divisor = wanted.gradients().then_some(divisor);
    let add = |sum: Option<Tensor>, d_logits: &Tensor, by: &Tensor| -> Result<Option<Tensor>> {
        let part = wide_product_by(compute, &d_logits.t()?, by)?;
        Ok(Some(match sum {
            None => part,
            Some(sum) => (sum + part)?,
        }))
    };
    for first in (0..count).step_by(rows_per_chunk) {
        let rows = rows_per_chunk.min(count - first);
        let (input, ids) = (
            h.narrow(0, first, rows)?,
            targets.narrow(0, first, rows)?.unsqueeze(1)?.contiguous()?,
        );
        let mut logits = product_by(compute, &input, &narrow.t()?)?;
        if let Some(Term { left, inner, .. }) = &term {
            let inner = inner.narrow(0, first, rows)?;
            logits = (logits + product_by(compute, &inner, &left.t()?)?)?;
        }
        let (losses, d_logits) = match compute.gpu(&logits) {
            Some(gpu) => gpu::cross_entropy(gpu, &logits, &ids, divisor.map(f64::recip))?,
            None => losses_of(&logits.to_dtype(wide)?, &ids, divisor)?,
        };
        drop(logits);
        loss = (loss + losses.sum_all()?)?;
        if wanted.each {
            each.extend(losses.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        }
        let Some(d_logits) = d_logits else { continue };
        let d_logits = compute.narrowed(&d_logits)?;
        if wanted.h {
            dh.push(product_by(compute, &d_logits, &narrow)?);
        }
        if wanted.w {
            dw = add(dw, &d_logits, &input)?;
        }
        if let Some(Term { left, z, .. }) = term.as_ref().filter(|_| wanted.term) {
            d_left = add(d_left, &d_logits, &z.narrow(0, first, rows)?)?;
            d_inner.push(wide_product_by(compute, &d_logits, left)?);
        }
    }
    let joined = |parts: &[Tensor]| -> Result<Option<Tensor>> {
        if parts.is_empty() { Ok(None) } else { Ok(Some(Tensor::cat(parts, 0)?.to_dtype(wide)?)) }
    };
    let by_term = d_left.zip(joined(&d_inner)?);
    let by_term = by_term.map(|(left, inner)| TermGradients { left, inner });
    Ok(Summed { loss, each, dh: joined(&dh)?, dw, term: term.zip(by_term) })
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
