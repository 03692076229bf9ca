//! Validation: a fixed set of tokens, token-weighted, the same whatever the batch size.

use crate::data::ValidationSet;
use crate::model::Network;
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
pub fn evaluate(
    model: &dyn Network,
    params: &ParamStore,
    set: &ValidationSet,
) -> anyhow::Result<ValidationLoss> {
    let device = params
        .iter()
        .next()
        .map(|(_, p)| p.weight.leaves()[0].1.device().clone())
        .unwrap_or(candle_core::Device::Cpu);
    let mut sum = 0.0;
    for batch in set.batches(EVALUATION_BATCH) {
        let batch = batch?;
        sum += model.loss_sum(
            params,
            &batch.inputs.to_device(&device)?,
            &batch.targets.to_device(&device)?,
        )?;
    }
    let (tokens, bytes) = (set.target_tokens(), set.target_bytes());
    let loss = sum / tokens as f64;
    let bits_per_byte = (bytes > 0).then(|| sum / std::f64::consts::LN_2 / bytes as f64);
    Ok(ValidationLoss { loss, perplexity: loss.exp(), bits_per_byte, tokens })
}
