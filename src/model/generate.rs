//! Text generation: sampling token by token through `candle_transformers::generation`.
//!
//! The prompt goes through the network in one pass and every further token in a pass of its own,
//! which sees the keys and values of those before it in a [`KeyValueCache`](super::KeyValueCache).
//! Once a text is longer than `block_size`, the window over it moves, every token gets another
//! position, and all that was computed from the old ones is void: the network then runs over the
//! whole window anew. A window that moves by one token does so for every token, as the definition
//! of the model has it; one that moves by [`Request::slide`] tokens does so once for as many.

use super::Network;
use super::draws::Draws;
use crate::params::ParamStore;
use crate::rng;
use candle_core::{DType, Device, Result, Tensor, bail};

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
    /// The draws of a sample: those of the seed itself for the first, a stream of its own for each
    /// other.
    fn draws(&self, sample: usize) -> Draws {
        let seed = match sample {
            0 => self.seed,
            _ => rng::key64(self.seed, "sample", &[sample as u64]),
        };
        Draws::new(*self, seed)
    }
}

/// What is to be generated.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens to continue, at least one.
    pub prompt: &'a [u32],
    /// Most tokens to add.
    pub count: usize,
    /// Continuations, which run side by side.
    pub samples: usize,
    /// A sample ends with this token, which belongs to it.
    pub end: Option<u32>,
    /// Tokens by which a full window moves on, 1 to `block_size`: with 1 every token sees exactly
    /// the last `block_size`, with more at least `block_size` + 1 − `slide` of them.
    pub slide: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Continues the prompt, showing each sample's number and new token to `on_token`; a sample ends
/// after `count` tokens, with `end`, or after a token for which `on_token` returns `false`. Gives
/// the new tokens of every sample.
///
/// A sample does not depend on how many others there are, up to rounding.
///
/// # Errors
/// If the prompt is empty, there is no sample, `slide` is none that is possible, or the logits are
/// not finite.
pub fn generate(
    model: &dyn Network,
    params: &ParamStore,
    request: Request,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    let Request { prompt, count, samples, end, slide, sampling } = request;
    let block = model.config().block_size;
    if prompt.is_empty() {
        bail!("generation needs at least one token to continue");
    }
    if samples == 0 {
        bail!("generation of no sample");
    }
    if slide == 0 || slide > block {
        bail!("a window of {block} tokens cannot move by {slide}; set 1 to {block}")
    }
    let mut draws: Vec<_> = (0..samples).map(|sample| sampling.draws(sample)).collect();
    let mut texts = vec![prompt.to_vec(); samples];
    // The samples that go on, each a sequence of the cache, in order.
    let mut live: Vec<usize> = (0..samples).collect();
    let mut cache = model.cache(prompt.len().saturating_add(count));
    for step in 0..count {
        let length = prompt.len() + step;
        // All begin alike: one sequence until the first tokens are drawn.
        let sequences = if step == 0 { &live[..1] } else { &live[..] };
        let window = if step == 0 {
            length.min(block)
        } else if cache.is_full() {
            cache.clear();
            block + 1 - slide
        } else {
            1
        };
        let new: Vec<u32> = sequences
            .iter()
            .flat_map(|sample| &texts[*sample][length - window..])
            .copied()
            .collect();
        let device = params.dense(model.head().weight)?.device();
        let new = Tensor::from_vec(new, (sequences.len(), window), device)?;
        // On a thread of the pool, so that no operation has to wait for one to wake up.
        let logits = rayon::scope(|_| model.extend(params, &new, &mut cache))?
            .to_dtype(DType::F32)?
            .to_device(&Device::Cpu)?;
        let mut going_on = Vec::with_capacity(live.len());
        for (sequence, sample) in live.iter().enumerate() {
            let row = logits.get(if step == 0 { 0 } else { sequence })?;
            let token = draws[*sample].draw(&row)?;
            texts[*sample].push(token);
            if on_token(*sample, token) && Some(token) != end {
                going_on.push(sequence);
            }
        }
        if going_on.is_empty() {
            break;
        }
        if step == 0 {
            cache.select(&vec![0; going_on.len()])?;
        } else if going_on.len() < live.len() {
            cache.select(&going_on)?;
        }
        live = going_on.into_iter().map(|sequence| live[sequence]).collect();
    }
    Ok(texts.into_iter().map(|mut text| text.split_off(prompt.len())).collect())
}

#[cfg(test)]
mod tests;
