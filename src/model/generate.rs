//! Text generation: sampling token by token through `candle_transformers::generation`.

use super::Network;
use crate::params::ParamStore;
use candle_core::{DType, Device, Result, bail};
use candle_transformers::generation::{LogitsProcessor, Sampling as Rule};

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the smallest set of tokens that has this probability.
    pub top_p: Option<f64>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    fn rule(&self) -> Rule {
        let temperature = self.temperature;
        match (self.top_k, self.top_p) {
            _ if temperature <= 0.0 => Rule::ArgMax,
            (None, None) => Rule::All { temperature },
            (Some(k), None) => Rule::TopK { k, temperature },
            (None, Some(p)) => Rule::TopP { p, temperature },
            (Some(k), Some(p)) => Rule::TopKThenTopP { k, p, temperature },
        }
    }
}

/// Continues `prompt` by `count` tokens, showing each to `on_token`; the context is the last
/// `block_size` tokens.
///
/// Stops early after a token for which `on_token` returns `false`.
///
/// # Errors
/// If the prompt is empty, or the logits are not finite.
pub fn generate(
    model: &dyn Network,
    params: &ParamStore,
    prompt: &[u32],
    count: usize,
    sampling: Sampling,
    on_token: &mut dyn FnMut(u32) -> bool,
) -> Result<Vec<u32>> {
    if prompt.is_empty() {
        bail!("generation needs at least one token to continue");
    }
    let mut processor = LogitsProcessor::from_sampling(sampling.seed, sampling.rule());
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let context = &tokens[tokens.len().saturating_sub(model.config().block_size)..];
        let logits = model
            .next_token_logits(params, context)?
            .to_dtype(DType::F32)?
            .to_device(&Device::Cpu)?;
        let token = processor.sample(&logits)?;
        tokens.push(token);
        if !on_token(token) {
            break;
        }
    }
    Ok(tokens.split_off(prompt.len()))
}
