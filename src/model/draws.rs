//! Tokens drawn by the rules of `candle_transformers::generation`, with its generator.
//!
//! Which tokens can be drawn is decided here, exactly as a [`LogitsProcessor`] of the rule decides
//! it; a processor then draws one of them. Its crate is large and is compiled without optimisation
//! (Cargo.toml): sorted there, a vocabulary of 4096 tokens takes longer than the pass of a small
//! network.

use super::Sampling;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_transformers::generation::{LogitsProcessor, Sampling as Rule};

/// The draws of one sample.
pub(super) struct Draws {
    sampling: Sampling,
    processor: LogitsProcessor,
}

impl Draws {
    /// Draws by these rules with this seed in place of theirs.
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        let temperature = sampling.temperature;
        let rule = if temperature <= 0.0 { Rule::ArgMax } else { Rule::All { temperature } };
        Self { sampling, processor: LogitsProcessor::from_sampling(seed, rule) }
    }

    /// The next token, by the logits of the whole vocabulary in host memory.
    ///
    /// # Errors
    /// If the logits are not finite.
    pub fn draw(&mut self, logits: &Tensor) -> Result<u32> {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if temperature <= 0.0 || (top_k.is_none() && top_p.is_none()) {
            return self.processor.sample(logits);
        }
        let logits = (logits.to_dtype(DType::F32)? / temperature)?;
        let probabilities = softmax_last_dim(&logits)?.to_vec1::<f32>()?;
        let tokens = likeliest(&probabilities, top_k, top_p);
        let weights: Vec<f32> = tokens.iter().map(|token| probabilities[*token]).collect();
        // A processor makes weights of logits before it lets us change them; these are replaced.
        let replaced = Tensor::zeros(weights.len(), DType::F32, &Device::Cpu)?;
        let drawn = self.processor.sample_f(&replaced, |all| all.copy_from_slice(&weights))?;
        Ok(tokens[drawn as usize] as u32)
    }
}

/// The tokens that can be drawn, in the order in which a [`LogitsProcessor`] adds up their
/// probabilities: a draw depends on it. Those that it counts with a probability of 0 are left out.
fn likeliest(probabilities: &[f32], top_k: Option<usize>, top_p: Option<f64>) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..probabilities.len()).collect();
    let share = top_p.map(|share| share as f32);
    match top_k.filter(|k| *k < tokens.len()) {
        Some(k) => {
            tokens
                .select_nth_unstable_by(k, |i, j| probabilities[*j].total_cmp(&probabilities[*i]));
            tokens.truncate(k);
            let sum: f32 = tokens.iter().map(|token| probabilities[*token]).sum();
            match share.filter(|share| *share > 0.0 && *share < sum) {
                Some(share) => nucleus(tokens, probabilities, share),
                None => tokens,
            }
        }
        // Without `top_k` a share of 1 is no rule; beside one that has no effect it is.
        None => match share.filter(|share| top_k.is_some() || (*share > 0.0 && *share < 1.0)) {
            Some(share) => nucleus(tokens, probabilities, share),
            None => tokens,
        },
    }
}

/// The fewest of these tokens whose probabilities add up to this share, in their order.
fn nucleus(tokens: Vec<usize>, probabilities: &[f32], share: f32) -> Vec<usize> {
    let probability = |place: usize| probabilities[tokens[place]];
    let mut places: Vec<usize> = (0..tokens.len()).collect();
    places.sort_by(|i, j| probability(*j).total_cmp(&probability(*i)));
    let (mut is_kept, mut sum) = (vec![false; tokens.len()], 0.0);
    for place in places {
        if sum >= share {
            break;
        }
        sum += probability(place);
        is_kept[place] = true;
    }
    tokens
        .into_iter()
        .zip(is_kept)
        .filter_map(|(token, is_kept)| is_kept.then_some(token))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use rand::Rng;

    /// Token for token, those of a processor that follows the rule by itself.
    #[test]
    fn draws_are_those_of_a_processor() {
        let mut random = rng::stream(3, "logits", &[]);
        for size in [1, 2, 7, 60, 3000] {
            let rows: Vec<Tensor> = (0..20)
                .map(|row| {
                    // Every second row has many tokens of equal probability, and some of none.
                    let logit = |random: &mut rand_chacha::ChaCha8Rng| match row % 2 {
                        0 => random.random_range(-4f32..4.0),
                        _ => [-1.0, 0.0, 2.0, f32::NEG_INFINITY][random.random_range(0..4)],
                    };
                    let mut logits: Vec<f32> = (0..size).map(|_| logit(&mut random)).collect();
                    logits[row % size] = 1.5;
                    Tensor::from_vec(logits, size, &Device::Cpu).expect("logits")
                })
                .collect();
            for top_k in [None, Some(1), Some(5), Some(59), Some(60), Some(100_000)] {
                for top_p in [None, Some(1e-9), Some(0.3), Some(0.9), Some(0.9999), Some(1.0)] {
                    for temperature in [0.0, 0.3, 0.8, 2.0] {
                        let sampling = Sampling { temperature, top_k, top_p, seed: 0 };
                        let rule = match (top_k, top_p) {
                            _ if temperature <= 0.0 => Rule::ArgMax,
                            (None, None) => Rule::All { temperature },
                            (Some(k), None) => Rule::TopK { k, temperature },
                            (None, Some(p)) => Rule::TopP { p, temperature },
                            (Some(k), Some(p)) => Rule::TopKThenTopP { k, p, temperature },
                        };
                        let mut draws = Draws::new(sampling, 11);
                        let mut processor = LogitsProcessor::from_sampling(11, rule);
                        let drawn: Vec<u32> =
                            rows.iter().map(|row| draws.draw(row).expect("a token")).collect();
                        let expected: Vec<u32> =
                            rows.iter().map(|row| processor.sample(row).expect("one")).collect();
                        assert_eq!(drawn, expected, "{sampling:?} of {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        let logits = Tensor::new(&[0.5f32, f32::NAN, 1.0, 2.0], &Device::Cpu).expect("logits");
        for (top_k, top_p) in
            [(None, None), (Some(2), None), (None, Some(0.9)), (Some(2), Some(0.9))]
        {
            let sampling = Sampling { temperature: 0.8, top_k, top_p, seed: 0 };
            assert!(Draws::new(sampling, 1).draw(&logits).is_err(), "{sampling:?}");
        }
    }
}
