//! The head: logits h Wᵀ and their cross-entropy, fused in chunks of rows, so that the full logits
//! (B·T × V) never exist.

mod by_kernels;
mod portable;

use super::compute::{Compute, widened};
use super::few_rows::few_rows_product;
use super::head_adapter::{HeadAdapter, HeadMatrix, Term, TermGradients};
use super::product::as_rows;
use super::tape::{Tape, Value};
use crate::kernels::profile::{Cost, Work, span};
use crate::kernels::{Host, scalar, with_real};
use by_kernels::chunks;
use candle_core::{DType, Result, Tensor, bail};
use portable::portable;

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
    adapted_cross_entropy_head(tape, h, w, None, targets)
}

/// [`cross_entropy_head`] of W₀ + U S Vᵀ or W₀ + scale · B A, whose parameters' slots get their
/// gradients as [`low_rank_linear`](super::low_rank_linear) and products of two factors give them;
/// W₀ gets one only where it is wanted.
///
/// # Errors
/// As for [`cross_entropy_head`].
pub fn adapted_cross_entropy_head<'a>(
    tape: &Tape,
    h: &Value,
    w: &Value,
    adapter: Option<&HeadAdapter>,
    targets: impl Into<Targets<'a>>,
) -> Result<Value> {
    let (compute, to_h, to_w) = (tape.compute(), h.source(), w.source());
    let to_adapter = adapter.map_or([None; 2], HeadAdapter::sources);
    let wanted = Wanted {
        h: tape.is_recording() && to_h.is_some(),
        w: tape.is_recording() && to_w.is_some(),
        term: tape.is_recording() && (to_h.is_some() || to_adapter != [None; 2]),
        each: false,
    };
    let counted = Counted::new(h.tensor(), targets.into())?;
    let _span = span(|| loss_work(&counted.h, w.tensor()));
    let head = HeadMatrix { w: w.tensor(), adapter };
    let Summed { loss, mut dh, dw, term, .. } = summed(compute, &counted, head, wanted)?;
    let mean = (loss / counted.divisor)?.to_dtype(w.tensor().dtype())?;
    let mut by_adapter = None;
    if let (Some(adapter), Some((term, by_term))) = (adapter, term) {
        if let Some(dh) = &mut dh {
            *dh = (&*dh + adapter.input_gradient(compute, &by_term)?)?;
        }
        let rows = compute.narrowed(&counted.h)?;
        by_adapter = Some(adapter.gradients(compute, &rows, term, &by_term)?);
    }
    let (shape, given) = (h.tensor().dims().to_vec(), h.tensor().dtype());
    let dh = dh.map(|dh| counted.spread(dh)).transpose()?;
    let sources = [to_h, to_w, to_adapter[0], to_adapter[1]];
    Ok(tape.record(&sources, mean, move |delta, flow| {
        // A loss is mostly the end of the tape, where its gradient is 1; where looking costs
        // nothing, that saves two passes.
        let is_one =
            delta.device().is_cpu() && delta.to_dtype(DType::F64)?.to_scalar::<f64>()? == 1.0;
        let scaled = |x: Tensor| if is_one { Ok(x) } else { x.broadcast_mul(&delta) };
        if let Some(dw) = dw {
            flow.add(to_w, scaled(dw)?)?;
        }
        if let Some(by_adapter) = by_adapter {
            by_adapter.send(to_adapter, flow, &scaled)?;
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
    head: impl Into<HeadMatrix<'a>>,
    targets: impl Into<Targets<'a>>,
) -> Result<f64> {
    let counted = Counted::new(h, targets.into())?;
    scalar(&summed(compute, &counted, head.into(), Wanted::default())?.loss)
}

/// The cross-entropy in nats of each target that counts, in order; no gradient.
///
/// # Errors
/// As for [`cross_entropy_head`].
pub fn cross_entropies<'a>(
    compute: Compute,
    h: &Tensor,
    head: impl Into<HeadMatrix<'a>>,
    targets: impl Into<Targets<'a>>,
) -> Result<Vec<f64>> {
    let wanted = Wanted { each: true, ..Wanted::default() };
    Ok(summed(compute, &Counted::new(h, targets.into())?, head.into(), wanted)?.each)
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
///
/// # Errors
/// If the widths do not fit.
pub fn logits<'a>(compute: Compute, h: &Tensor, head: impl Into<HeadMatrix<'a>>) -> Result<Tensor> {
    let (HeadMatrix { w, adapter }, h) = (head.into(), compute.narrowed(h)?);
    let product = |x: &Tensor, by: &Tensor| -> Result<Tensor> {
        few_rows_product(compute, x, &by.t()?)?.to_dtype(w.dtype())
    };
    let logits = product(&h, &compute.narrowed(w)?)?;
    match adapter {
        None => Ok(logits),
        Some(adapter) => {
            let Term { left, inner, .. } = adapter.term(compute, &h)?;
            logits + product(&inner, &left)?
        }
    }
}

/// What is computed beside the sum of losses.
#[derive(Clone, Copy, Default)]
struct Wanted {
    /// The gradient by h.
    h: bool,
    /// The gradient by W.
    w: bool,
    /// The gradients by what is beside it.
    term: bool,
    /// Every loss by itself.
    each: bool,
}

impl Wanted {
    fn gradients(self) -> bool {
        self.h || self.w || self.term
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
    /// What is beside W, and the gradients of the mean by it, if wanted.
    term: Option<(Term, TermGradients)>,
}

fn summed(
    compute: Compute,
    counted: &Counted,
    HeadMatrix { w, adapter }: HeadMatrix,
    wanted: Wanted,
) -> Result<Summed> {
    let Counted { h: rows, ids, divisor, .. } = counted;
    check_targets(ids, w)?;
    if rows.dim(1)? != w.dim(1)? {
        bail!("the head's input is {} wide, its weight {}", rows.dim(1)?, w.dim(1)?)
    }
    let rows = compute.narrowed(rows)?;
    let term = adapter.map(|adapter| adapter.term(compute, &rows)).transpose()?;
    if compute.takes_kernels(w) {
        // Half precision only rounds what goes into the products.
        let (rows, w) = (widened(&rows)?, widened(&compute.narrowed(w)?)?);
        let term = term.map(Term::widened).transpose()?;
        return with_real!(w.dtype(), T => chunks::<T>((&rows, &w, term), ids, *divisor, wanted));
    }
    portable(compute, (&rows, w, term), ids, *divisor, wanted)
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
