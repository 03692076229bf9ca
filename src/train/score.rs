//! How surprised a model is by a text: every token of it once, however short or long it is.

use crate::data::{TokenShard, Tokenizer};
use crate::error::Failure;
use crate::model::Network;
use crate::ops::Targets;
use crate::params::ParamStore;
use anyhow::Result;
use candle_core::{Device, Tensor};
use serde::Serialize;

/// Rows that are read together.
const BATCH: usize = 8;
/// Most blocks of consecutive tokens that a standard error is made from, and the fewest tokens of
/// one where there are enough for that.
const BLOCKS: usize = 100;
const BLOCK_TOKENS: usize = 32;

/// Tokens of which those from a place on are scored, each given all before it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// The tokens, at most one more than the block size.
    pub tokens: Vec<u32>,
    /// The first that is scored, at least 1.
    pub from: usize,
}

/// −ln p of the scored tokens of each row, in nats.
///
/// # Errors
/// If the model fails.
pub(super) fn surprises(
    model: &dyn Network,
    params: &ParamStore,
    rows: &[Row],
) -> Result<Vec<Vec<f64>>> {
    let device = params.dense(model.head().weight)?.device().clone();
    let mut found = Vec::with_capacity(rows.len());
    for batch in rows.chunks(BATCH) {
        let width = batch.iter().map(|row| row.tokens.len() - 1).max().unwrap_or(0);
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        let mut places = Vec::new();
        for (number, Row { tokens, from }) in batch.iter().enumerate() {
            let last = tokens.len() - 1;
            // Nothing sees what stands behind it, so the filling is never seen.
            let filling = || std::iter::repeat_n(0u32, width - last);
            inputs.extend(tokens[..last].iter().copied().chain(filling()));
            targets.extend(tokens[1..].iter().copied().chain(filling()));
            places.extend((from - 1..last).map(|place| (number * width + place) as u32));
        }
        let shape = (batch.len(), width);
        let inputs = Tensor::from_vec(inputs, shape, &Device::Cpu)?.to_device(&device)?;
        let targets = Tensor::from_vec(targets, shape, &Device::Cpu)?.to_device(&device)?;
        let places = Tensor::new(places, &device)?;
        let chosen = Targets::only(&targets, &places, 1.0);
        let mut losses = model.losses_of(params, &inputs, chosen)?.into_iter();
        for Row { tokens, from } in batch {
            found.push(losses.by_ref().take(tokens.len() - from).collect());
        }
    }
    Ok(found)
}

/// The loss over a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextScore {
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// Its standard error; none of a single token.
    pub standard_error: Option<f64>,
    /// exp(loss).
    pub perplexity: f64,
    /// Cross-entropy in bits per UTF-8 byte of the predicted text.
    pub bits_per_byte: Option<f64>,
    /// Predicted tokens: all but the first.
    pub tokens: u64,
    /// UTF-8 bytes of the text that they stand for.
    pub bytes: u64,
    /// The surprise of each, in nats.
    #[serde(skip)]
    surprises: Vec<f64>,
    #[serde(skip)]
    exact_bytes: f64,
}

impl TextScore {
    /// Scores every token of a text but its first. Windows of T = `block_size` tokens begin every
    /// `stride` tokens; each scores what the one before it has not, so that a token beyond the
    /// first window is predicted from at least T − `stride` tokens before it and the one it
    /// follows.
    ///
    /// # Errors
    /// If the text has fewer than two tokens or cannot be encoded, the stride is not between 1 and
    /// T, or the model fails.
    pub fn of(
        model: &dyn Network,
        params: &ParamStore,
        tokenizer: &Tokenizer,
        text: &str,
        stride: usize,
    ) -> Result<Self> {
        let block = model.config().block_size;
        if !(1..=block).contains(&stride) {
            return Err(Failure::Usage(format!(
                "a stride of {stride} tokens; it is at least 1 and at most the block size {block}"
            ))
            .into());
        }
        let tokens = tokenizer.encode(text)?;
        if tokens.len() < 2 {
            return Err(Failure::Usage(format!(
                "the text has {} token{}; it takes two, the first of which is given, to have \
                 something to predict",
                tokens.len(),
                if tokens.len() == 1 { "" } else { "s" }
            ))
            .into());
        }
        let surprises = surprises(model, params, &windows(&tokens, block, stride))?.concat();
        let (count, lengths) = (tokens.len() - 1, tokenizer.token_byte_lengths());
        let shard = TokenShard::from_text(tokens, text.len() as u64, &lengths);
        Ok(Self::from_surprises(surprises, shard.text_bytes(1, count, &lengths)))
    }

    /// Several texts as one.
    pub fn all(scores: &[TextScore]) -> Self {
        let surprises = scores.iter().flat_map(|score| &score.surprises).copied().collect();
        Self::from_surprises(surprises, scores.iter().map(|score| score.exact_bytes).sum())
    }

