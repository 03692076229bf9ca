//! Validation: a fixed set of tokens, token-weighted, the same whatever the batch size.

use crate::data::{Batch, ValidationSet};
use crate::model::Network;
use crate::ops::Targets;
use crate::parallel::{Alone, Communicator};
use crate::params::ParamStore;
use serde::Serialize;

/// Sequences evaluated together; has no influence on the result beyond rounding in f64.
const EVALUATION_BATCH: usize = 8;

/// Loss over a validation set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationLoss {
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Cross-entropy in bits per UTF-8 byte of the predicted text; absent where no token has bytes.
    pub bits_per_byte: Option<f64>,
    /// Predicted tokens.
    pub tokens: u64,
}

/// The loss of a model on a validation set: Σ over windows of −ln p(target | window so far),
/// divided by the number of targets.
///
/// # Errors
/// If the text cannot be read or the model fails.
pub fn evaluate(
    model: &dyn Network,
    params: &ParamStore,
    set: &ValidationSet,
) -> anyhow::Result<ValidationLoss> {
    evaluate_shared(model, params, set, &Alone)
}

/// Which targets of a batch count.
pub(super) fn targets_of(batch: &Batch) -> Targets<'_> {
    match &batch.trained {
        None => Targets::from(&batch.targets),
        Some(trained) => Targets::only(&batch.targets, &trained.rows, trained.divisor),
    }
}

/// [`evaluate`] by processes that hold the same parameters: batch i by that of rank i mod world.
/// The sum is taken in the order of the batches, so that it is the same for any number of them.
///
/// # Errors
/// As [`evaluate`], or if the connection fails.
pub fn evaluate_shared(
    model: &dyn Network,
    params: &ParamStore,
    set: &ValidationSet,
    processes: &dyn Communicator,
) -> anyhow::Result<ValidationLoss> {
    let device = params
        .iter()
        .next()
        .map(|(_, p)| p.weight.leaves()[0].1.device().clone())
        .unwrap_or(candle_core::Device::Cpu);
    let (rank, world) = (processes.rank(), processes.world());
    let mut own = Vec::new();
    for batch in set.batches(EVALUATION_BATCH).skip(rank).step_by(world) {
        let batch = batch?.to_device(&device)?;
        own.push(model.loss_sum_of(params, &batch.inputs, targets_of(&batch))?);
    }
    let all = processes.gather_f64(&own)?;
    let batches = set.windows().div_ceil(EVALUATION_BATCH);
    let of_batch = |batch: usize| all.get(batch % world).and_then(|own| own.get(batch / world));
    let sum: f64 = (0..batches).map(|batch| of_batch(batch).copied().unwrap_or(f64::NAN)).sum();
    let (tokens, bytes) = (set.target_tokens(), set.target_bytes());
    let loss = sum / tokens as f64;
    let bits_per_byte = (bytes > 0).then(|| sum / std::f64::consts::LN_2 / bytes as f64);
    Ok(ValidationLoss { loss, perplexity: loss.exp(), bits_per_byte, tokens })
}
