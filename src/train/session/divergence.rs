//! Divergence: what counts as it, and what its message advises.

use super::Session;
use crate::checkpoint::Snapshot;
use crate::error::Failure;
use crate::record::{Event, Observer, Observers};
use anyhow::Result;
use candle_core::{DType, Tensor};

/// A run that ends at more than this many times ln V learnt less than nothing.
const HIGH_LOSS: f64 = 2.0;

/// Refuses to save numbers that are not finite.
///
/// # Errors
/// [`Failure::Diverged`] naming the first tensor that has one.
pub(super) fn ensure_finite(snapshot: &Snapshot) -> Result<()> {
    let kinds = [("weight", &snapshot.model), ("optimizer's", &snapshot.optimizer)];
    for (kind, tensors) in kinds {
        for (name, tensor) in tensors {
            if !is_finite(tensor)? {
                return Err(Failure::Diverged(format!(
                    "the {kind} tensor `{name}` is not finite after step {}",
                    snapshot.step
                ))
                .into());
            }
        }
    }
    Ok(())
}

fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(match tensor.dtype() {
        DType::F32 => tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()),
        DType::F64 => tensor.flatten_all()?.to_vec1::<f64>()?.iter().all(|x| x.is_finite()),
        DType::F16 | DType::BF16 => {
            let wide = tensor.to_dtype(DType::F32)?.flatten_all()?;
            wide.to_vec1::<f32>()?.iter().all(|x| x.is_finite())
        }
        _ => true,
    })
}

/// Refuses a validation loss that is not finite.
///
/// # Errors
/// [`Failure::Diverged`] with the value.
pub(super) fn ensure_finite_validation(loss: f64, step: u64) -> Result<()> {
    if loss.is_finite() {
        return Ok(());
    }
    Err(Failure::Diverged(format!("the validation loss is {loss} after step {step}")).into())
}

/// What the linear algebra and the tensor library say of numbers too large or not finite; they
/// report through an error that carries nothing but text.
const NOT_FINITE: [&str; 5] =
    ["not finite", "did not converge", ") is inf", ") is -inf", ") is NaN"];

/// Whether an error is a factorisation's that met numbers too large or not finite.
fn is_numeric_breakdown(error: &anyhow::Error) -> bool {
    let is_of_tensors =
        error.chain().any(|cause| cause.downcast_ref::<candle_core::Error>().is_some());
    let text = format!("{error:#}");
    is_of_tensors && NOT_FINITE.iter().any(|said| text.contains(said))
}

impl Session<'_> {
    /// The error of a run that diverged, with the checkpoint that is left and advice; none if the
    /// error is of another kind.
    pub(super) fn divergence(&self, error: &anyhow::Error) -> Option<anyhow::Error> {
        let mut message = self.reason_of_divergence(error)?;
        if error.to_string().ends_with("train.max_rollbacks") {
            message = format!("{message} ({error})");
        }
        let advice = "with a lower learning rate, a longer warm-up or train.grad_clip";
        let newest = self.checkpoints.list().ok().and_then(|mut entries| entries.pop());
        let advice = match newest {
            Some(newest) => format!(
                "the last good checkpoint is {} (`lrpt eval` and `lrpt generate` read it); a run \
                 keeps its settings when resumed, so start another one in a new folder \
                 (--run-dir), or here with --restart, {advice}",
                newest.path.display()
            ),
            None => format!(
                "there is no checkpoint yet; start it again in the same folder, without --resume, \
                 {advice}"
            ),
        };
        Some(Failure::Diverged(format!("{message}; {advice}")).into())
    }

    /// What was not finite; none if the error is of another kind.
    pub(super) fn reason_of_divergence(&self, error: &anyhow::Error) -> Option<String> {
        let diverged = error.chain().find_map(|cause| match cause.downcast_ref() {
            Some(Failure::Diverged(message)) => Some(message.clone()),
            _ => None,
        });
        diverged.or_else(|| {
            is_numeric_breakdown(error).then(|| {
                format!("step {} met numbers that are not finite: {error:#}", self.attempted)
            })
        })
    }

    /// Warns of a run that ends at a loss far above that of guessing, ln V.
    pub(super) fn warn_of_high_loss(&self, observers: &mut Observers) -> Result<()> {
        let guessing = (self.trainer.model.config().vocab_size as f64).ln();
        match self.last_loss {
            Some(loss) if loss > HIGH_LOSS * guessing => observers.on(&Event::Warning {
                message: format!(
                    "the run ends at a training loss of {loss:.4}, far above the {guessing:.4} \
                         of guessing (ln of the vocabulary): it has not learnt; start another one \
                         with a lower learning rate, a longer warm-up or train.grad_clip"
                ),
            }),
            _ => Ok(()),
        }
    }
}