    fn from_surprises(surprises: Vec<f64>, bytes: f64) -> Self {
        let (sum, count) = (surprises.iter().sum::<f64>(), surprises.len());
        let loss = sum / count as f64;
        Self {
            loss,
            standard_error: standard_error(&surprises),
            perplexity: loss.exp(),
            bits_per_byte: (bytes > 0.0).then(|| sum / std::f64::consts::LN_2 / bytes),
            tokens: count as u64,
            bytes: bytes.round() as u64,
            surprises,
            exact_bytes: bytes,
        }
    }
}

/// The windows over a text, each scoring the tokens that the one before it has not.
fn windows(tokens: &[u32], block: usize, stride: usize) -> Vec<Row> {
    let (mut rows, mut scored) = (Vec::new(), 0);
    for start in (0..).step_by(stride) {
        // Tokens start..=end; token `end` is the last that is predicted.
        let end = (start + block).min(tokens.len() - 1);
        rows.push(Row { tokens: tokens[start..=end].to_vec(), from: scored + 1 - start });
        scored = end;
        if end == tokens.len() - 1 {
            break;
        }
    }
    rows
}

/// The standard error of a mean over consecutive tokens, s/√b over the means of b blocks of them,
/// since neighbours are not independent: b = N/32, at least N for N < 64 (each token a block) and
/// at most 100.
fn standard_error(values: &[f64]) -> Option<f64> {
    let count = values.len();
    let blocks = if count < 2 * BLOCK_TOKENS { count } else { (count / BLOCK_TOKENS).min(BLOCKS) };
    if blocks < 2 {
        return None;
    }
    let means = (0..blocks).map(|block| {
        let block = &values[block * count / blocks..(block + 1) * count / blocks];
        block.iter().sum::<f64>() / block.len() as f64
    });
    let mean = means.clone().sum::<f64>() / blocks as f64;
    let squares: f64 = means.map(|x| (x - mean).powi(2)).sum();
    Some((squares / (blocks * (blocks - 1)) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelConfig, build};
    use candle_core::DType;

    fn network() -> (Box<dyn Network>, ParamStore) {
        let config: ModelConfig = serde_json::from_value(serde_json::json!({
            "arch": "gpt2", "vocab_size": 256, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8,
            "dropout": 0.0, "bias": true, "weights": {}
        }))
        .expect("a configuration");
        let model = build(config).expect("a network");
        let params = model.initialize(3, DType::F32, &Device::Cpu).expect("parameters");
        (model, params)
    }

    /// Every token but the first once, from what the window has before it.
    #[test]
    fn windows_score_each_token_once() {
        for (count, stride) in [(2, 8), (9, 8), (10, 8), (30, 8), (30, 3), (30, 1), (17, 5)] {
            let tokens: Vec<u32> = (0..count).collect();
            let rows = windows(&tokens, 8, stride);
            let scored: Vec<u32> =
                rows.iter().flat_map(|row| row.tokens[row.from..].iter().copied()).collect();
            assert_eq!(scored, tokens[1..], "{count} tokens, stride {stride}");
            for row in &rows[1..] {
                assert!(row.tokens.len() <= 9 && row.from > 8 - stride, "{row:?}");
            }
        }
    }

    #[test]
    fn a_text_is_scored_token_by_token() {
        let (model, params) = network();
        let text = "a rank-revealing text";
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        let score =
            |stride| TextScore::of(model.as_ref(), &params, &Tokenizer::bytes(), text, stride);
        // Of a stride of 1, each token given the eight before it.
        let expected: f64 = (1..tokens.len())
            .map(|at| {
                let before = &tokens[at.saturating_sub(8)..at];
                let logits = model.next_token_logits(&params, before).expect("logits");
                let logits: Vec<f32> = logits.to_vec1().expect("numbers");
                let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
                sum.ln() - f64::from(logits[tokens[at] as usize])
            })
            .sum();
        let scored = score(1).expect("a score");
        let count = tokens.len() as f64 - 1.0;
        assert!((scored.loss - expected / count).abs() < 1e-6, "{scored:?}");
        assert_eq!((scored.tokens, scored.bytes), (tokens.len() as u64 - 1, count as u64));
        let bits = scored.bits_per_byte.expect("bytes");
        assert!((bits * std::f64::consts::LN_2 - scored.loss).abs() < 1e-12);
        let twice = TextScore::all(&[scored.clone(), scored.clone()]);
        assert!((twice.loss - scored.loss).abs() < 1e-12 && twice.tokens == 2 * scored.tokens);
        assert!(score(0).is_err() && score(9).is_err());
        let short = TextScore::of(model.as_ref(), &params, &Tokenizer::bytes(), "a", 8);
        assert!(short.unwrap_err().to_string().contains("the text has 1 token; it takes two"));
    }

    #[test]
    fn the_standard_error_is_that_of_block_means() {
        assert_eq!((standard_error(&[]), standard_error(&[1.0])), (None, None));
        // s² = 2, √(2/2) = 1.
        assert_eq!(standard_error(&[1.0, 3.0]), Some(1.0));
        // 64 tokens are two blocks, of means 0 and 1.
        let blocks: Vec<f64> = (0..64).map(|i| f64::from(i / 32)).collect();
        assert_eq!(standard_error(&blocks), Some(0.5));
        assert_eq!(standard_error(&vec![2.0; 100_000]), Some(0.0));
    }
}
